"""Same request, same answer: chunks, prefix hits, preemption, company and recomputation change no token (fp32)."""

import pytest

from tests.engines import generate, image, image_tokens, prompt, request, run, tiny_engine, tokens

PROMPT = prompt(61, seed=3)
WITH_IMAGES = [*prompt(9, 1), *image_tokens(2, 3), *prompt(6, 2), *image_tokens(3, 2), *prompt(11, 4)]
IMAGES = [image(2, 3, seed=1), image(3, 2, seed=2)]


def cold(ids, images=None, **params):
    return generate(tiny_engine(), request(ids, images=images, **params))[0]


@pytest.mark.parametrize("budget", [1, 3, 7, 16, 60])
def test_any_chunk_size_equals_one_shot(budget):
    engine = tiny_engine(max_num_batched_tokens=budget)
    assert generate(engine, request(PROMPT)) == [cold(PROMPT)]


@pytest.mark.parametrize("budget", [1, 5, 8])
def test_chunks_that_cut_through_images_equal_one_shot(budget):
    engine = tiny_engine(max_num_batched_tokens=budget)
    assert generate(engine, request(WITH_IMAGES, images=IMAGES)) == [cold(WITH_IMAGES, IMAGES)]


def test_images_change_the_answer():
    """Guards the image tests: were rows not put in, all of them would pass."""
    other = [IMAGES[0], image(3, 2, seed=9)]
    assert cold(WITH_IMAGES, IMAGES) != cold(WITH_IMAGES, other)


def test_cached_prefix_equals_cold():
    engine = tiny_engine()
    generate(engine, request(PROMPT[:50]))
    outputs = run(engine, [request(PROMPT, "second")])["second", 0]
    assert outputs[0].num_cached_tokens == 48
    assert tokens(outputs) == cold(PROMPT)


def test_cached_prefix_with_images_equals_cold_and_tells_images_apart():
    engine = tiny_engine()
    generate(engine, request(WITH_IMAGES, images=IMAGES))
    same = run(engine, [request(WITH_IMAGES, "same", IMAGES)])["same", 0]
    assert same[0].num_cached_tokens >= 28
    assert tokens(same) == cold(WITH_IMAGES, IMAGES)
    other = [image(2, 3, seed=8), IMAGES[1]]
    swapped = run(engine, [request(WITH_IMAGES, "other", other)])["other", 0]
    assert swapped[0].num_cached_tokens == 8  # the two pages before the first image
    assert tokens(swapped) == cold(WITH_IMAGES, other)


def test_a_salt_keeps_prefixes_apart():
    engine = tiny_engine()
    generate(engine, request(PROMPT))
    salted = request(PROMPT, "salted")
    salted.cache_salt = "tenant"
    assert run(engine, [salted])["salted", 0][0].num_cached_tokens == 0


def test_batch_equals_singles():
    requests = [request(prompt(5 + 7 * i, seed=i), f"r{i}") for i in range(9)]
    alone = [cold(one.prompt_token_ids) for one in requests]
    assert generate(tiny_engine(max_num_batched_tokens=32), *requests) == alone


def test_preempted_equals_uninterrupted():
    requests = [request(prompt(30, seed=i), f"r{i}", max_tokens=40) for i in range(4)]
    alone = [cold(one.prompt_token_ids, max_tokens=40) for one in requests]
    engine = tiny_engine(num_pages=40)  # room for 160 tokens, wanted are 280
    assert generate(engine, *requests) == alone
    assert engine.stats().num_preemptions > 0


def test_preempted_sampling_draws_the_same():
    def requests():
        return [
            request(prompt(30, seed=i), f"r{i}", max_tokens=40, temperature=1.0, seed=i, top_p=0.9) for i in range(4)
        ]

    roomy, tight = tiny_engine(), tiny_engine(num_pages=40)
    assert generate(roomy, *requests()) == generate(tight, *requests())
    assert roomy.stats().num_preemptions == 0 < tight.stats().num_preemptions


def test_rescoring_equals_generating():
    """Log-probabilities of a text as a prompt are those that were reported while it was written."""
    engine = tiny_engine(max_num_batched_tokens=13)
    outputs = run(engine, [request(PROMPT, logprobs=0, max_tokens=12)])["r", 0]
    written = [token.logprobs[0] for output in outputs for token in output.tokens]
    ids = PROMPT + [score.token_id for score in written]
    scored = run(engine, [request(ids, "again", prompt_logprobs=0, max_tokens=1)])["again", 0]
    rows = scored[0].prompt_logprobs
    assert rows[0] == [] and len(rows) == len(ids)
    for one, (row,) in zip(written, rows[len(PROMPT) :], strict=True):
        assert (one.token_id, one.rank) == (row.token_id, row.rank)
        assert one.logprob == pytest.approx(row.logprob, abs=1e-4)


def test_several_answers_share_the_prompt_and_differ_by_index():
    engine = tiny_engine()
    outputs = run(engine, [request(PROMPT, n=3, temperature=1.5, seed=5)])
    answers = [tokens(outputs["r", i]) for i in range(3)]
    assert len({tuple(a) for a in answers}) == 3
    assert outputs["r", 1][0].num_cached_tokens == outputs["r", 2][0].num_cached_tokens == 60
    again = run(tiny_engine(), [request(PROMPT, n=3, temperature=1.5, seed=5)])
    assert answers == [tokens(again["r", i]) for i in range(3)]
