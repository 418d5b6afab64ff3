"""The offline face on a tiny random model: order, streams, stop strings, errors that leave the engine unharmed."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from tests.tiny import tiny_config, write_tiny
from ventoux import LLM, SamplingParams
from ventoux.errors import CheckpointError, ConfigError, ContextLengthError, InvalidImageError, InvalidRequestError
from ventoux.llm import BatchItem
from ventoux.text.answer import fold_answer

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), tokenizer=True)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, dtype="float32", max_model_len=256, num_threads=1) as llm:
        yield llm


def test_results_come_in_prompt_order(llm):
    prompts = ["one", [1, 1050, 1060], "three and a bit more"]
    together = llm.generate(prompts, GREEDY)
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert [r.outputs[0].token_ids for r in together] == [r.outputs[0].token_ids for r in alone]
    assert together[1].prompt_token_ids == [1, 1050, 1060] and together[1].prompt is None
    assert all(r.outputs[0].finish_reason == "length" for r in together)


def test_a_list_of_ids_is_one_prompt_and_a_list_of_lists_are_many(llm):
    assert len(llm.generate([1, 1050, 1060], GREEDY)) == 1
    assert len(llm.generate([[1, 1050], [1, 1060]], GREEDY)) == 2


def test_the_stream_folds_to_the_answer(llm):
    whole = llm.chat(HI, GREEDY).outputs[0]
    folded = fold_answer(llm.stream(HI, GREEDY))
    assert folded.message == whole.message


def test_leaving_a_stream_early_frees_the_engine(llm):
    stream = llm.stream(HI, SamplingParams(max_tokens=200, ignore_eos=True, temperature=0.0))
    next(stream)
    stream.close()
    assert llm.chat(HI, GREEDY).outputs[0].token_ids  # the engine still answers
    assert llm.client.stats().num_free_pages == llm.plan.num_pages


def test_a_stop_string_ends_the_answer_before_it(llm):
    text = llm.generate("abc", SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True))[0].outputs[0].text
    visible = next(c for c in text[1:] if c.isprintable() and c not in text[:1])
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, stop=[visible])
    output = llm.generate("abc", params)[0].outputs[0]
    assert output.text == text[: text.index(visible)]
    assert (output.finish_reason, output.stop_reason) == ("stop", visible)


def test_images_by_data_url_and_as_pictures_agree(llm):
    picture = Image.new("RGB", (56, 28), "red")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "image", "image": picture}]
    first, second = (llm.chat([{"role": "user", "content": [part]}], GREEDY) for part in parts)
    assert first.prompt_token_ids == second.prompt_token_ids
    assert first.outputs[0].token_ids == second.outputs[0].token_ids


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda llm: llm.generate([1050] * 256, GREEDY), ContextLengthError),
        (lambda llm: llm.generate("x", SamplingParams(temperature=9.0)), InvalidRequestError),
        (lambda llm: llm.chat([], GREEDY), InvalidRequestError),
        (lambda llm: list(llm.stream(HI, SamplingParams(n=2))), InvalidRequestError),
        (
            lambda llm: llm.chat([{"role": "user", "content": [{"type": "image_url", "image_url": "http://x/y"}]}]),
            InvalidImageError,
        ),
    ],
)
def test_bad_requests_name_their_fault_and_harm_nobody(llm, call, error):
    with pytest.raises(error):
        call(llm)
    assert llm.chat(HI, GREEDY).outputs[0].token_ids


def test_a_tokenizer_of_another_model_is_refused(tmp_path, folder):
    other = write_tiny(tmp_path, config=tiny_config(vocab_size=1400))
    (other / "tekken.json").write_bytes((folder / "tekken.json").read_bytes())
    with pytest.raises(CheckpointError, match="do not belong together"):
        LLM(other)


def test_choices_that_the_machine_cannot_honour_are_refused(folder):
    with pytest.raises(ConfigError, match="Not enough memory"):
        LLM(folder, kv_cache_memory=1)
    with pytest.raises(ConfigError, match="positions"):
        LLM(folder, max_model_len=2**21)


def test_results_of_a_batch_come_one_by_one(llm):
    """The last ones used to wait for the first, and everything for the end."""
    seen = []
    items = [BatchItem("abc", SamplingParams(max_tokens=n, ignore_eos=True)) for n in (30, 2)]
    items.append(BatchItem("x", SamplingParams(temperature=9.0)))
    results = llm.batch(items, lambda i, result: seen.append((i, result)))
    assert [i for i, _ in seen] == [2, 1, 0]
    assert [dict(seen)[i] for i in range(3)] == results
    assert isinstance(results[2], InvalidRequestError)
    assert [len(result.outputs[0].token_ids) for result in results[:2]] == [30, 2]


def test_a_stream_returns_its_finish_reason(llm):
    def reason(**params):
        def outer():
            found.append((yield from llm.stream("abc", SamplingParams(ignore_eos=True, **params))))

        found = []
        list(outer())
        return found

    assert reason(max_tokens=3) == ["length"]
    assert reason(max_tokens=30, stop_token_ids=list(range(1000, 1317))) == ["stop"]
