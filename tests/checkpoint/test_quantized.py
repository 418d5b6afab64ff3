"""Reading FP8 and NVFP4 files: every published spelling and shape of scales gives the same weights, each linear is
judged by what is stored, and what a file claims but does not hold is refused before anything is served."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.test_load import MEASURE
from tests.engines import prompt, request, run, tiny_engine
from tests.tiny import tiny_config, tiny_draft_config, tiny_model, wide_config, write_tiny
from ventoux.checkpoint.files import narrow, open_checkpoint
from ventoux.checkpoint.load import load_draft, load_model
from ventoux.checkpoint.quantize import quantize
from ventoux.checkpoint.reader import ShardReader, read_all
from ventoux.checkpoint.write import model_rows, write_checkpoint
from ventoux.errors import CheckpointError
from ventoux.model.mistral4 import Mistral4
from ventoux.ops.formats import Fp8Weight, Nvfp4Weight, dense
from ventoux.ops.reference import REFERENCE

CONFIG_FILE = {"native": "params.json", "hf": "config.json"}
FILE = {"native": "consolidated.safetensors", "hf": "model.safetensors"}
EXPERTS = "language_model.layers.1.mlp.experts."
WO = "layers.0.attention.wo."
W1, W3 = "layers.1.experts.2.w1.", "layers.1.experts.2.w3."


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """fp8-native, fp8-hf, nvfp4 (published mix), mixed (NVFP4 experts, FP8 attention and head)."""
    root = tmp_path_factory.mktemp("quantized")
    for layout in ("native", "hf"):
        write_tiny(root / layout, layout, wide_config(), seed=4, dtype=torch.bfloat16)
        quantize(root / layout, root / f"fp8-{layout}", "fp8")
    quantize(root / "native", root / "nvfp4", "nvfp4")
    quantize(root / "native", root / "mixed", "nvfp4", attention="fp8", head="fp8")
    return root


@pytest.fixture
def copy(originals, tmp_path):
    return lambda name: shutil.copytree(originals / name, tmp_path / name)


def rewrite(folder, change):
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def set_block(folder, block):
    """Replaces the quantization block of the config file."""
    (path,) = (folder / name for name in CONFIG_FILE.values() if (folder / name).exists())
    content = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("quantization")}
    path.write_text(json.dumps(content | block))


def weights(folder):
    """All parameters, dequantized."""
    return {row.path: dense(weight, torch.float32).float() for row, weight in read_all(open_checkpoint(folder))}


def assert_same(folder, original):
    got, wanted = weights(folder), weights(original)
    for path, tensor in wanted.items():
        assert torch.equal(got[path].to(tensor.dtype), tensor), path


def problems_of(folder):
    with pytest.raises(CheckpointError) as caught:
        load_model(open_checkpoint(folder), REFERENCE, dtype=torch.float32)
    return caught.value.problems


# ------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("fp8-native", (Fp8Weight, Fp8Weight, torch.Tensor)),
        ("fp8-hf", (Fp8Weight, Fp8Weight, torch.Tensor)),
        ("nvfp4", (Nvfp4Weight, torch.Tensor, torch.Tensor)),
        ("mixed", (Nvfp4Weight, Fp8Weight, Fp8Weight)),
    ],
)
def test_linears_keep_the_format_they_are_stored_in(originals, name, kinds):
    """... but kv_b_proj, which the absorbed form needs dense, and what is never quantized."""
    model = load_model(open_checkpoint(originals / name), REFERENCE, dtype=torch.bfloat16)
    layer = model.language_model.layers[1]
    for found in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj, layer.mlp.shared_experts.up_proj.weight):
        assert isinstance(found, kinds[0])
    for linear in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"):
        assert isinstance(getattr(layer.self_attn, linear).weight, kinds[1])
    assert isinstance(model.lm_head.weight, kinds[2])
    for plain in (
        layer.self_attn.kv_b_proj,
        layer.mlp.gate,
        model.language_model.embed_tokens,
        model.language_model.norm,
    ):
        assert isinstance(plain.weight, torch.nn.Parameter) and plain.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["fp8-native", "fp8-hf", "nvfp4", "mixed"])
def test_the_plan_counts_the_bytes_that_are_loaded(originals, name):
    checkpoint = open_checkpoint(originals / name)
    model = load_model(checkpoint, REFERENCE, dtype=torch.bfloat16)
    quantized = [w for m in model.modules() for w in vars(m).values() if isinstance(w, Fp8Weight | Nvfp4Weight)]
    stored = checkpoint.weights()
    assert stored.quantized_bytes == sum(weight.nbytes for weight in quantized) > 0
    assert stored.quantized_parameters == sum(weight.shape.numel() for weight in quantized)
    assert stored.dense_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["fp8-native", "nvfp4", "mixed"])
def test_the_engine_computes_with_the_dequantized_weights(originals, name):
    """Token for token and logprob for logprob what a dense model with these weights gives, through cache and batch."""
    quantized = load_model(open_checkpoint(originals / name), REFERENCE, dtype=torch.float32)
    plain = Mistral4(quantized.config, REFERENCE).requires_grad_(False).eval()
    plain.load_state_dict(weights(originals / name))

    def answers(model):
        requests = [request(prompt(9 + 5 * i, seed=i), str(i), logprobs=3) for i in range(3)]
        outputs = run(tiny_engine(model=model), requests)
        return {k: [(t.token_id, t.logprobs) for o in found for t in o.tokens] for k, found in outputs.items()}

    assert answers(quantized) == answers(plain)


@pytest.mark.parametrize("name", ["fp8-native", "fp8-hf"])
def test_fp8_of_both_layouts_is_the_same_model(originals, name):
    """Experts are fused in one and not in the other, with a scale per matrix in both."""
    assert_same(originals / name, originals / "fp8-native")


def test_a_draft_in_fp8(tmp_path):
    """The published draft: dense layers and eagle_linear quantized, no block for a mixture of experts."""
    write_tiny(tmp_path / "draft", config=tiny_draft_config(), dtype=torch.bfloat16)
    quantize(tmp_path / "draft", tmp_path / "fp8", "fp8")
    draft = load_draft(open_checkpoint(tmp_path / "fp8"), REFERENCE, dtype=torch.float32)
    assert isinstance(draft.eagle_linear.weight, Fp8Weight)
    assert isinstance(draft.layers[1].mlp.up_proj.weight, Fp8Weight)


def test_w1_and_w3_keep_their_own_scales(copy, originals):
    """Some engines take w1's for both. Here w3's global scale is a quarter of w1's, the values four times as large."""
    folder, before = copy("nvfp4"), weights(originals / "nvfp4")

    def quadruple(tensors):
        tensors[W3 + "weight_global_scale"] /= 4

    rewrite(folder, quadruple)
    after = weights(folder)[EXPERTS + "gate_up_proj"]
    wanted = before[EXPERTS + "gate_up_proj"].clone()
    wanted[2, 32:] *= 4
    assert torch.equal(after, wanted)


