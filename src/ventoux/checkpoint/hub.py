"""Which folder a model name means: a folder as it is, a Hub id through huggingface-hub, nothing = the bundled model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub import errors as hub_errors

from ventoux.checkpoint.keys import CONFIG_FILES, Layout
from ventoux.checkpoint.params import read_facts
from ventoux.errors import CheckpointError

BUNDLED = "demo"
COMMON_FILES = ["tekken.json", "SYSTEM_PROMPT.txt", "generation_config.json", "chat_template.jinja", "LICENSE*"]
# The base repository holds the model twice, 242 GB in all; one layout is half of that.
PATTERNS: dict[Layout, list[str]] = {
    "native": ["params.json", "consolidated*.safetensors", "consolidated*.safetensors.index.json", *COMMON_FILES],
    "hf": [
        *("config.json", "model*.safetensors", "model*.safetensors.index.json", "tokenizer*.json"),
        *("processor_config.json", "preprocessor_config.json", "special_tokens_map.json", *COMMON_FILES),
    ],
}
# What the Hub client raises when the network fails it; httpx2's errors are no OSErrors.
_NETWORK = (OSError, httpx2.HTTPError)


def resolve_model(model: str | None) -> Path:
    """The local folder of a model; a Hub id is downloaded first (one layout only, native where there is one), or
    taken from the local cache when the Hub cannot be reached.

    The config file comes first, so that a repository that cannot be used is refused before its weights are fetched.

    Raises:
        CheckpointError: no such folder or repository, no access to it, a repository of another model, a download cut
            short, or offline and not in the cache.
    """
    if model is None:
        return bundled_model()
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not _looks_like_hub_id(model):
        raise CheckpointError(model, ["no such folder (and a Hub id would look like owner/name)"])
    try:
        names = huggingface_hub.HfApi().list_repo_files(model)
    except hub_errors.GatedRepoError as error:
        raise CheckpointError(model, [_GATED]) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise CheckpointError(model, [_NOT_FOUND]) from error
    except hub_errors.HFValidationError as error:
        raise CheckpointError(model, [f"no such folder, and no valid Hub id: {error}"]) from error
    except _NETWORK as error:
        # What was fetched before is still good.
        return _from_cache(model, error)
    return _download(model, _choose_layout(model, names))


def bundled_model() -> Path:
    """The folder of the model that ships inside the package."""
    folder = Path(str(files("ventoux").joinpath(BUNDLED)))
    if not (folder / CONFIG_FILES["native"]).is_file():
        raise CheckpointError(
            str(folder), ["the bundled model is not part of this installation; name a model folder or Hub id"]
        )
    return folder


_GATED = (
    "access to this repository is restricted: accept its terms on the Hub, then log in with `hf auth login`"
    " (or set HF_TOKEN)"
)
_NOT_FOUND = (
    "no such folder, and no such repository on the Hub; check the spelling, or log in with `hf auth login` if it is"
    " private"
)


def _looks_like_hub_id(model: str) -> bool:
    owner, _, name = model.partition("/")
    return bool(owner and name) and "/" not in name and not model.startswith((".", "~"))


def _choose_layout(model: str, names: list[str]) -> Layout:
    """From the repository's file list: a layout counts when both its config and weights are there."""
    layouts: tuple[tuple[Layout, str], ...] = (("native", "consolidated"), ("hf", "model"))
    for layout, stem in layouts:
        weights = any(name.startswith(stem) and name.endswith(".safetensors") for name in names)
        if CONFIG_FILES[layout] in names and weights:
            return layout
    raise CheckpointError(
        model,
        ["holds neither params.json with consolidated*.safetensors nor config.json with model*.safetensors"],
    )


def _download(model: str, layout: Layout) -> Path:
    read_facts(_fetch(model, [CONFIG_FILES[layout]]), layout)
    return _fetch(model, PATTERNS[layout])


def _fetch(model: str, patterns: list[str]) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns))
    except hub_errors.GatedRepoError as error:
        raise CheckpointError(model, [_GATED]) from error
    except _NETWORK as error:
        problem = f"the download did not finish ({error}); run the same command again, it resumes where it stopped"
        raise CheckpointError(model, [problem]) from error


def _from_cache(model: str, cause: Exception) -> Path:
    for layout in ("native", "hf"):
        try:
            folder = Path(
                huggingface_hub.snapshot_download(model, allow_patterns=PATTERNS[layout], local_files_only=True)
            )
        except _NETWORK:
            continue
        if (folder / CONFIG_FILES[layout]).is_file():
            return folder
    offline = isinstance(cause, hub_errors.OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else f"the Hub cannot be reached ({cause})"
    raise CheckpointError(model, [f"{why}, and the model is not in the local cache"]) from cause
