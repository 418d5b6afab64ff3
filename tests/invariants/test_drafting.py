"""Promise 2 under drafting: guesses change how fast tokens come, never which. Compared bit for bit, log-probabilities
included, on native operators; the guesses come from drafters that are right, wrong, or right at random."""

import json
import random
from functools import cache

import pytest
import torch

from tests.engines import image, image_tokens, prompt, request, run, tiny_engine
from tests.tiny import DRAFT_FIELDS, tiny_config, tiny_draft, tiny_draft_config, tiny_model, wide_config, write_tiny
from ventoux.build import build_engine
from ventoux.checkpoint.quantize import quantize
from ventoux.config import EngineConfig, RopeConfig, Speculation, StoredWeights
from ventoux.engine.drafting import EagleDrafter, NgramDrafter, Progress
from ventoux.ops.cpu import instruction_sets, native_operators
from ventoux.ops.formats import Fp8Weight, Nvfp4Weight

if not instruction_sets():
    pytest.skip("installed without native code", allow_module_level=True)

ROPE = RopeConfig(factor=8.0, original_max_position_embeddings=32, llama_4_original_max_position_embeddings=32)
IMAGES = [image(2, 3, seed=1)]
WITH_IMAGE = [*prompt(9, 1), *image_tokens(2, 3), *prompt(6, 2)]
# Tokens that only ever follow each other in a circle: what prompt lookup is good at.
REPEATED = [*prompt(7, 5)] * 4


@cache
def model(dtype):
    return tiny_model(tiny_config(rope=ROPE), ops=native_operators(2)).to(getattr(torch, dtype))


class Oracle:
    """Guesses what is going to come, each token with a chance of `accuracy`; else any other one."""

    def __init__(self, answers: dict[tuple[str, int], list[int]], accuracy: float):
        self.answers, self.accuracy, self.rng = answers, accuracy, random.Random(5)

    def propose(self, progress: list[Progress]) -> list[list[int]]:
        guesses = []
        for p in progress:
            done = p.sequence.num_generated
            coming = self.answers[p.sequence.key][done : done + p.wanted]
            guesses.append([t if self.rng.random() < self.accuracy else (t + 1) % 1317 for t in coming])
        return guesses


def eagle(runner, plan):
    draft = tiny_draft(tiny_draft_config(rope=ROPE), ops=runner.model.ops).to(runner.cache[0].dtype)
    return EagleDrafter(draft, runner, plan)


EAGLE = Speculation("eagle", 3, StoredWeights(0), tiny_draft_config().text.cached_values)


class Thirds:
    """A grammar with a state: token ids leave the remainders 0, 1, 2, 0, ... by three, and 18 of them are all."""

    def __init__(self, count=0):
        self.count = count

    def fill(self, mask):
        mask[1000 + (self.count - 1000) % 3 :: 3] = True

    def accept(self, token_id):
        allowed = token_id % 3 == self.count % 3
        self.count += allowed
        return allowed

    def is_stopped(self):
        return self.count == 18

    def clone(self):
        return Thirds(self.count)


def any_engine(*args, **choices):
    return tiny_engine(*args, mask_factory=lambda grammar: Thirds(), **choices)


def requests():
    """Prompts of all kinds: greedy and sampled, with and without log-probabilities, penalties and an image."""
    plain = [request(prompt(5 + 9 * i, seed=30 + i), f"greedy-{i}", max_tokens=5 + 3 * i) for i in range(6)]
    sampled = {
        "temperature": {"temperature": 1.0},
        "top-k": {"temperature": 1.2, "top_k": 5},
        "top-p": {"temperature": 0.9, "top_p": 0.8},
        "min-p": {"temperature": 1.5, "min_p": 0.1},
        "penalties": {
            "temperature": 0.7,
            "presence_penalty": 0.8,
            "frequency_penalty": 0.5,
            "repetition_penalty": 1.2,
        },
        "bias": {"temperature": 1.0, "logit_bias": {1100: 6.0, 1101: -4.0}},
        "stops": {"temperature": 2.0, "stop_token_ids": list(range(1000, 1060)), "min_tokens": 6},
    }
    others = [
        request(prompt(20 + i, seed=60 + i), name, max_tokens=30, seed=i, logprobs=2, **params)
        for i, (name, params) in enumerate(sampled.items())
    ]
    several = request(REPEATED, "several", n=3, temperature=0.8, seed=9, max_tokens=20)
    scored = request(prompt(25, 77), "scored", prompt_logprobs=1, max_tokens=9)
    grammar = request(prompt(17, 78), "grammar", grammar="thirds", max_tokens=25, temperature=0.9, seed=4)
    return [*plain, *others, several, scored, grammar, request(WITH_IMAGE, "image", images=IMAGES, max_tokens=20)]