# ---------------------------------------------------------------------------------------------- spellings and shapes


def hf_scales(change):
    """Applies a change to all scales of fused experts."""

    def apply(tensors):
        for name in [n for n in tensors if n.endswith("gate_up_proj_scale_inv")]:
            tensors[name] = change(tensors[name])

    return apply


def equal_halves(tensors):
    for name in [n for n in tensors if n.endswith("gate_up_proj_scale_inv")]:
        tensors[name] = tensors[name][:, :1].clone()


@pytest.mark.parametrize(
    "change",
    [lambda s: s.reshape(-1), lambda s: s.reshape(-1, 1), lambda s: s.expand(-1, 2, 1), lambda s: s.expand(-1, 64, 1)],
    ids=["[E]", "[E, 1]", "[E, 2, 1]", "[E, G, 1]"],
)
def test_shapes_of_fused_scales(copy, tmp_path, change):
    """The published [E, 1, 1] against all others."""
    folder = copy("fp8-hf")
    rewrite(folder, equal_halves)
    published = shutil.copytree(folder, tmp_path / "published")
    rewrite(folder, hf_scales(change))
    assert_same(folder, published)


@pytest.mark.parametrize(
    "change",
    [lambda s: s.reshape(1), lambda s: s.reshape(1, 1), lambda s: s.expand(48), lambda s: s.expand(48, 1)],
    ids=["[1]", "[1, 1]", "[F]", "[F, 1]"],
)
def test_shapes_of_a_linear_scale(copy, originals, change):
    folder = copy("fp8-native")
    name = WO + "qscale_weight"
    rewrite(folder, lambda tensors: tensors.update({name: change(tensors[name])}))
    assert_same(folder, originals / "fp8-native")


