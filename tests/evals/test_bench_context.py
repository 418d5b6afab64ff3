"""bench latency --context: decoding behind a long context costs what it costs, and nobody reads the prompt."""

import pytest

from tests.engines import tiny_engine
from ventoux.errors import ConfigError
from ventoux.evals.bench import add_shares
from ventoux.evals.bench_context import long_context


def test_the_context_is_found_not_computed():
    """Catches prompts that are read after all: 137 tokens are 34 pages of 4 and one token that is left to compute."""
    engine = tiny_engine(max_num_batched_tokens=8)
    (row,) = long_context(engine, contexts=[137], new_tokens=6, repeats=2)
    stats = engine.stats()
    assert stats.prefix_cache_hits == 2 * 136 and stats.prompt_tokens == 2
    assert row["context_tokens"] == 137 and row["tokens_per_step"] == 1
    latent = engine.config.text.latent_dim * engine.config.text.num_hidden_layers * 4
    assert row["latent_bytes_per_step"] == 137 * latent
    row["memory_bytes_per_second"] = 1e9
    add_shares([row])
    rate = row["tokens_per_second"]["median"]
    expected = rate * (row["weight_bytes_per_step"] + 137 * latent) / 1e9
    assert row["share_of_bandwidth"] == pytest.approx(expected)
    assert engine.pool.num_idle == engine.pool.num_pages


def test_what_has_no_room_is_refused():
    with pytest.raises(ConfigError, match="max-model-len"):
        long_context(tiny_engine(), contexts=[157], new_tokens=4, repeats=1)
    with pytest.raises(ConfigError, match="prefix-caching"):
        long_context(tiny_engine(enable_prefix_caching=False), contexts=[100], new_tokens=4, repeats=1)
