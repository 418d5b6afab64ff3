"""Admission, endings, aborts, and failures that stay with the request that caused them."""

import math

import pytest
import torch

from tests.engines import generate, image, image_tokens, prompt, request, run, tiny_engine, tokens
from tests.tiny import tiny_model
from ventoux.config import Speculation
from ventoux.engine.drafting import NgramDrafter
from ventoux.errors import ContextLengthError, InvalidRequestError


def test_ends_by_length_and_by_stop_token():
    engine = tiny_engine()
    (answer,) = generate(engine, request(prompt(10)))
    outputs = run(engine, [request(prompt(10), stop_token_ids=[answer[3]])])["r", 0]
    assert tokens(outputs) == answer[: answer.index(answer[3])]
    assert (outputs[-1].finish_reason, outputs[-1].stop_token_id) == ("stop", answer[3])
    full = run(engine, [request(prompt(10), max_tokens=3)])["r", 0]
    assert (len(tokens(full)), full[-1].finish_reason) == (3, "length")


def test_min_tokens_bars_end_tokens():
    engine = tiny_engine()
    (answer,) = generate(engine, request(prompt(10)))
    outputs = run(engine, [request(prompt(10), stop_token_ids=[answer[0]], min_tokens=4)])["r", 0]
    assert len(tokens(outputs)) >= 4
    assert answer[0] not in tokens(outputs)[:4]


def test_max_model_len_ends_a_sequence():
    engine = tiny_engine(max_model_len=20)
    outputs = run(engine, [request(prompt(15), max_tokens=100)])["r", 0]
    assert (len(tokens(outputs)), outputs[-1].finish_reason) == (5, "length")


@pytest.mark.parametrize(
    ("ids", "images", "params", "error"),
    [
        ([], [], {}, InvalidRequestError),
        ([5000], [], {}, InvalidRequestError),
        ([-1], [], {}, InvalidRequestError),
        (prompt(160), [], {}, ContextLengthError),
        ([10, 1001], [], {}, InvalidRequestError),
        (image_tokens(2, 3), [image(3, 3)], {}, InvalidRequestError),
        (prompt(3), [], {"temperature": math.nan}, InvalidRequestError),
        (prompt(3), [], {"logit_bias": {1317: 1.0}}, InvalidRequestError),
        (prompt(3), [], {"stop_token_ids": [10**9]}, InvalidRequestError),
        (prompt(3), [], {"n": 10**9}, InvalidRequestError),
        (prompt(3), [], {"min_tokens": 9, "max_tokens": 8}, InvalidRequestError),
        (prompt(3), [], {"grammar": "start: /a/"}, InvalidRequestError),
    ],
)
def test_bad_requests_are_refused_and_leave_nothing(ids, images, params, error):
    engine = tiny_engine()
    with pytest.raises(error):
        engine.add(request(ids, images=images, **params))
    assert not engine.sequences and not engine.seeds and not engine.has_work


def test_abort_frees_within_the_call_and_others_go_on():
    engine = tiny_engine()
    alone = generate(tiny_engine(), request(prompt(20, 1), "b"))
    engine.add(request(prompt(20), "a", n=2, max_tokens=50))
    engine.add(request(prompt(20, 1), "b"))
    outputs = [o for _ in range(3) for o in engine.step()]
    ended = engine.abort("a")
    assert sorted((o.index, o.finish_reason) for o in ended) == [(0, "abort"), (1, "abort")]
    assert engine.abort("a") == [] == engine.abort("unknown")
    while engine.has_work:
        outputs += engine.step()
    assert tokens([o for o in outputs if o.request_id == "b"]) == alone[0]
    assert engine.pool.num_idle == engine.pool.num_pages


def test_aborting_the_first_answer_does_not_strand_the_others():
    engine = tiny_engine(max_num_batched_tokens=4)
    engine.add(request(prompt(20), "a", n=3))
    engine.step()
    engine.abort("a", 0)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert {o.index for o in outputs if o.finish_reason == "length"} == {1, 2}