@pytest.mark.parametrize("spelling", ["weight_scale_inv", "weight_scale"])
def test_other_spellings_of_fp8_scales(copy, originals, spelling):
    """Exports mix them: compressed-tensors' own, and Hugging Face's in native files."""
    folder = copy("fp8-native")

    def respell(tensors):
        for name in [n for n in tensors if n.endswith("qscale_weight")]:
            tensors[name.replace("qscale_weight", spelling)] = tensors.pop(name)

    rewrite(folder, respell)
    assert_same(folder, originals / "fp8-native")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scales_in_other_types(copy, dtype):
    folder = copy("fp8-native")
    name = WO + "qscale_weight"
    rewrite(folder, lambda tensors: tensors.update({name: torch.tensor(0.25, dtype=dtype)}))
    codes = load_file(folder / FILE["native"])[WO + "weight"]
    got = weights(folder)["language_model.layers.0.self_attn.o_proj.weight"]
    assert torch.equal(got, codes.float() * 0.25)


def test_activation_scales_are_read_past(copy, originals):
    """Published files have them; whatever they hold, weight-only arithmetic does not look."""
    folder = copy("fp8-native")

    def add(tensors):
        for name in [n for n in tensors if n.endswith("qscale_weight")]:
            tensors[name.replace("qscale_weight", "qscale_act")] = torch.tensor(float("nan"))

    rewrite(folder, add)
    assert_same(folder, originals / "fp8-native")
    folder = copy("fp8-hf")

    def add_fused(tensors):
        for name in [n for n in tensors if n.endswith("scale_inv")]:
            fused = name.endswith("_proj_scale_inv")
            act = (
                name.replace("_scale_inv", "_activation_scale")
                if fused
                else name.replace("weight_scale_inv", "activation_scale")
            )
            tensors[act] = torch.ones(5) if fused else torch.tensor(1.0)

    rewrite(folder, add_fused)
    assert_same(folder, originals / "fp8-hf")
    folder = copy("nvfp4")

    def add_input(tensors):
        for name in [n for n in tensors if n.endswith("weight_global_scale")]:
            dtype = torch.bfloat16 if "shared" in name else torch.float32
            tensors[name.replace("weight_global", "input_global")] = torch.ones(1, dtype=dtype)

    rewrite(folder, add_input)
    assert_same(folder, originals / "nvfp4")


def test_nvfp4_experts_one_by_one_in_the_hugging_face_layout(copy, originals, tmp_path):
    """How compressed-tensors exports a transformers model: linears of single experts, and names of that layout."""
    native = load_file(originals / "nvfp4" / FILE["native"])
    folder = copy("hf")
    block = json.loads((originals / "nvfp4" / "params.json").read_text())["quantization_config"]
    set_block(folder, {"quantization_config": block})
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}

    def replace(tensors):
        for name in [n for n in tensors if ".mlp." in n and "gate.weight" not in n]:
            del tensors[name]
        for name, tensor in native.items():
            if "experts." in name:
                layer, _, rest = name.removeprefix("layers.").partition(".")
                for ours, theirs in names.items():
                    rest = rest.replace(f".{ours}.", f".{theirs}.")
                tensors[f"language_model.model.layers.{layer}.mlp.{rest}"] = tensor

    rewrite(folder, replace)
    assert_same(folder, originals / "nvfp4")


