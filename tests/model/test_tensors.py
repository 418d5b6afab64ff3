"""The tensor table against the published totals and against the modules that are filled from it."""

import pytest
import torch

from tests.tiny import tiny_config, tiny_draft_config
from ventoux.checkpoint.stored import piece_shape
from ventoux.config import ModelConfig, TextConfig
from ventoux.model.eagle import Draft
from ventoux.model.mistral4 import Mistral4
from ventoux.model.tensors import HF_PREFIXES, hf_name, tensor_table
from ventoux.ops.reference import REFERENCE

REAL_DRAFT = ModelConfig(text=TextConfig(num_hidden_layers=2, first_k_dense_replace=2), vision=None, is_draft=True)
# The Hub counts 528 scales per layer as parameters.
HUB_TOTAL, HUB_SCALES = 119_401_317_952, 36 * 528


def test_parameters_of_the_published_model():
    rows = tensor_table(ModelConfig())
    assert sum(row.num_parameters for row in rows) == HUB_TOTAL - HUB_SCALES
    assert sum(row.num_parameters for row in rows if row.quantizable) == 117_879_865_344
    assert sum(row.part == "vision" for row in rows) == 222
    assert sum(len(row.native) for row in rows if ".layers.7." in row.path and row.part != "vision") == 13 + 3 * 128


def test_parameters_of_the_published_draft():
    """Its linears alone: 391,643,136, the size of the repository in FP8."""
    rows = tensor_table(REAL_DRAFT)
    assert sum(row.num_parameters for row in rows if row.quantizable) == 391_643_136


@pytest.mark.parametrize(
    "config",
    [ModelConfig(), tiny_config(), tiny_config(vision=False, first_k_dense_replace=1, n_shared_experts=2)],
    ids=["published", "tiny", "tiny text, first layer dense"],
)
def test_rows_are_the_parameters_of_the_model(config):
    with torch.device("meta"):
        model = Mistral4(config, REFERENCE)
    assert {row.path: row.shape for row in tensor_table(config)} == shapes(model)


def test_rows_are_the_parameters_of_the_tied_model():
    config = tiny_config(tie_word_embeddings=True)
    assert {row.path: row.shape for row in tensor_table(config)} == shapes(Mistral4(config, REFERENCE))


@pytest.mark.parametrize("config", [REAL_DRAFT, tiny_draft_config()], ids=["published", "tiny"])
def test_rows_are_the_parameters_of_the_draft(config):
    with torch.device("meta"):
        draft = Draft(config.text, REFERENCE)
    assert {row.path: row.shape for row in tensor_table(config)} == shapes(draft)


def shapes(module):
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("config", [ModelConfig(), REAL_DRAFT], ids=["target", "draft"])
def test_names_are_unique_and_pieces_cover_their_row(config):
    rows = tensor_table(config)
    names = [piece.name for row in rows for piece in row.native]
    assert len(set(names)) == len(names)
    for row in rows:
        sizes = sum(torch.Size(piece_shape(row, piece)).numel() for piece in row.native)
        assert sizes == row.num_parameters, row.path


def test_hugging_face_names():
    """The published spelling, and the one that transformers' own modules have."""
    path = "language_model.layers.3.mlp.experts.gate_up_proj"
    assert hf_name(path, HF_PREFIXES[0]) == "language_model.model.layers.3.mlp.experts.gate_up_proj"
    assert hf_name(path, HF_PREFIXES[1]) == "model.language_model.layers.3.mlp.experts.gate_up_proj"
    assert hf_name("lm_head.weight", HF_PREFIXES[0]) == "language_model.lm_head.weight"
    for prefixes in HF_PREFIXES:
        names = [hf_name(row.path, prefixes) for row in tensor_table(ModelConfig())]
        assert len(set(names)) == len(names)
