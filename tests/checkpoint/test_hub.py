"""Model names: a folder, a Hub id, nothing. The Hub is a stand-in; what matters is what we ask of it and what we say
when it fails."""

import json

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from tests.tiny import tiny_config, write_tiny
from ventoux.checkpoint import hub
from ventoux.checkpoint.hub import resolve_model
from ventoux.checkpoint.params import write_config
from ventoux.errors import CheckpointError

BASE = [
    "README.md", "SYSTEM_PROMPT.txt", "config.json", "params.json", "tekken.json", "tokenizer.json",
    "consolidated-00001-of-00007.safetensors", "consolidated.safetensors.index.json",
    "model-00001-of-00003.safetensors", "model.safetensors.index.json",
]  # fmt: skip
REQUEST = httpx2.Request("GET", "https://hub.invalid/api")


def failure(kind, status):
    return kind("refused", response=httpx2.Response(status, request=REQUEST))


class FakeHub:
    """Answers with a file list and a snapshot folder, or raises what it is given."""

    def __init__(self, monkeypatch, names=(), listing=None, download=None, folder=None):
        self.calls = []
        self.names, self.listing, self.download, self.folder = list(names), listing, download, folder
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda _, repo_id: self.list(repo_id))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.fetch)

    def list(self, repo_id):
        if self.listing is not None:
            raise self.listing
        return self.names

    def fetch(self, repo_id, *, allow_patterns, local_files_only=False):
        self.calls.append((repo_id, allow_patterns, local_files_only))
        if self.download is not None:
            raise self.download
        return str(self.folder)


def matched(patterns, names):
    return set(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=patterns))


@pytest.mark.parametrize(
    ("names", "wanted", "unwanted"),
    [
        (BASE, {"params.json", "consolidated-00001-of-00007.safetensors", "tekken.json", "SYSTEM_PROMPT.txt"}, "model"),
        ([n for n in BASE if n != "params.json"], {"config.json", "model-00001-of-00003.safetensors"}, "consolidated"),
        ([n for n in BASE if "consolidated-" not in n], {"config.json", "tekken.json"}, "consolidated"),
    ],
    ids=["both", "no params.json", "no native shards"],
)
def test_one_layout_only(monkeypatch, tmp_path, names, wanted, unwanted):
    """242 GB instead of 121 GB otherwise. The config file is asked for alone, first."""
    for layout in ("native", "hf"):
        write_config(tiny_config(), tmp_path, layout)
    fake = FakeHub(monkeypatch, names, folder=tmp_path)
    assert resolve_model("mistralai/Mistral-Small-4-119B-2603") == tmp_path
    (_, first, _), (repo_id, patterns, local_only) = fake.calls
    assert (repo_id, local_only) == ("mistralai/Mistral-Small-4-119B-2603", False)
    got = matched(patterns, names)
    assert matched(first, names) == {"params.json", "config.json"} & got
    assert wanted <= got
    assert not any(name.startswith(unwanted) and name.endswith(".safetensors") for name in got)


@pytest.mark.parametrize("layout", ["native", "hf"])
def test_everything_that_loading_needs_is_fetched(monkeypatch, tmp_path, layout):
    """The patterns against a folder that we wrote ourselves, sharded, with a tokenizer."""
    folder = write_tiny(tmp_path, layout, tiny_config(), max_shard_bytes=150_000, tokenizer=True)
    names = [path.name for path in folder.iterdir()]
    fake = FakeHub(monkeypatch, names, folder=folder)
    resolve_model("owner/name")
    assert matched(fake.calls[-1][1], names) == set(names)


@pytest.mark.parametrize(
    ("listing", "wanted"),
    [
        (failure(hub_errors.RepositoryNotFoundError, 404), "no such repository on the Hub"),
        (failure(hub_errors.GatedRepoError, 403), "access to this repository is restricted"),
        (hub_errors.HFValidationError("bad id"), "no valid Hub id"),
        (hub_errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set, and the model is not in the local cache"),
        (httpx2.ConnectError("no route"), r"the Hub cannot be reached \(no route\), and the model is not"),
        (failure(hub_errors.HfHubHTTPError, 503), "the Hub cannot be reached"),
    ],
)
def test_what_we_say_when_the_hub_fails(monkeypatch, listing, wanted):
    FakeHub(monkeypatch, listing=listing, download=hub_errors.LocalEntryNotFoundError("not cached"))
    with pytest.raises(CheckpointError, match=wanted):
        resolve_model("owner/name")


@pytest.mark.parametrize("layout", ["native", "hf"])
def test_offline_takes_what_is_in_the_cache(monkeypatch, tmp_path, layout):
    """A cached snapshot of the other layout's patterns has no config file: it does not count."""
    folder = write_tiny(tmp_path, layout)
    fake = FakeHub(monkeypatch, listing=httpx2.ConnectError("no route"), folder=folder)
    assert resolve_model("owner/name") == folder
    assert all(local_only for _, _, local_only in fake.calls)


@pytest.mark.parametrize(
    ("download", "wanted"),
    [
        (failure(hub_errors.GatedRepoError, 403), "restricted"),
        (httpx2.ReadTimeout("too slow"), r"did not finish \(too slow\); run the same command again"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_interrupted_download(monkeypatch, download, wanted):
    FakeHub(monkeypatch, BASE, download=download)
    with pytest.raises(CheckpointError, match=wanted):
        resolve_model("owner/name")


def test_what_cannot_be_used_is_refused_before_its_weights_are_fetched(monkeypatch, tmp_path):
    """120 GB of another model, or in a number format that is not known, would come first otherwise."""
    path = write_config(tiny_config(), tmp_path, "native")
    params = json.loads(path.read_text())
    path.write_text(json.dumps({**params, "quantization": {"qformat_weight": "int4"}}))
    fake = FakeHub(monkeypatch, BASE, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r'quantization.qformat_weight is "int4"'):
        resolve_model("owner/name")
    assert len(fake.calls) == 1
    path.write_text(json.dumps({**params, "quantization": {"qformat_weight": "fp8_e4m3"}}))
    assert resolve_model("owner/name") == tmp_path
    path.write_text(json.dumps({**params, "sliding_window": 4096}))
    with pytest.raises(CheckpointError, match="sliding_window"):
        resolve_model("owner/name")


def test_repository_of_something_else(monkeypatch):
    fake = FakeHub(monkeypatch, ["config.json", "pytorch_model.bin", "model.gguf"])
    with pytest.raises(CheckpointError, match=r"neither params.json with consolidated"):
        resolve_model("owner/name")
    assert not fake.calls


def test_folders(monkeypatch, tmp_path):
    fake = FakeHub(monkeypatch, BASE, folder=tmp_path)
    assert resolve_model(str(tmp_path)) == tmp_path
    for name in ("./owner/name", "/no/such/folder", "name", "~/models", "a/b/c"):
        with pytest.raises(CheckpointError, match="no such folder"):
            resolve_model(name)
    assert not fake.calls


def test_nothing_means_the_bundled_model(monkeypatch, tmp_path):
    (tmp_path / hub.BUNDLED).mkdir()
    monkeypatch.setattr(hub, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="not part of this installation"):
        resolve_model(None)
    write_tiny(tmp_path / hub.BUNDLED)
    assert resolve_model(None) == tmp_path / hub.BUNDLED