def test_one_linear_of_another_format_is_no_problem(copy):
    """The config claims what occurs, not where: o_proj of one layer left in bf16."""
    folder = copy("fp8-native")

    def plain(tensors):
        scale = tensors.pop(WO + "qscale_weight")
        tensors[WO + "weight"] = (tensors[WO + "weight"].float() * scale).bfloat16()

    rewrite(folder, plain)
    model = load_model(open_checkpoint(folder), REFERENCE, dtype=torch.bfloat16)
    assert isinstance(model.language_model.layers[0].self_attn.o_proj.weight, torch.nn.Parameter)
    assert isinstance(model.language_model.layers[1].self_attn.o_proj.weight, Fp8Weight)


def test_leftovers_of_the_tower_are_skipped(copy):
    folder = copy("nvfp4")
    name = "vision_encoder.transformer.layers.0.attention.q_fake_quantizer.qscale_act"
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(())}))
    assert open_checkpoint(folder).skipped == (name,)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_everything_wrong_is_said_at_once(copy):
    folder = copy("fp8-native")

    def damage(tensors):
        del tensors[W1 + "qscale_weight"]
        tensors[WO + "qscale_weight"] = torch.ones(3)
        tensors["layers.0.attention.wq_a.qscale_weight"] = torch.ones((), dtype=torch.int32)
        tensors["layers.1.attention.wq_a.weight"] = tensors["layers.1.attention.wq_a.weight"][:, :-1]
        tensors["layers.0.gate.weight"] = tensors["layers.0.gate.weight"].to(torch.float8_e4m3fn)
        tensors["norm.qscale_weight"] = torch.ones(())
        tensors["layers.1.attention.wq_b.weight"] = torch.zeros(60, 32, dtype=torch.float8_e5m2)
        tensors["layers.0.experts.0.w2.weight"] = tensors["layers.0.experts.0.w2.weight"].bfloat16()

    rewrite(folder, damage)
    assert sorted(problems_of(folder)) == sorted(
        [
            f"{W1}qscale_weight is missing: {W1}weight is FP8 and needs it",
            f"{WO}qscale_weight has shape [3], expected [] or [1] or [1, 1] or [48] or [48, 1]",
            "layers.0.attention.wq_a.qscale_weight is stored as I32, expected BF16 or F16 or F32",
            "layers.1.attention.wq_a.weight has shape [32, 47], expected [32, 48]",
            "layers.0.gate.weight is stored as F8_E4M3, expected BF16 or F16 or F32",
            "norm.qscale_weight scales nothing: norm.weight is stored as BF16",
            "layers.1.attention.wq_b.weight is stored as F8_E5M2, expected BF16 or F16 or F32",
            "layers.1.attention.wq_b.qscale_weight scales nothing: layers.1.attention.wq_b.weight is stored as F8_E5M2",
            "language_model.layers.0.mlp.experts.down_proj is stored in pieces of different types: BF16, F8_E4M3",
            "layers.0.experts.0.w2.qscale_weight scales nothing: layers.0.experts.0.w2.weight is stored as BF16",
        ]
    )


def test_nvfp4_parts_that_are_missing_or_misshapen(copy):
    folder = copy("nvfp4")

    def damage(tensors):
        del tensors[W1 + "weight_scale"], tensors[W3 + "weight_packed"]
        del tensors["layers.0.experts.0.w1.weight_global_scale"]
        shared = "layers.0.shared_experts.w2."
        tensors[shared + "weight_scale"] = tensors[shared + "weight_scale"][:, :1]
        tensors[shared + "weight_global_scale"] = torch.ones(48)
        tensors["layers.1.shared_experts.w2.weight_scale"] = torch.ones(48, 2)
        tensors["layers.0.experts.1.w2.weight"] = torch.zeros(48, 32, dtype=torch.bfloat16)

    rewrite(folder, damage)
    assert sorted(problems_of(folder)) == sorted(
        [
            f"{W1}weight_scale is missing: {W1}weight_packed is NVFP4 and needs it",
            f"{W3}weight_packed is missing",
            "layers.0.experts.0.w1.weight_global_scale is missing: layers.0.experts.0.w1.weight_packed is NVFP4 and"
            " needs it",
            "layers.0.shared_experts.w2.weight_scale has shape [48, 1], expected [48, 2]",
            "layers.0.shared_experts.w2.weight_global_scale has shape [48], expected [1] or []",
            "layers.1.shared_experts.w2.weight_scale is stored as F32, expected F8_E4M3",
            "layers.0.experts.1.w2.weight is not a tensor of this model",
        ]
    )


