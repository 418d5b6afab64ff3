"""Loading: right values in the right type, no gradients, and no more memory than the weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_config, tiny_draft, tiny_draft_config, tiny_model, write_tiny
from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.load import load_draft, load_model
from ventoux.errors import CheckpointError
from ventoux.ops.reference import REFERENCE


@pytest.mark.parametrize("layout", ["native", "hf"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_values_and_types(tmp_path, layout, stored, dtype):
    """One rounding to the stored type and one to the compute type, in that order, and nothing else."""
    checkpoint = open_checkpoint(write_tiny(tmp_path, layout, dtype=stored))
    model = load_model(checkpoint, REFERENCE, dtype=dtype)
    wanted = dict(tiny_model().named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, wanted.pop(name).to(stored).to(dtype)), name
        assert not parameter.requires_grad
    assert not wanted
    assert not model.training


@pytest.mark.parametrize("layout", ["native", "hf"])
def test_tied_embeddings_are_one_tensor(tmp_path, layout):
    config = tiny_config(vision=False, tie_word_embeddings=True)
    checkpoint = open_checkpoint(write_tiny(tmp_path, layout, config))
    model = load_model(checkpoint, REFERENCE, dtype=torch.float32)
    assert model.lm_head.weight.data_ptr() == model.language_model.embed_tokens.weight.data_ptr()
    assert torch.equal(model.lm_head.weight, tiny_model(config).lm_head.weight)


def test_draft(tmp_path):
    checkpoint = open_checkpoint(write_tiny(tmp_path, config=tiny_draft_config(), seed=4))
    draft = load_draft(checkpoint, REFERENCE, dtype=torch.float32)
    wanted = dict(tiny_draft(seed=4).named_parameters())
    assert {name for name, _ in draft.named_parameters()} == wanted.keys()
    for name, parameter in draft.named_parameters():
        assert torch.equal(parameter, wanted[name]), name
    with pytest.raises(CheckpointError, match="EAGLE draft"):
        load_model(checkpoint, REFERENCE, dtype=torch.float32)


def test_model_is_no_draft(tmp_path):
    with pytest.raises(CheckpointError, match="not an EAGLE draft"):
        load_draft(open_checkpoint(write_tiny(tmp_path)), REFERENCE, dtype=torch.float32)


def test_progress_counts_every_stored_byte(tmp_path):
    checkpoint = open_checkpoint(write_tiny(tmp_path, dtype=torch.bfloat16))
    seen = []
    load_model(checkpoint, REFERENCE, dtype=torch.float32, progress=lambda done, total: seen.append((done, total)))
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {checkpoint.stored_bytes} == {done[-1]}


# Loads the checkpoint argv[1] in type argv[2]; prints the bytes of its weights and by how much the peak rose above
# what the process held before. Not getrusage: its peak survives exec, so a large parent would count.
MEASURE = """
import re, sys
import torch
from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.load import load_model
from ventoux.ops.reference import REFERENCE
def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
checkpoint = open_checkpoint(sys.argv[1])
before = status("VmRSS")
model = load_model(checkpoint, REFERENCE, dtype=getattr(torch, sys.argv[2]))
print(sum(p.nbytes for p in model.parameters()), status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("layout", "dtype"), [("hf", "float32"), pytest.param("native", "bfloat16", marks=pytest.mark.slow)]
)
def test_peak_memory_is_the_weights(tmp_path, layout, dtype):
    """A loader that reads a whole shard, or casts a whole tensor, holds its weights twice for a moment."""
    config = tiny_config(
        vision=False, hidden_size=512, moe_intermediate_size=1024, n_routed_experts=40, num_hidden_layers=1
    )
    write_zeros(tmp_path, layout, config)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    weights, rise = map(int, done.stdout.split())
    assert weights > 120_000_000
    assert rise < 1.15 * weights


def write_zeros(folder, layout, config):
    from ventoux.checkpoint.write import write_checkpoint
    from ventoux.model.tensors import tensor_table

    rows = ((row, torch.zeros(row.shape, dtype=torch.bfloat16)) for row in tensor_table(config))
    write_checkpoint(folder, config, layout, rows)
