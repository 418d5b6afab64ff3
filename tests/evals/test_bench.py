"""bench: counts what it says it counts, on a tiny checkpoint without a tokenizer and on a scripted server."""

from __future__ import annotations

import json
from contextlib import contextmanager

import httpx2
import pytest
import torch

from tests.engines import generate, request, tiny_engine
from tests.tiny import tiny_config, tiny_model, wide_config, write_tiny
from ventoux.checkpoint.compare import random_prompts
from ventoux.checkpoint.files import open_checkpoint
from ventoux.cli import main
from ventoux.config import Speculation
from ventoux.errors import ConfigError, EngineError
from ventoux.evals import bench, machine
from ventoux.evals.bench_formats import formats
from ventoux.evals.bench_serve import ServeBench, percentiles
from ventoux.model.tensors import tensor_table
from ventoux.ops.formats import Fp8Weight, quantize_fp8
from ventoux.ops.reference import REFERENCE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bench") / "model")


def test_active_bytes_of_one_token_are_its_experts_and_all_that_is_shared():
    config = tiny_config()
    rows = list(tensor_table(config))
    shared = sum(r.num_parameters for r in rows if r.part not in ("experts", "embedding", "vision"))
    experts = sum(r.num_parameters for r in rows if r.is_routed)
    assert bench.active_bytes(tiny_model(), 1) == round((shared + experts * 2 / 5) * 4)
    assert bench.active_bytes(tiny_model().bfloat16(), 1) * 2 == bench.active_bytes(tiny_model(), 1)


def test_quantized_weights_count_as_they_lie_in_memory():
    model = tiny_model()
    dense = bench.active_bytes(model, 1)
    weight = model.language_model.layers[0].self_attn.o_proj.weight
    codes, scale = quantize_fp8(weight)
    del model.language_model.layers[0].self_attn.o_proj.weight
    model.language_model.layers[0].self_attn.o_proj.weight = Fp8Weight(codes, scale.expand(len(codes)).contiguous())
    assert bench.active_bytes(model, 1) == dense - weight.nbytes + weight.numel() + 4 * len(codes)


def test_many_tokens_meet_all_experts_but_never_more():
    config = tiny_config()
    sizes = [bench.active_bytes(tiny_model(), n) for n in (1, 2, 8, 1000)]
    whole = sum(r.num_parameters for r in tensor_table(config) if r.part not in ("embedding", "vision")) * 4
    assert sizes == [*sorted(set(sizes[:3])), whole]


def test_latency_of_a_tiny_engine():
    engine = tiny_engine(max_model_len=160, max_num_batched_tokens=64)
    ticks = []
    options = {"prompt_tokens": [16, 100], "batch_sizes": [1, 4], "repeats": 2}
    measured = bench.latency(engine, **options, new_tokens=12, tick=lambda: ticks.append(1))
    assert len(ticks) == bench.num_latency_runs(**options)
    assert [row["prompt_tokens"] for row in measured["prefill"]] == [16, 100]
    assert [row["batch_size"] for row in measured["decode"]] == [1, 4]
    for row in measured["prefill"] + measured["decode"]:
        rate = row["tokens_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"] and rate["n"] == 2
    assert engine.pool.num_idle == engine.pool.num_pages and not engine.has_work


def test_prefill_counts_all_chunks(monkeypatch):
    """A prompt of 100 tokens in chunks of 40 takes three steps; timing the last one alone would flatter."""
    engine = tiny_engine(max_num_batched_tokens=40)
    clock = iter(range(10_000))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    measured = bench.latency(engine, prompt_tokens=[100], batch_sizes=[1], new_tokens=4, repeats=1)
    assert measured["prefill"][0]["tokens_per_second"]["median"] == 100 / 3


def test_decode_leaves_out_steps_that_read_prompts(monkeypatch):
    """One second per step: a full batch of 3 decodes 3 tokens a second, whatever the staggered start."""
    engine = tiny_engine(max_num_batched_tokens=150)
    clock = iter(range(10_000))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    measured = bench.latency(engine, prompt_tokens=[8], batch_sizes=[3], new_tokens=10, repeats=1)
    assert measured["decode"][0]["tokens_per_second"]["median"] == 3
    assert measured["decode"][0]["tokens_per_step"] == 3