def answers(engine):
    """Per sequence: its tokens with their log-probabilities, how it ended, its prompt's scores, its guesses."""
    found = {}
    for key, outputs in run(engine, requests()).items():
        tokens = [(t.token_id, t.logprobs) for o in outputs for t in o.tokens]
        last = outputs[-1]
        found[key] = (tokens, last.finish_reason, last.stop_token_id, outputs[0].prompt_logprobs)
    return found


@cache
def plain(dtype):
    return answers(any_engine(1024, model=model(dtype), dtype=dtype))


def with_oracle(dtype, accuracy, num_pages=2048, guesses=3, **choices):
    num_pages //= 2 if dtype == "bfloat16" else 1  # tiny_engine counts pages of fp32
    coming = {key: [t for t, _ in found[0]] for key, found in plain(dtype).items()}
    return any_engine(
        num_pages,
        model=model(dtype),
        dtype=dtype,
        make_drafter=lambda runner, plan: Oracle(coming, accuracy),
        speculation=Speculation("test", guesses),
        **choices,
    )


DTYPES = pytest.mark.parametrize("dtype", ["bfloat16", "float32"])


@DTYPES
@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
def test_any_guess_gives_the_same_answers(dtype, accuracy):
    engine = with_oracle(dtype, accuracy)
    assert answers(engine) == plain(dtype)
    stats = engine.stats()
    share = stats.spec_decode_num_accepted_tokens / stats.spec_decode_num_draft_tokens
    assert share == accuracy if accuracy in (0, 1) else 0.2 < share < 0.6
    assert sum(stats.spec_decode_num_accepted_tokens_per_pos) == stats.spec_decode_num_accepted_tokens


@DTYPES
@pytest.mark.parametrize(
    "choices",
    [
        {"max_num_batched_tokens": 5},
        {"max_num_seqs": 2},
        {"enable_prefix_caching": False},
        {"num_pages": 100, "max_model_len": 90},
        {"guesses": 1},
        {"guesses": 8},
    ],
    ids=str,
)
def test_whatever_the_schedule(dtype, choices):
    engine = with_oracle(dtype, 0.6, **choices)
    assert answers(engine) == plain(dtype)
    if choices.get("num_pages"):
        assert engine.scheduler.num_preemptions > 0


@DTYPES
def test_eagle_with_random_weights(dtype):
    """Its own latents, images one ahead, several sequences a pass: whatever it proposes, nothing changes."""
    engine = any_engine(2048, model=model(dtype), dtype=dtype, make_drafter=eagle, speculation=EAGLE)
    assert answers(engine) == plain(dtype)
    assert engine.stats().spec_decode_num_drafts > 20


@DTYPES
def test_ngrams(dtype):
    engine = any_engine(2048, model=model(dtype), dtype=dtype, make_drafter=lambda runner, plan: NgramDrafter())
    assert answers(engine) == plain(dtype)


def test_the_grammar_is_followed():
    """What the comparisons below rest on: a mask that has a state, and ends the answer."""
    tokens, reason, *_ = plain("float32")["grammar", 0]
    assert [t % 3 for t, _ in tokens] == [0, 1, 2] * 6 and reason == "stop"


def test_256_random_prompts():
    rng = random.Random(3)
    asked = [request(prompt(rng.randint(1, 60), seed=i), f"r{i}", max_tokens=rng.randint(1, 12)) for i in range(256)]
    want = run(any_engine(4096, model=model("bfloat16"), dtype="bfloat16"), asked)
    engine = any_engine(4096, model=model("bfloat16"), dtype="bfloat16", make_drafter=eagle, speculation=EAGLE)
    found = run(engine, asked)
    for key, outputs in want.items():
        assert [t.token_id for o in found[key] for t in o.tokens] == [t.token_id for o in outputs for t in o.tokens]


