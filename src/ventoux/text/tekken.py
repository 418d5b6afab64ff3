"""Writes a v15 `tekken.json` from the vocabulary that ships inside mistral-common.

Mistral Small 4 uses that vocabulary unchanged; only the settings around it are newer. So tests, the bundled model and
synthetic checkpoints get a true tokenizer without a download.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

SOURCE = "tekken_240911.json"
VERSION = "v15"
NUM_SPECIAL_TOKENS = 1000
# The real vocabulary: 131072 ids, of which 1000 are special; the source file holds more ranks than are used.
NUM_RANKS = 131072 - NUM_SPECIAL_TOKENS
# The first 256 ranks are the single bytes; with fewer, some text could not be encoded at all.
MIN_RANKS = 256

# id -> name; ids between and above these are unused slots, named <SPECIAL_id>.
SPECIAL_TOKENS: dict[int, str] = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    32: "[ARGS]",
    33: "[CALL_ID]",
    34: "[THINK]",
    35: "[/THINK]",
    36: "[MODEL_SETTINGS]",
    37: "[/MODEL_SETTINGS]",
}

_IMAGE = {"image_patch_size": 14, "max_image_size": 1540, "spatial_merge_size": 2}
_MODEL_SETTINGS = {
    "reasoning_effort": {"type": "enum", "values": ["none", "high"], "accepts_none": True, "default": "none"}
}


def write_tekken(path: Path | str, *, num_ranks: int | None = None) -> Path:
    """Writes the tokenizer of Mistral Small 4, whole or cut to its first `num_ranks` ranks.

    Args:
        path: The file to write (its name must hold "tekken" and end in .json), or a folder that gets `tekken.json`.
        num_ranks: How many regular tokens to keep, 256 to 130072; None writes the whole vocabulary. Regular tokens
            are ranked by merge order, so the first ranks are a working byte-level BPE of their own. Ids do not
            change: rank r is id 1000 + r either way, and control tokens keep theirs.

    Returns:
        The path of the written file.

    Raises:
        ValueError: `num_ranks` is out of its range.
    """
    if num_ranks is not None and not MIN_RANKS <= num_ranks <= NUM_RANKS:
        raise ValueError(f"num_ranks must be in [{MIN_RANKS}, {NUM_RANKS}], got {num_ranks}.")
    path = Path(path)
    if path.is_dir():
        path = path / "tekken.json"
    source = json.loads(files("mistral_common").joinpath("data", SOURCE).read_text(encoding="utf-8"))
    vocab: list[dict[str, Any]] = source["vocab"] if num_ranks is None else source["vocab"][:num_ranks]
    # mistral-common fills the slots after the last listed one by itself; a cut file leaves the filling to it.
    num_listed = NUM_SPECIAL_TOKENS if num_ranks is None else max(SPECIAL_TOKENS) + 1
    special_tokens = [
        {"rank": i, "token_str": SPECIAL_TOKENS.get(i, f"<SPECIAL_{i}>"), "is_control": True} for i in range(num_listed)
    ]
    content = {
        "config": {
            "pattern": source["config"]["pattern"],
            "num_vocab_tokens": len(vocab),
            "default_vocab_size": NUM_SPECIAL_TOKENS + (NUM_RANKS if num_ranks is None else num_ranks),
            "default_num_special_tokens": NUM_SPECIAL_TOKENS,
            "version": VERSION,
        },
        "special_tokens": special_tokens,
        "image": _IMAGE,
        "model_settings_builder": _MODEL_SETTINGS,
        "vocab": vocab,
    }
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    return path