def test_decode_counts_what_guesses_brought(monkeypatch):
    """A draft that is always right about two tokens: three a second, at one step a second."""

    class Right:
        def propose(self, progress):
            return [known[p.sequence.num_generated :][: p.wanted] for p in progress]

    ids = bench.random_prompts(tiny_engine(), 1, bench.DECODE_PROMPT, seed=0)[0]
    (known,) = generate(tiny_engine(), request(ids, max_tokens=20))
    engine = tiny_engine(make_drafter=lambda runner, plan: Right(), speculation=Speculation("test", 2, adaptive=False))
    clock = iter(range(10_000))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    assert bench.acceptance(engine) is None
    measured = bench.latency(engine, prompt_tokens=[8], batch_sizes=[1], new_tokens=19, repeats=1)
    assert measured["decode"][0]["tokens_per_second"]["median"] == 3
    found = bench.acceptance(engine)
    assert found["mean_accepted_tokens"] == 2 and found["acceptance_by_position"] == [1, 1]
    assert found["num_draft_tokens"] == 2 * found["num_drafts"] == 12


def test_share_of_bandwidth():
    """10 steps of 300 bytes a second."""
    row = {"batch_size": 2, "tokens_per_second": {"median": 20.0}, "tokens_per_step": 2, "weight_bytes_per_step": 300}
    rows = [row | {"memory_bytes_per_second": 6000.0}]
    bench.add_shares(rows)
    assert rows[0]["share_of_bandwidth"] == 0.5


