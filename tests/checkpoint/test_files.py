"""Opening: every way in which a folder of shards can be broken is refused before a weight is read, naming the file
and all problems at once; every honest variation is accepted."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_config, tiny_draft_config, tiny_model, write_tiny
from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.params import write_config
from ventoux.checkpoint.reader import read_all
from ventoux.errors import CheckpointError
from ventoux.model.tensors import HF_PREFIXES, hf_name

LAYOUTS = ["native", "hf"]
ONE_FILE = {"native": "consolidated.safetensors", "hf": "model.safetensors"}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    for layout in LAYOUTS:
        write_tiny(root / layout, layout, seed=1)
        write_tiny(root / f"{layout}-sharded", layout, seed=1, max_shard_bytes=150_000)
    return root


@pytest.fixture
def copy(originals, tmp_path):
    def copy(name):
        return shutil.copytree(originals / name, tmp_path / name)

    return copy


def rewrite(path, change):
    """Passes the tensors of one file through `change`, in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def problems_of(folder, layout="auto"):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, layout)
    return caught.value.problems


def assert_weights(folder, layout="auto"):
    wanted = dict(tiny_model(seed=1).named_parameters())
    checkpoint = open_checkpoint(folder, layout)
    for row, tensor in read_all(checkpoint):
        assert torch.equal(tensor, wanted[row.path]), row.path