def test_logits_that_are_not_finite_end_one_request_alone():
    model = tiny_model()
    model.language_model.embed_tokens.weight[1200] = torch.nan
    engine = tiny_engine(model=model)
    good = generate(tiny_engine(), request([1100, 1101], "good"))
    outputs = run(engine, [request([1100, 1200], "bad"), request([1100, 1101], "good")])
    assert outputs["bad", 0][-1].error_code == "numerical_error"
    assert tokens(outputs["good", 0]) == good[0]


def test_a_failing_forward_ends_the_culprit_alone(monkeypatch):
    engine = tiny_engine()
    expected = generate(tiny_engine(), request(prompt(9, 2), "good"))
    forward = engine.runner.forward

    def fails_for_bad(chunks):
        if any(c.sequence.request.request_id == "bad" for c in chunks):
            raise RuntimeError("device trouble")
        return forward(chunks)

    monkeypatch.setattr(engine.runner, "forward", fails_for_bad)
    outputs = run(engine, [request(prompt(9, 1), "bad"), request(prompt(9, 2), "good")])
    assert outputs["bad", 0][-1].error_code == "internal_error"
    assert "device trouble" not in outputs["bad", 0][-1].error
    assert tokens(outputs["good", 0]) == expected[0]
    assert engine.stats().num_failed == 1


ALWAYS = Speculation("ngram", 2, adaptive=False)


@pytest.mark.parametrize("guesses", [False, True])
def test_those_who_are_tried_one_by_one_get_their_own_rows(monkeypatch, guesses):
    """Several go on after a batch has failed, and share the head's product again."""
    how = {"make_drafter": lambda runner, plan: NgramDrafter(3, 1), "speculation": ALWAYS} if guesses else {}
    good = [request(prompt(n, n), f"good {n}") for n in (5, 9, 17, 2)]
    expected = {one.request_id: generate(tiny_engine(**how), one)[0] for one in good}
    engine = tiny_engine(**how)
    forward, failed = engine.runner.forward, []

    def fails_for_many(chunks):
        if len(chunks) > 1:
            failed.append(len(chunks))
            raise RuntimeError("device trouble")
        return forward(chunks)

    monkeypatch.setattr(engine.runner, "forward", fails_for_many)
    outputs = run(engine, good)
    assert max(failed) == 4
    assert {name: tokens(outputs[name, 0]) for name in expected} == expected
    assert len({tuple(found) for found in expected.values()}) > 1


def test_a_failing_image_ends_its_request_alone(monkeypatch):
    engine = tiny_engine()
    encode = engine.runner.model.encode_images

    def fails_for_wide(images):
        if images[0].shape[2] == 5 * 28:
            raise MemoryError
        return encode(images)

    monkeypatch.setattr(engine.runner.model, "encode_images", fails_for_wide)
    bad = request([*image_tokens(2, 5), 1001], "bad", [image(2, 5)])
    good = request([*image_tokens(2, 3), 1001], "good", [image(2, 3)])
    outputs = run(engine, [bad, good])
    assert outputs["bad", 0][-1].finish_reason == "error"
    assert len(tokens(outputs["good", 0])) == 8


def test_an_image_is_encoded_once():
    engine = tiny_engine(max_num_batched_tokens=3)
    ids = [*image_tokens(2, 3), 1001]
    run(engine, [request(ids, "a", [image(2, 3)], n=2), request(ids, "b", [image(2, 3)])])
    run(engine, [request([1002, *ids], "c", [image(2, 3)])])
    assert engine.stats().num_images_encoded == 1


def test_encoded_images_are_bounded():
    engine = tiny_engine(image_cache_size=2)
    for seed in range(5):
        run(engine, [request([*image_tokens(2, 3), 1001], "a", [image(2, 3, seed)])])
    assert len(engine.runner.images) <= 3  # two kept, one of the last step


def test_more_sequences_than_places_wait_their_turn():
    engine = tiny_engine(max_num_seqs=2)
    requests = [request(prompt(5, i), f"r{i}") for i in range(5)]
    for one in requests:
        engine.add(one)
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, len(engine.scheduler.running))
    assert most == 2