def test_share_of_matrix_peak():
    """Two operations per weight that a token of a prompt meets; of the five routed experts it meets two."""
    model = tiny_model(tiny_config(vision=False))
    text = model.config.text
    others = {name: p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    del others["lm_head.weight"]
    experts = text.num_hidden_layers * text.num_experts_per_tok * 3 * text.hidden_size * text.moe_intermediate_size
    assert bench.active_operations(model) == pytest.approx(2 * (sum(others.values()) + experts))
    rows = [
        {
            "tokens_per_second": {"median": 50.0},
            "operations_per_token": 6.0,
            "matrix_operations_per_second": 1000.0,
        }
    ]
    bench.add_peak_shares(rows)
    assert rows[0]["share_of_matrix_peak"] == pytest.approx(0.3)


def test_prompts_differ_between_runs_and_hold_no_control_tokens():
    """Equal prompts would be found in the prefix cache, and measured as infinitely fast."""
    prompts = [bench.random_prompt(50, 1317, seed) for seed in range(20)]
    assert len({tuple(p[:4]) for p in prompts}) == 20
    assert min(map(min, prompts)) >= 1000 and max(map(max, prompts)) < 1317


def test_what_does_not_fit_is_refused_before_it_runs():
    engine = tiny_engine(max_model_len=160, max_num_seqs=4)
    with pytest.raises(ConfigError, match="--max-model-len"):
        bench.latency(engine, prompt_tokens=[200], batch_sizes=[1], new_tokens=4, repeats=1)
    with pytest.raises(ConfigError, match="--max-num-seqs 5"):
        bench.latency(engine, prompt_tokens=[20], batch_sizes=[5], new_tokens=4, repeats=1)


def test_throughput_counts_requests_and_tokens(monkeypatch):
    engine = tiny_engine(max_num_batched_tokens=512)
    clock = iter(range(10_000))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    result = bench.throughput(engine, num_requests=6, input_tokens=10, output_tokens=5, repeats=1)
    # One step reads all prompts and brings the first tokens, four more bring the rest.
    assert result["requests_per_second"]["median"] == 6 / 5
    assert result["output_tokens_per_second"]["median"] == 6 * 5 / 5
    assert result["total_tokens_per_second"]["median"] == 6 * 15 / 5


def test_limits_are_those_beside_a_row(monkeypatch):
    """The machine slows down between the two rows."""
    engine = tiny_engine()
    speeds = (machine.Speeds(*rates, "by hand") for rates in [(8.0, 80.0)] * 2 + [(4.0, 40.0), (2.0, 20.0)])
    measured = bench.latency(
        engine, prompt_tokens=[8], batch_sizes=[1], new_tokens=4, repeats=2, tick=lambda: next(speeds, None)
    )
    assert measured["prefill"][0]["matrix_operations_per_second"] == 80.0
    assert measured["decode"][0]["memory_bytes_per_second"] == 2.0
    assert measured["decode"][0]["limits_method"] == "by hand"


def test_speeds_are_measured_in_a_process_beside():
    before = machine.peak_memory()
    with machine.speeds_beside() as measure:
        first, second = measure(), measure()
    assert min(first.bytes_per_second, second.bytes_per_second) > 1e8
    assert min(first.operations_per_second, second.operations_per_second) > 1e8
    assert "sum over" in first.method and "product of" in first.method
    assert machine.peak_memory() - before < 2**28, "its gigabyte counts as ours"


def test_a_process_beside_that_ends_is_said(monkeypatch):
    monkeypatch.setattr(machine.sys, "executable", "/bin/true")
    with pytest.raises(EngineError, match="ended"), machine.speeds_beside() as measure:
        measure()


@pytest.fixture
def fast_memory(monkeypatch):
    @contextmanager
    def speeds_beside():
        yield lambda: machine.Speeds(1e9, 1e9, "sums by hand")

    monkeypatch.setattr(machine, "speeds_beside", speeds_beside)


FAST = ("--num-threads", "1", "--max-model-len", "256")


def test_latency_command_writes_a_result(checkpoint, tmp_path, fast_memory, capsys):
    """The checkpoint has no tekken.json: measuring needs none."""
    path = tmp_path / "results" / "tiny.json"
    words = ("--prompt-tokens", "32", "--batch-size", "1,2", "--new-tokens", "6", "--repeats", "1", "--note", "a test")
    assert main(["bench", "latency", str(checkpoint), *words, "--output", str(path), *FAST]) == 0
    result = json.loads(path.read_text())
    assert result["benchmark"] == "latency" and result["note"] == "a test" and result["model"] == "model"
    assert result["config"]["plan"]["num_threads"] == 1 and result["config"]["experts"] == 5
    assert result["machine"]["cores"] >= 1 and result["versions"]["torch"]
    assert result["results"]["memory"]["peak_bytes"] >= result["results"]["memory"]["loaded_bytes"] > 2**20
    assert result["results"]["decode"][1]["share_of_bandwidth"] > 0
    assert result["results"]["prefill"][0]["share_of_matrix_peak"] > 0
    assert str(tmp_path) not in json.dumps(result), "a result file names folders of this machine"
    shown = capsys.readouterr().out
    assert "prefill of 32" in shown and "decode, batch 2" in shown and "1.0 GB/s" in shown and "sums by hand" in shown


def test_operators_command_shows_each_operator(checkpoint, tmp_path, fast_memory, capsys):
    path = tmp_path / "operators.json"
    words = ("--prompt-tokens", "16", "--batch-size", "2", "--context", "40", "--repeats", "1", "--output", str(path))
    assert main(["bench", "operators", str(checkpoint), *words, *FAST]) == 0
    cases = json.loads(path.read_text())["results"]["operators"]
    assert [(row["case"], row["size"]) for row in cases] == [("prompt", 16), ("decode", 2), ("behind", 40)]
    shown = capsys.readouterr().out
    assert "decode 2" in shown and "q_b_proj" in shown and "latent_attention" in shown


def test_throughput_command(checkpoint, capsys):
    words = ("--num-prompts", "3", "--input-len", "8", "--output-len", "3")
    assert main(["bench", "throughput", str(checkpoint), *words, *FAST]) == 0
    assert "output tokens" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--batch-size", "1,x"), ("--repeats", "0"), ("--prompt-tokens", "")])
def test_numbers_that_are_none(checkpoint, words):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "latency", str(checkpoint), *words])
    assert exit_.value.code == 2


