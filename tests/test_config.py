"""Facts, choices and machine -> the plan: every number of it, and what is refused with which words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tiny import tiny_config
from ventoux.config import EngineConfig, ModelConfig, RopeConfig, StoredWeights, TextConfig
from ventoux.errors import ConfigError
from ventoux.hardware import Hardware, container_memory
from ventoux.plan import resolve

MACHINE = Hardware(num_cores=3, memory_bytes=2**34, available_bytes=2**33)
WITH_BF16 = replace(MACHINE, cpu_flags=frozenset({"amx_bf16"}))
WITH_GPU = replace(MACHINE, cuda_name="some GPU", cuda_available_bytes=2**35)
BILLIONS = 119_401_317_952


def plan(num_parameters=10**6, hardware=MACHINE, model=None, **choices):
    return resolve(model or tiny_config(), StoredWeights(num_parameters), EngineConfig(**choices), hardware)


def test_softmax_scale_has_no_mscale_unless_the_checkpoint_says_so():
    assert TextConfig().softmax_scale == 0.08838834764831845
    scaled = TextConfig(rope=RopeConfig(apply_scale=True))
    assert scaled.softmax_scale == pytest.approx(0.19496949)


@pytest.mark.parametrize(
    ("num_parameters", "hardware", "dtype"),
    [
        (10**6, MACHINE, "float32"),  # emulated bf16 is slower than fp32
        (10**6, WITH_BF16, "bfloat16"),
        (10**9, MACHINE, "bfloat16"),  # twice the bytes would be too many
        (10**6, WITH_GPU, "bfloat16"),
    ],
)
def test_the_type_follows_size_and_machine(num_parameters, hardware, dtype):
    assert plan(num_parameters, hardware).dtype == dtype
    assert plan(num_parameters, hardware, dtype="float32").dtype == "float32"


def test_a_gpu_is_taken_when_there_is_one_and_its_memory_counts():
    assert plan(hardware=WITH_GPU).device == "cuda"
    assert plan(hardware=WITH_GPU, device="cpu").device == "cpu"
    needs = {"num_parameters": 6 * 10**9, "dtype": "bfloat16"}
    assert plan(hardware=WITH_GPU, **needs).device == "cuda"
    with pytest.raises(ConfigError, match="Not enough memory"):
        plan(hardware=WITH_GPU, device="cpu", **needs)


def test_pages_hold_what_sequences_can_use_and_no_more():
    p = plan(max_model_len=100, max_num_seqs=2, page_size=16)
    assert p.num_pages == 2 * 7
    page_bytes = p.cache_bytes // p.num_pages
    assert page_bytes == 16 * tiny_config().text.latent_dim * 2 * 4
    assert plan(max_model_len=100, kv_cache_memory=9 * page_bytes, page_size=16).num_pages == 9


def test_the_longest_sequence_is_what_fits():
    page_bytes = 16 * tiny_config().text.latent_dim * 2 * 4
    assert plan(kv_cache_memory=9 * page_bytes).max_model_len == 9 * 16


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"max_num_seqs": 0}, "--max-num-seqs"),
        ({"max_num_batched_tokens": -1}, "--max-num-batched-tokens"),
        ({"page_size": 0}, "--page-size"),
        ({"memory_utilization": 0.0}, "--memory-utilization"),
        ({"memory_utilization": 1.5}, "--memory-utilization"),
        ({"max_model_len": 2**30}, "positions"),
        ({"device": "cuda"}, "no CUDA device"),
        ({"tensor_parallel_size": 0}, "--tensor-parallel-size"),
        ({"max_model_len": 0}, "--max-model-len"),
        ({"max_model_len": 1}, "--max-model-len"),  # a prompt, and no room for an answer
        ({"num_threads": -1}, "--num-threads"),
        ({"image_cache_size": -1}, "--image-cache-size"),
        ({"dtype": "float64"}, "--dtype"),
        ({"kv_cache_memory": 2**50}, "--kv-cache-memory"),
        ({"kv_cache_memory": 2**20, "num_parameters": BILLIONS, "max_model_len": 64}, "--kv-cache-memory"),
        ({"kv_cache_memory": 10, "max_model_len": 64}, "Not enough memory"),
        ({"max_num_batched_tokens": 10**9}, "and a step [0-9]{4,}"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(choices, words):
    with pytest.raises(ConfigError, match=words):
        plan(**choices)


def test_the_whole_model_on_a_small_machine_is_told_what_it_takes():
    with pytest.raises(ConfigError, match=r"the weights take 222\.4 GiB"):
        plan(BILLIONS, model=ModelConfig())


def test_quantized_weights_keep_their_bytes_and_the_rest_takes_the_compute_type():
    """Planned as if dense, a 4-bit model would be refused on a machine with room for three of it."""
    stored = StoredWeights(1000, 10**9, 600_000_000, "experts nvfp4")
    got = resolve(tiny_config(), stored, EngineConfig(), MACHINE)
    assert got.dtype == "bfloat16", "a billion parameters are no small model"
    assert got.weight_bytes == 2 * 1000 + 600_000_000
    assert got.weight_formats == "experts nvfp4, the rest bfloat16"
    assert plan().weight_formats == "float32"


def test_one_cpu_is_one_device_and_two_gpus_are_not_built_yet():
    assert plan(tensor_parallel_size=2).device == "cpu"
    with pytest.raises(ConfigError, match="one GPU"):
        plan(hardware=WITH_GPU, tensor_parallel_size=2)


def test_page_cache_of_a_container_counts_as_free(tmp_path):
    """Else a model that was read once would be too large for the container at the second start."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 200\ninactive_file 600\nactive_file 100\n")
    assert container_memory(tmp_path) == (1000, 700)
    (tmp_path / "memory.max").write_text("max\n")
    assert container_memory(tmp_path)[0] > 2**60