def test_decodes_go_on_while_a_long_prompt_is_read():
    engine = tiny_engine(max_num_batched_tokens=4)
    engine.add(request(prompt(3), "short", max_tokens=30))
    engine.step()
    engine.add(request(prompt(60), "long"))
    outputs = [o for _ in range(6) for o in engine.step()]
    assert [o.request_id for o in outputs] == ["short"] * 6


def test_a_request_that_is_not_finite_leaves_nothing_in_the_prefix_cache():
    """Masked weights are 0, and 0 * NaN is NaN: the bad token reaches the latents before it, which others find."""
    model = tiny_model()
    model.language_model.embed_tokens.weight[1200] = torch.nan
    engine = tiny_engine(model=model)
    shared = [1100, 1101, 1102, 1103, 1104]
    run(engine, [request([*shared, 1200], "bad")])
    expected = generate(tiny_engine(), request([*shared, 1105], "good"))
    assert generate(engine, request([*shared, 1105], "good")) == expected


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": [1]}, "max_tokens"),
        ({"n": 1.5}, "n"),
        ({"stop": [7]}, "stop"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias"),
        ({"ignore_eos": 3}, "ignore_eos"),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name(params, name):
    """They would otherwise be found by the decoder of the engine process, too late to say whose they are."""
    with pytest.raises(InvalidRequestError, match="xpected") as caught:
        tiny_engine().add(request(prompt(3), **params))
    assert caught.value.param == name


def test_a_salt_that_is_no_text_hurts_nobody():
    one = request(prompt(20))
    one.cache_salt = "\ud800"
    assert len(generate(tiny_engine(), one)[0]) == 8


def test_pages_of_its_own_are_no_cached_tokens():
    """A prompt that was preempted half way finds its pages again: work done twice, not work saved."""
    engine = tiny_engine(num_pages=40, max_num_batched_tokens=2)
    outputs = run(engine, [request(prompt(60), "old", max_tokens=60), request(prompt(120, 1), "young")])
    assert engine.stats().num_preemptions > 0
    assert outputs["young", 0][0].num_cached_tokens == 0 == engine.stats().prefix_cache_hits


def test_pixels_go_when_they_are_encoded():
    """28 MB an image, held until the last token of the answer."""
    engine = tiny_engine()
    one = request([*image_tokens(2, 3), 1001], "a", [image(2, 3)], n=2)
    before = one.images[0].pixels
    engine.add(one)
    held = engine.sequences["a", 0].request.images
    assert held[0].pixels
    engine.step()
    assert held[0].pixels == b"" and one.images[0].pixels == before, "the caller's record is the caller's"
    assert engine.sequences["a", 1].request.images[0].pixels == b""


def test_images_without_pixels_survive_preemption_and_a_full_cache():
    """Their rows are the only copy: whoever may be computed again needs them, whether it runs or waits."""
    ids = [*image_tokens(4, 5), *prompt(20)]
    names = [f"r{i}" for i in range(4)]
    expected = [generate(tiny_engine(), request(ids, n, [image(4, 5, i)], max_tokens=40)) for i, n in enumerate(names)]
    engine = tiny_engine(num_pages=40, image_cache_size=0, max_num_batched_tokens=30, enable_prefix_caching=False)
    outputs = run(engine, [request(ids, n, [image(4, 5, i)], max_tokens=40) for i, n in enumerate(names)])
    assert engine.stats().num_preemptions > 0
    assert [[tokens(outputs[n, 0])] for n in names] == expected
    assert engine.stats().num_images_encoded == 4 and not engine.runner.images.keys() - {image(4, 5, 3).content_hash}


def test_steps_without_images_let_go_of_those_that_nobody_needs():
    """Catches a shortcut for words alone that keeps a burst of pictures in memory until the next picture."""
    engine = tiny_engine(image_cache_size=1)
    asked = [
        request([*image_tokens(2, 2 + i), 1001], f"i{i}", [image(2, 2 + i, seed=i)], max_tokens=2) for i in range(3)
    ]
    run(engine, asked)
    assert engine.stats().num_images_encoded == 3
    run(engine, [request(prompt(5, 1), "words", max_tokens=2)])
    assert len(engine.runner.images) == 1