def test_a_width_that_cannot_be_grouped(tmp_path):
    folder = write_tiny(tmp_path, config=tiny_config(), dtype=torch.bfloat16)
    set_block(folder, {"quantization_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}})

    def pack(tensors):
        name = "layers.0.shared_experts.w1."
        del tensors[name + "weight"]
        tensors[name + "weight_packed"] = torch.zeros(28, 20, dtype=torch.uint8)
        tensors[name + "weight_scale"] = torch.ones(28, 2).to(torch.float8_e4m3fn)
        tensors[name + "weight_global_scale"] = torch.ones(1)

    rewrite(folder, pack)
    name = "layers.0.shared_experts.w1.weight_packed"
    assert problems_of(folder) == [f"{name} is NVFP4, but its width 40 is not divisible by 16"]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-45])
def test_scales_that_cannot_be(copy, value):
    """Found while loading, all of them, before anything is served. The reciprocal of 1e-45 is infinite."""
    folder = copy("mixed")

    def damage(tensors):
        tensors[W1 + "weight_global_scale"][0] = value
        tensors[W3 + "weight_global_scale"][0] = value
        tensors[WO + "weight_scale"][0] = value

    rewrite(folder, damage)
    found = problems_of(folder)
    assert len(found) == 3
    for name in (W1 + "weight_global_scale", W3 + "weight_global_scale", WO + "weight_scale"):
        assert any(problem.startswith(f"{name} must be more than 0 and give finite weights, is ") for problem in found)


def test_scales_whose_weights_would_be_infinite(copy):
    """Finite themselves, and so are their reciprocals."""
    folder = copy("mixed")

    def damage(tensors):
        tensors[W1 + "weight_global_scale"][0] = 1e-36
        tensors[WO + "weight_scale"][0] = 1e36

    rewrite(folder, damage)
    assert sorted(problem.split()[0] for problem in problems_of(folder)) == [
        WO + "weight_scale",
        W1 + "weight_global_scale",
    ]


@pytest.mark.parametrize("code", [0x7F, 0xFF, 0x81])
def test_group_scales_that_cannot_be(copy, code):
    """NaN of either sign, and a negative one."""
    folder = copy("nvfp4")

    def damage(tensors):
        tensors[W3 + "weight_scale"].view(torch.uint8)[7, 1] = code

    rewrite(folder, damage)
    assert problems_of(folder) == [f"{W3}weight_scale holds NaN or negative scales"]


def test_nan_in_weights_of_every_type(copy):
    """One bad value each, in the last place; a check that skips the tail of a tensor misses it."""
    folder = copy("fp8-native")
    names = [W1 + "weight", WO + "weight", "norm.weight", "tok_embeddings.weight"]

    def damage(tensors):
        for name in names[:2]:
            tensors[name].view(torch.uint8)[-1, -1] = 0xFF
        tensors["norm.weight"][-1] = float("inf")
        tensors["tok_embeddings.weight"] = tensors["tok_embeddings.weight"].half()
        tensors["tok_embeddings.weight"][-1, -1] = float("nan")

    rewrite(folder, damage)
    assert sorted(problems_of(folder)) == sorted(f"{name} holds NaN or infinite values" for name in names)