@pytest.mark.parametrize("name", ["native", "native-sharded", "hf", "hf-sharded"])
def test_reads_back_every_tensor(originals, name):
    """Experts in another order, gate and up swapped, vision rows not permuted back: all show here."""
    assert_weights(originals / name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_what_the_safetensors_library_reads(originals, layout):
    """Our writer against the format's own reader; native experts stand alone, Hugging Face ones are stacked."""
    tensors = load_file(originals / layout / ONE_FILE[layout])
    model = dict(tiny_model(seed=1).named_parameters())
    gate_up = model["language_model.layers.1.mlp.experts.gate_up_proj"]
    if layout == "hf":
        assert torch.equal(tensors["language_model.model.layers.1.mlp.experts.gate_up_proj"], gate_up)
    else:
        assert torch.equal(tensors["layers.1.experts.4.w1.weight"], gate_up[4, :28])
        assert torch.equal(tensors["layers.1.experts.4.w3.weight"], gate_up[4, 28:])
        assert torch.equal(tensors["output.weight"], model["lm_head.weight"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_without_an_index(copy, layout):
    folder = copy(f"{layout}-sharded")
    next(folder.glob("*.index.json")).unlink()
    assert_weights(folder)


def test_index_and_shards_of_any_name(copy):
    """One repository calls its index consolidated.safetensors.index.json, another what it likes."""
    folder = copy("hf-sharded")
    index = next(folder.glob("*.index.json"))
    content = json.loads(index.read_text())
    for path in folder.glob("*.safetensors"):
        path.rename(folder / f"weights-{path.name}")
    content["weight_map"] = {name: f"weights-{file}" for name, file in content["weight_map"].items()}
    (folder / "anything.safetensors.index.json").write_text(json.dumps(content))
    index.unlink()
    assert_weights(folder)


def test_both_layouts_in_one_folder(copy):
    """The base repository: shards of the other layout are neither missing nor extra."""
    folder = copy("native-sharded")
    shutil.copytree(copy("hf-sharded"), folder, dirs_exist_ok=True)
    assert_weights(folder)
    assert_weights(folder, "hf")
    assert open_checkpoint(folder).layout == "native"
    # And also where neither has an index.
    for index in folder.glob("*.index.json"):
        index.unlink()
    assert_weights(folder)
    assert_weights(folder, "hf")


@pytest.mark.parametrize("prefixes", HF_PREFIXES)
def test_every_prefix_spelling(copy, prefixes):
    folder = copy("hf")
    names = {hf_name(row.path, HF_PREFIXES[0]): row.path for row in open_checkpoint(folder).rows}

    def respell(tensors):
        for name, path in names.items():
            tensors[hf_name(path, prefixes)] = tensors.pop(name)

    rewrite(folder / ONE_FILE["hf"], respell)
    assert_weights(folder)


def test_mixed_prefixes(copy):
    folder = copy("hf")

    def respell(tensors):
        tensors["lm_head.weight"] = tensors.pop("language_model.lm_head.weight")

    rewrite(folder / ONE_FILE["hf"], respell)
    missing, other = problems_of(folder)
    assert missing == "language_model.lm_head.weight is missing"
    assert other.startswith("lm_head.weight is spelled with other prefixes")


def test_missing_extra_misshapen_and_wrong_type_all_at_once(copy):
    folder = copy("native")

    def damage(tensors):
        del tensors["norm.weight"], tensors["layers.0.experts.3.w3.weight"]
        tensors["layers.9.gate.weight"] = torch.zeros(5, 40)
        tensors["layers.1.attention.wo.weight"] = tensors["layers.1.attention.wo.weight"].T.contiguous()
        tensors["output.weight"] = tensors["output.weight"].to(torch.float64)
        tensors["layers.1.experts.0.w2.weight"] = tensors["layers.1.experts.0.w2.weight"].bfloat16()

    rewrite(folder / ONE_FILE["native"], damage)
    problems = problems_of(folder)
    assert sorted(problems) == sorted(
        [
            "norm.weight is missing",
            "layers.0.experts.3.w3.weight is missing",
            "layers.9.gate.weight is not a tensor of this model",
            "layers.1.attention.wo.weight has shape [30, 40], expected [40, 30]",
            "output.weight is stored as F64, expected BF16 or F16 or F32",
            "language_model.layers.1.mlp.experts.down_proj is stored in pieces of different types: BF16, F32",
        ]
    )


def test_tensors_that_readers_skip(copy):
    """Leftovers of quantization-aware training, unknown tower tensors: skipped, and said so."""
    folder = copy("native")
    extras = ["layers.0.attention.kv_fake_quantizer.qscale_act", "vision_encoder.patch_positional.freqs"]

    def add(tensors):
        tensors |= {name: torch.zeros(2) for name in extras}

    rewrite(folder / ONE_FILE["native"], add)
    assert_weights(folder)
    assert open_checkpoint(folder).skipped == tuple(extras)


def test_draft_with_its_own_copies(tmp_path):
    folder = write_tiny(tmp_path, config=tiny_draft_config())

    def add(tensors):
        tensors |= {"tok_embeddings.weight": torch.zeros(2, 2), "output.weight": torch.zeros(2, 2)}

    rewrite(folder / ONE_FILE["native"], add)
    assert open_checkpoint(folder).skipped == ("output.weight", "tok_embeddings.weight")


def test_another_size_of_the_same_family(copy):
    folder = copy("native")
    write_config(tiny_config(kv_lora_rank=16), folder, "native")
    assert any("kv_a_norm.weight has shape [20], expected [16]" in problem for problem in problems_of(folder))


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)


def lengthen(path):
    with path.open("ab") as file:
        file.write(b"\0" * 64)


def break_header(path):
    with path.open("r+b") as file:
        file.seek(30)
        file.write(b"\xff{]")


def absurd_length(path):
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", 2**60))


def endless_brackets(path):
    """A RecursionError in json, not a ValueError."""
    text = b'{"a":' + b"[" * 100_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def cut_in_header(path):
    with path.open("r+b") as file:
        file.truncate(100)


def wrong_offsets(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    begin, end = header["norm.weight"]["data_offsets"]
    header["norm.weight"]["data_offsets"] = [begin - 160, end - 160]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (truncate, r"is truncated: expected \d+ bytes, found \d+"),
        (lengthen, r"is longer than its header says: expected \d+ bytes, found \d+"),
        (break_header, "has a corrupt header"),
        (wrong_offsets, "has a corrupt header: norm.weight begins at byte"),
        (absurd_length, "its header would have 1152921504606846976 bytes"),
        (cut_in_header, r"is truncated: its header alone takes \d+ bytes, found 100"),
        (endless_brackets, "has a corrupt header"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"1234"), r"is truncated \(4 bytes\)"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
        (lambda path: path.unlink(), "there is no safetensors file"),
    ],
)
def test_broken_file(copy, damage, wanted):
    """One problem, not one per tensor that could not be found in the broken file."""
    folder = copy("native")
    damage(folder / ONE_FILE["native"])
    with pytest.raises(CheckpointError, match=wanted) as caught:
        open_checkpoint(folder)
    assert len(caught.value.problems) == 1


def test_missing_and_broken_shards_with_an_index(copy):
    """The index knows what is in the lost shards: their tensors are not reported, a tensor missing elsewhere is."""
    folder = copy("native-sharded")
    shards = sorted(folder.glob("*.safetensors"))
    shards[0].unlink()
    truncate(shards[1])

    def damage(tensors):
        tensors.pop("norm.weight", None)

    index = json.loads((folder / "consolidated.safetensors.index.json").read_text())
    rewrite(folder / index["weight_map"]["norm.weight"], damage)
    problems = problems_of(folder)
    assert len(problems) == 4
    assert f"{shards[0].name} is missing" in problems
    assert any(p.startswith(f"{shards[1].name} is truncated") for p in problems)
    assert "norm.weight is missing" in problems
    assert any(p.startswith("the index puts norm.weight into") for p in problems)


def test_missing_shard_without_an_index(copy):
    folder = copy("hf-sharded")
    next(folder.glob("*.index.json")).unlink()
    total = len(list(folder.glob("*.safetensors")))
    next(folder.glob("*-00002-of-*.safetensors")).unlink()
    assert problems_of(folder) == [f"missing shards 2 of {total}"]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("{", "is not JSON"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "outside the folder"),
    ],
)
def test_broken_index(copy, content, wanted):
    folder = copy("native-sharded")
    (folder / "consolidated.safetensors.index.json").write_text(content)
    assert any(wanted in problem for problem in problems_of(folder))


def test_tensor_stored_twice(copy):
    folder = copy("hf-sharded")
    next(folder.glob("*.index.json")).unlink()
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    rewrite(second, lambda tensors: tensors.update({name: tensor}))
    assert problems_of(folder) == [f"{name} is stored twice: in {first.name} and in {second.name}"]


def test_config_and_files_are_judged_together(copy):
    folder = copy("native")
    params = json.loads((folder / "params.json").read_text())
    del params["dim"]
    (folder / "params.json").write_text(json.dumps(params))
    truncate(folder / ONE_FILE["native"])
    config_problem, file_problem = problems_of(folder)
    assert config_problem == "params.json: dim is missing"
    assert file_problem.startswith("consolidated.safetensors is truncated")


def test_file_that_shrinks_after_opening(copy):
    """Read short, not filled with whatever was in memory."""
    folder = copy("native")
    checkpoint = open_checkpoint(folder)
    with (folder / ONE_FILE["native"]).open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(CheckpointError, match="bytes early"):
        list(read_all(checkpoint))
