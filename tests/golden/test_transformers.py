"""Our logits against transformers, from the same files: a wrong rope layout, split order, norm, expert order, vision
permutation or position scale shows here, and nowhere else as surely.

transformers 5.23 multiplies the softmax scale by YaRN's mscale squared, which the published model does not have; that
one number is set right on each of its layers. Its projector norm takes the text eps, the native stack 1e-5.
"""

import dataclasses

import pytest
import torch

from tests.paging import PagedCache
from tests.tiny import tiny_config, tiny_model, write_tiny
from ventoux.checkpoint.convert import convert
from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.load import load_model
from ventoux.config import RopeConfig, VisionConfig
from ventoux.model.decoder import ForwardInputs
from ventoux.ops.reference import REFERENCE

TOLERANCE = 1e-4
TEXT_IDS = torch.tensor([1, 3, 1078, 1003, 1290, 1078, 1021, 1130, 4, 1316, 1000])
# Two images, 2 x 3 and 1 x 2 merged patches, each row closed by [IMG_BREAK], each image by [IMG_END].
IMAGE_IDS = torch.tensor([1, 3, 10, 10, 10, 12, 10, 10, 10, 13, 1290, 10, 10, 13, 1078, 4, 1021])
IMAGE_SIZES = [(56, 84), (28, 56)]
STARTS = {"from 0": 0, "beyond 8192": 8188, "beyond 262000": 262_141}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same weights in both layouts; the native one is written by `convert`, so vision rows went through it."""
    root = tmp_path_factory.mktemp("checkpoints")
    write_tiny(root / "hf", "hf", seed=3)
    convert(root / "hf", root / "native")
    return root


@pytest.fixture(scope="module")
def oracle(folders):
    return load_oracle(folders / "hf")


def load_oracle(folder):
    from transformers import Mistral3ForConditionalGeneration

    model = Mistral3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for layer in model.model.language_model.layers:
        layer.self_attn.scaling = layer.self_attn.qk_head_dim**-0.5
    model.model.multi_modal_projector.norm.variance_epsilon = VisionConfig.rms_norm_eps
    return model.eval()


def load_ours(folder):
    return load_model(open_checkpoint(folder), REFERENCE, dtype=torch.float32)


def images():
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(3, *size, generator=generator) for size in IMAGE_SIZES]


def oracle_logits(oracle, ids, start, with_images):
    kwargs = {}
    if with_images:
        height, width = (max(sides) for sides in zip(*IMAGE_SIZES, strict=True))
        padded = torch.zeros(len(IMAGE_SIZES), 3, height, width)
        for row, image in zip(padded, images(), strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        kwargs = {"pixel_values": padded, "image_sizes": torch.tensor(IMAGE_SIZES)}
    positions = torch.arange(start, start + len(ids))
    with torch.no_grad():
        return oracle(input_ids=ids[None], position_ids=positions[None], use_cache=False, **kwargs).logits[0]


def our_inputs(model, ids, start, with_images):
    image_idx, rows = None, None
    if with_images:
        image_idx = (ids == model.config.image_token_id).nonzero().squeeze(1)
        rows = torch.cat(model.encode_images(images()))
    return ForwardInputs(
        ids, torch.arange(start, start + len(ids)), (len(ids),), image_idx_M=image_idx, image_rows_MD=rows
    )


def our_logits(model, inputs, absorbed):
    cache = None
    if absorbed:
        paged = PagedCache(model.config.text, [len(inputs.token_ids_T)], page_size=3)
        inputs, cache = dataclasses.replace(inputs, layout=paged.layout([len(inputs.token_ids_T)])), paged.tensors
    with torch.no_grad():
        return model.logits(model(inputs, cache))


@pytest.mark.parametrize("absorbed", [False, True], ids=["expanded", "absorbed"])
@pytest.mark.parametrize("with_images", [False, True], ids=["text", "images"])
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("layout", ["hf", "native"])
def test_logits(folders, oracle, layout, start, with_images, absorbed):
    ours = load_ours(folders / layout)
    ids = IMAGE_IDS if with_images else TEXT_IDS
    wanted = oracle_logits(oracle, ids, start, with_images)
    got = our_logits(ours, our_inputs(ours, ids, start, with_images), absorbed)
    assert wanted.std() > 0.3
    assert (got - wanted).abs().max() < TOLERANCE


def test_oracle_really_scales_by_mscale(folders, oracle):
    """If a later transformers drops its mscale, the neutralising above must go: this says so."""
    from transformers import Mistral3ForConditionalGeneration

    untouched = Mistral3ForConditionalGeneration.from_pretrained(folders / "hf", dtype=torch.float32)
    scaling = untouched.model.language_model.layers[0].self_attn.scaling
    assert scaling == pytest.approx(20**-0.5 * 2.2058, rel=1e-4)
    # And `apply_scale` is that very scale.
    config = tiny_config(rope=RopeConfig(apply_scale=True))
    assert config.text.softmax_scale == pytest.approx(scaling, rel=1e-12)


def test_our_reader_takes_what_transformers_saves(folders, oracle, tmp_path):
    """transformers 5 writes other keys (rope_parameters in the tower) and its own tensor prefixes."""
    oracle.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == open_checkpoint(folders / "hf").config
    model = load_model(checkpoint, REFERENCE, dtype=torch.float32)
    for (name, ours), wanted in zip(model.named_parameters(), tiny_model(seed=3).parameters(), strict=True):
        assert torch.equal(ours, wanted), name


def test_text_only_and_other_rope_settings(tmp_path):
    """Every rope setting away from its default, dense first layer, two shared experts, routed scale: read and used."""
    from transformers import Mistral4ForCausalLM

    rope = RopeConfig(
        rope_theta=500.0, factor=7.0, original_max_position_embeddings=64, beta_fast=12.0, beta_slow=2.0,
        llama_4_scaling_beta=0.3, llama_4_original_max_position_embeddings=64,
    )  # fmt: skip
    config = tiny_config(
        vision=False, rope=rope, num_hidden_layers=3, first_k_dense_replace=1, n_shared_experts=2,
        routed_scaling_factor=1.7, num_experts_per_tok=3, n_routed_experts=7,
    )  # fmt: skip
    folder = write_tiny(tmp_path / "hf", "hf", config, seed=5)
    oracle = Mistral4ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for layer in oracle.model.layers:
        layer.self_attn.scaling = layer.self_attn.qk_head_dim**-0.5
    ours = load_ours(folder)
    assert ours.config == config
    for start in (0, 300):
        wanted = oracle_logits(oracle, TEXT_IDS, start, False)
        got = our_logits(ours, our_inputs(ours, TEXT_IDS, start, False), False)
        assert (got - wanted).abs().max() < TOLERANCE
