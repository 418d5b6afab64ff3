"""bench operators: every operator of a step is clocked, counted by hand's arithmetic, and left as it was."""

import pytest

from tests.engines import Nobody, tiny_engine
from tests.tiny import tiny_model
from ventoux.errors import ConfigError
from ventoux.evals.bench_operators import add_shares, operators
from ventoux.ops.cpu import instruction_sets, native_operators
from ventoux.ops.reference import REFERENCE


@pytest.mark.parametrize("provider", ["reference", *instruction_sets()[:1]])
def test_a_step_is_the_sum_of_what_is_clocked(provider):
    """Catches operators that nobody watches, above all where one call would run all layers."""
    ops = REFERENCE if provider == "reference" else native_operators(1, provider)
    engine = tiny_engine(400, model=tiny_model(ops=ops), max_model_len=200)
    before = [module.ops for module in engine.runner.model.modules() if hasattr(module, "ops")]
    rows = operators(engine, prompt_tokens=[20], batch_sizes=[2], contexts=[100], repeats=1)
    assert before == [module.ops for module in engine.runner.model.modules() if hasattr(module, "ops")]
    assert [(row["case"], row["size"]) for row in rows] == [("prompt", 20), ("decode", 2), ("behind", 100)]
    text = engine.config.text
    L, D, H, C = text.num_hidden_layers, text.hidden_size, text.num_attention_heads, text.kv_lora_rank
    for row, tokens, keys in zip(rows, (20, 2, 1), (sum(range(21)), None, None), strict=True):
        found = row["operators"]
        assert found["q_a_proj"]["calls"] == found["moe"]["calls"] == found["latent_attention"]["calls"] == L
        assert found["head"]["calls"] == 1
        assert found["q_a_proj"]["operations"] == L * 2 * tokens * D * text.q_lora_rank
        experts = text.num_experts_per_tok + text.n_shared_experts
        assert found["moe"]["operations"] == L * tokens * experts * 6 * D * text.moe_intermediate_size
        expand = 2 * tokens * H * (text.qk_nope_head_dim + text.v_head_dim) * C
        if keys is not None:
            assert found["latent_attention"]["operations"] == L * (expand + 2 * keys * H * (text.latent_dim + C))
        clocked, step = sum(work["seconds"] for work in found.values()), row["clocked_step_seconds"]["mean"]
        assert 0 < clocked < step and row["clocked_step_seconds"]["n"] == (1 if row["case"] == "prompt" else 11)
    kv_b = H * (text.qk_nope_head_dim + text.v_head_dim) * C
    # The token behind the context came with the prompt; the eleven after it see 101 to 111.
    assert rows[2]["operators"]["latent_attention"]["bytes"] == L * 4 * (kv_b + 106 * text.latent_dim)
    for row in rows:
        row |= {"memory_bytes_per_second": 1e9, "matrix_operations_per_second": 2e9}
    add_shares(rows)
    head = rows[0]["operators"]["head"]
    assert head["share_of_bandwidth"] == pytest.approx(head["bytes"] / head["seconds"] / 1e9)
    assert head["share_of_matrix_peak"] == pytest.approx(head["operations"] / head["seconds"] / 2e9)
    assert "share_of_bandwidth" not in rows[0]["operators"]["input_layernorm"]


def test_no_step_that_decodes_all_is_said_and_leaves_the_engine_whole():
    """The first of two prompts has its few tokens before the second is read."""
    engine = tiny_engine(400, make_drafter=lambda runner, plan: Nobody(), max_num_batched_tokens=8, max_model_len=200)
    own = engine.speculation
    with pytest.raises(ConfigError, match="no step decoded all 2"):
        operators(engine, prompt_tokens=[8], batch_sizes=[2], contexts=[], repeats=1)
    assert own is not None and engine.speculation is own


def test_only_chosen_experts_are_counted():
    """One token meets K of the E experts' weights; a long prompt meets all."""
    engine = tiny_engine(400, max_model_len=200)
    one, many = operators(engine, prompt_tokens=[1, 100], batch_sizes=[1], contexts=[], repeats=1)[:2]
    text = engine.config.text
    expert, L = 3 * text.hidden_size * text.moe_intermediate_size * 4, text.num_hidden_layers
    assert one["operators"]["moe"]["bytes"] == L * expert * (text.num_experts_per_tok + text.n_shared_experts)
    assert many["operators"]["moe"]["bytes"] == L * expert * (text.n_routed_experts + text.n_shared_experts)


def test_what_has_no_room_is_refused():
    with pytest.raises(ConfigError, match="max-model-len"):
        operators(tiny_engine(), prompt_tokens=[161], batch_sizes=[1], contexts=[], repeats=1)