def test_largest_and_smallest_numbers_are_no_nan(copy):
    folder = copy("native")

    def extremes(tensors):
        for name, dtype in (("norm.weight", torch.bfloat16), ("output.weight", torch.float32)):
            tensors[name] = tensors[name].to(dtype)
            tensors[name].view(-1)[:3] = torch.tensor(
                [torch.finfo(dtype).max, torch.finfo(dtype).min, -0.0], dtype=dtype
            )

    rewrite(folder, extremes)
    reader = ShardReader(open_checkpoint(folder))
    for row in open_checkpoint(folder).rows:
        reader.load(row, torch.float32)
    assert not reader.problems


@pytest.mark.parametrize(
    ("name", "block", "wanted"),
    [
        ("native", {"quantization": {"qformat_weight": "fp8_e4m3"}}, "claims FP8, but no weight is stored so"),
        ("fp8-native", {}, "params.json claims no quantization, but 20 parameters are stored as FP8"),
        (
            "nvfp4",
            {"quantization": {"qformat_weight": "fp8_e4m3"}},
            "claims FP8, but 10 parameters are stored as NVFP4",
        ),
        (
            "fp8-hf",
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            'is neither FP8 nor NVFP4, but "gptq"',
        ),
        (
            "fp8-hf",
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            "weight_block_size is [128, 128]; only one scale per matrix",
        ),
        (
            "fp8-hf",
            {"quantization_config": {"quant_method": "fp8", "activation_scheme": "odd"}},
            '"odd"; known: static',
        ),
        ("fp8-native", {"quantization": {"qformat_weight": "int8"}}, 'qformat_weight is "int8"; known: fp8_e4m3'),
        ("fp8-native", {"quantization": "fp8"}, "quantization must be an object"),
        (
            "nvfp4",
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "marlin-24"}},
            'format is "marlin-24"; known: nvfp4-pack-quantized',
        ),
        (
            "nvfp4",
            {"quantization_config": {"quant_method": "compressed-tensors", "format": ["nvfp4-pack-quantized"]}},
            'format is ["nvfp4-pack-quantized"]; known: nvfp4-pack-quantized',
        ),
        (
            "nvfp4",
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"g0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}},
                }
            },
            "config_groups.g0 has weights of an unknown scheme",
        ),
    ],
)
def test_claims_that_files_do_not_keep_and_unknown_schemes(copy, name, block, wanted):
    folder = copy(name)
    set_block(folder, block)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert any(wanted in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"kv_cache_scheme": {"num_bits": 8}}, 'kv_cache_scheme is {"num_bits": 8}, which is not supported'),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is"),
        ({"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}, "transform_config is"),
        ({"transform_config": {"format": "dense", "config_groups": {"u": {}}}}, "transform_config is"),
        ({"moe_sparsity_config": ["x"]}, 'moe_sparsity_config is ["x"]'),
        ({"transform_config": {}, "sparsity_config": {"format": "dense"}, "kv_cache_scheme": None}, None),
        ({"config_groups": {"a": {"weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}}}, None),
        (
            {
                "config_groups": {
                    "a": {"weights": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": True}}
                }
            },
            "config_groups.a has weights of an unknown scheme",
        ),
    ],
)
def test_what_a_scheme_does_besides_is_not_passed_over(copy, more, problem):
    """Sparse or turned weights would be read as if they were neither."""
    folder = copy("mixed")
    block = json.loads((folder / "params.json").read_text())["quantization_config"]
    group = {"config_groups": {**block["config_groups"], **more.pop("config_groups", {})}}
    set_block(folder, {"quantization_config": block | group | more})
    if problem is None:
        assert set(open_checkpoint(folder).quant_formats) >= {"fp8", "nvfp4"}
        return
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert [problem in found for found in caught.value.problems] == [True], caught.value.problems


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("form", ["fp8", pytest.param("nvfp4", marks=pytest.mark.slow)])
def test_peak_memory_is_the_quantized_weights(tmp_path, form):
    """A loader that dequantizes, or stacks experts after reading them, holds two or four times as much."""
    from tests.checkpoint.test_load import write_zeros

    config = wide_config(
        vision=False, hidden_size=512, moe_intermediate_size=1024, n_routed_experts=64, num_hidden_layers=1
    )
    write_zeros(tmp_path / "source", "native", config)
    quantize(tmp_path / "source", tmp_path / form, form)
    stored = open_checkpoint(tmp_path / form).weights()
    size = 2 * stored.dense_parameters + stored.quantized_bytes
    command = [sys.executable, "-c", MEASURE, str(tmp_path / form), "bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rise = int(done.stdout.split()[1])
    assert size > 50_000_000
    assert rise < 1.15 * size + 20_000_000


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_quantized_while_loading_is_quantized_before(originals, tmp_path, form):
    """`--attention-format` and `--head-format`: the weights that `ventoux quantize` writes, in the bytes that the plan
    counts; all else as stored."""
    folder = originals / "native"
    quantize(folder, tmp_path / "written", form, attention=form, head=form)
    written = load_model(open_checkpoint(tmp_path / "written"), REFERENCE, dtype=torch.float32)
    narrowed = narrow(open_checkpoint(folder), {"attention": form, "head": form})
    model = load_model(narrowed, REFERENCE, dtype=torch.float32)
    kind = {"fp8": Fp8Weight, "nvfp4": Nvfp4Weight}[form]
    for name in ("lm_head", "language_model.layers.1.self_attn.q_b_proj", "language_model.layers.0.self_attn.o_proj"):
        now, before = model.get_submodule(name).weight, written.get_submodule(name).weight
        assert isinstance(now, kind) and torch.equal(now.dequantize(torch.float32), before.dequantize(torch.float32))
    assert isinstance(model.get_parameter("language_model.layers.1.mlp.experts.down_proj"), torch.Tensor)
    quantized = {n: m.weight for n, m in model.named_modules() if isinstance(getattr(m, "weight", None), kind)}
    facts = narrowed.weights()
    assert (
        sum(weight.nbytes for weight in quantized.values()) == facts.quantized_bytes
        and f"head {form} (made" in facts.formats
    )


def test_what_cannot_be_quantized_while_loading_is_said(originals, tmp_path):
    with pytest.raises(CheckpointError, match="attention is stored as fp8 already"):
        narrow(open_checkpoint(originals / "mixed"), {"attention": "nvfp4", "head": "stored"})
    odd = write_tiny(tmp_path, config=tiny_config(), dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="divisible by 16"):
        narrow(open_checkpoint(odd), {"attention": "nvfp4"})
    with pytest.raises(CheckpointError, match="no head"):
        narrow(open_checkpoint(write_tiny(tmp_path / "draft", config=tiny_draft_config())), {"head": "fp8"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_quantized_while_loading_from_what_is_stored(tmp_path, dtype):
    """By way of bf16 the codes would be others than `ventoux quantize` writes."""
    folder = write_tiny(tmp_path / "source", config=wide_config(), dtype=dtype)
    quantize(folder, tmp_path / "written", "fp8", attention="fp8", head="fp8")
    narrowed = narrow(open_checkpoint(folder), {"attention": "fp8", "head": "fp8"})
    now, before = (
        load_model(checkpoint, REFERENCE, dtype=torch.float32).lm_head.weight.dequantize(torch.float32)
        for checkpoint in (narrowed, open_checkpoint(tmp_path / "written"))
    )
    assert torch.equal(now, before)


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_nan_is_refused_by_name_while_it_is_quantized(tmp_path, form):
    """An error of the arithmetic, without the tensor's name, instead of the list of what is wrong."""
    config, model = wide_config(), tiny_model(wide_config())
    for layer in model.language_model.layers:
        layer.self_attn.o_proj.weight[0, 0] = float("nan")
    write_checkpoint(tmp_path, config, "native", model_rows(model, config), dtype=torch.bfloat16)
    with pytest.raises(CheckpointError) as raised:
        load_model(narrow(open_checkpoint(tmp_path), {"attention": form}), REFERENCE, dtype=torch.float32)
    assert [f"layers.{i}.attention.wo.weight" in str(raised.value) for i in range(2)] == [True, True]