def test_a_prefix_that_guesses_ran_over():
    """Pages become findable up to the last guess that came true: the latents behind it are those of wrong tokens."""
    engine = with_oracle("float32", 0.5, max_num_seqs=1)
    first = run(engine, [request(prompt(41, seed=34), "greedy-4", max_tokens=17)])
    ids = [*prompt(41, seed=34), *(t.token_id for o in first["greedy-4", 0] for t in o.tokens), *prompt(5, 6)]
    engine.speculation = None
    again = run(engine, [request(ids, "again", logprobs=3)])
    assert again["again", 0][0].num_cached_tokens > 50
    cold = run(any_engine(model=model("float32")), [request(ids, "again", logprobs=3)])
    assert [o.tokens for o in again["again", 0]] == [o.tokens for o in cold["again", 0]]


def test_a_drafter_that_fails_costs_only_its_guesses(caplog):
    class Broken:
        def propose(self, progress):
            raise RuntimeError("no idea")

    engine = any_engine(1024, model=model("float32"), make_drafter=lambda runner, plan: Broken())
    assert answers(engine) == plain("float32")
    assert "drafting failed" in caplog.text


def test_one_long_sequence_leaves_the_guesses_of_the_others_alone():
    """Beyond the draft's limit a sequence goes on without guesses; vLLM stops guessing for the whole batch."""

    def accepted(long_prompt):
        cached = tiny_draft_config().text.cached_values
        limited = Speculation("eagle", 3, StoredWeights(0), cached, 60, adaptive=False)
        engine = any_engine(2048, model=model("float32"), make_drafter=eagle, speculation=limited)
        asked = [request(prompt(9 + i, seed=i), f"short-{i}", max_tokens=30) for i in range(4)]
        outputs = run(engine, [*asked, request(prompt(long_prompt, seed=50), "other", max_tokens=30)])
        counts = {key: (o[-1].num_drafted_tokens, o[-1].num_accepted_tokens) for key, o in outputs.items()}
        return counts.pop(("other", 0)), counts

    (beyond, _), shorts = accepted(long_prompt=80)
    (within, _), reference = accepted(long_prompt=12)
    assert shorts == reference and beyond == 0 and within > 0


def test_the_published_kind_of_draft_from_files(tmp_path, monkeypatch):
    """An FP8 draft in the model's folder, guesses read from a copy of the head in NVFP4: drafted, and the same bits."""
    target = wide_config(rope=ROPE)
    widths = {name: getattr(target.text, name) for name in DRAFT_FIELDS}
    folder = write_tiny(tmp_path / "model", config=target, dtype=torch.bfloat16)
    write_tiny(tmp_path / "draft", config=tiny_draft_config(rope=ROPE, **widths), dtype=torch.bfloat16)
    quantize(tmp_path / "draft", folder / "eagle", "fp8")
    monkeypatch.setattr("ventoux.build.LARGE_HEAD", 1)

    def outputs(**spec):
        choices = EngineConfig(speculative_config=json.dumps(spec), dtype="float32", operators="cpu", num_threads=1)
        built = build_engine(folder, choices).engine
        found = run(built, [request(prompt(9 + i, seed=i), f"r{i}", max_tokens=30, logprobs=2) for i in range(4)])
        return built, {key: [(t.token_id, t.logprobs) for o in list_ for t in o.tokens] for key, list_ in found.items()}

    engine, with_draft = outputs(adaptive=False)
    assert isinstance(engine.speculation.drafter.head, Nvfp4Weight)
    assert isinstance(engine.speculation.drafter.draft.eagle_linear.weight, Fp8Weight)
    without, plain_outputs = outputs(method="none")
    assert with_draft == plain_outputs and engine.stats().spec_decode_num_draft_tokens > 100
    assert engine.plan.weight_bytes > without.plan.weight_bytes