def test_memory_bandwidth_is_measured(monkeypatch):
    """Bytes per second of the fastest of the sums."""
    clock = iter([0, 4, 10, 12, 20, 21])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    hardware = machine.Hardware(num_cores=1, memory_bytes=2**20, available_bytes=2**20)
    assert machine.memory_bandwidth(hardware, repeats=3)[0] == 2**20 // 8


@pytest.mark.parametrize(("flags", "name"), [({"avx2"}, "float32"), ({"avx2", "avx512_bf16"}, "bfloat16")])
def test_matrices_are_multiplied_in_what_the_processor_has(monkeypatch, flags, name):
    """Catches bf16 on a processor without it, where one product takes 40 seconds."""
    monkeypatch.setattr(machine, "MATRIX_SIZE", 16)
    hardware = machine.Hardware(num_cores=1, memory_bytes=2**20, available_bytes=2**20, cpu_flags=frozenset(flags))
    assert machine.matrix_peak(hardware)[1].startswith(f"torch {name} product of 16 x 16")


# --------------------------------------------------------------------------------------------------------------- serve


def stream(*chunks: dict) -> httpx2.Response:
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content="".join(lines).encode())


def serve_bench(answer, **options) -> tuple[ServeBench, list[dict]]:
    bodies: list[dict] = []

    def respond(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "served"}]})
        bodies.append(json.loads(request.content))
        return answer

    made = ServeBench("http://server/v1/", transport=httpx2.MockTransport(respond), **options)
    return made, bodies


def test_serve_counts_requests_and_tokens():
    text = {"choices": [{"text": "a"}]}
    answer = stream(text, {"choices": [{"text": ""}]}, text, {"choices": [], "usage": {"completion_tokens": 7}})
    served, bodies = serve_bench(answer, input_tokens=5, output_tokens=7)
    ticks = []
    levels = served.run([1, 3], 2, rounds=3, tick=lambda: ticks.append(1))
    assert [(row["concurrency"], row["num_requests"]) for row in levels] == [(1, 6), (3, 18)]
    assert len(ticks) == 24 and len(bodies) == 25, "one request warms up and is not counted"
    row = levels[1]
    for what in ("median", "min", "max"):
        assert row["output_tokens_per_second"][what] == pytest.approx(7 * row["requests_per_second"][what])
    assert row["output_tokens_per_second"]["n"] == 3
    assert set(row["time_to_first_token_ms"]) == {"p50", "p90", "p99"}
    assert {body["model"] for body in bodies} == {"served"}
    assert all(len(body["prompt"]) == 5 and body["max_tokens"] == 7 and body["ignore_eos"] for body in bodies)
    assert len({tuple(body["prompt"]) for body in bodies}) == 25


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx2.Response(400, json={"error": {"message": "no ignore_eos"}}), "400: .*no ignore_eos"),
        (httpx2.Response(200, content=b"<html>"), "text/event-stream"),
        (stream({"error": {"message": "gone"}}), "gone"),
        (stream({"choices": []}), "without any text"),
        (stream([1]), "not how an OpenAI-compatible server answers"),
    ],
)
def test_serve_errors(answer, message):
    served, _ = serve_bench(answer)
    with pytest.raises(EngineError, match=message):
        served.run([1], 1)


def test_serve_without_a_server(capsys):
    assert main(["bench", "serve", "--url", "http://127.0.0.1:9"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_percentiles_by_nearest_rank():
    assert percentiles([i / 1000 for i in range(100)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert percentiles([]) == {"p50": None, "p90": None, "p99": None}


def test_formats_say_how_far_the_logits_moved(tmp_path):
    """Coarser codes take fewer bytes and are further away; a head alone moves less than head and attention."""
    folder = write_tiny(tmp_path, config=wide_config(), dtype=torch.bfloat16)
    chosen = [("stored", "fp8"), ("stored", "nvfp4"), ("nvfp4", "nvfp4")]
    checkpoint = open_checkpoint(folder)
    prompts = random_prompts(checkpoint.config.text.vocab_size)
    near, middle, far = formats(checkpoint, REFERENCE, chosen, prompts)
    assert 0 < near["mean_kl"] < middle["mean_kl"] < far["mean_kl"] < 1
    assert near["weight_bytes"] > middle["weight_bytes"] > far["weight_bytes"]
