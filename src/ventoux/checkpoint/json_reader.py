"""Looking keys up in a config file: types, ranges and refusals, with every problem collected."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ventoux.checkpoint.keys import STRICT_BLOCKS, Fact, Key, Layout, Required
from ventoux.errors import CheckpointError

LFS_MAGIC = "version https://git-lfs"
_INT64 = range(-(2**63), 2**63)


def read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(str(path), [f"cannot be read: {error}"]) from error
    if text.startswith(LFS_MAGIC):
        raise CheckpointError(str(path), ["is a Git LFS pointer, not the file itself: run `git lfs pull`"])
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and brackets without end
        raise CheckpointError(str(path), [f"is not JSON: {error}"]) from error
    if not isinstance(content, dict):
        raise CheckpointError(str(path), [f"must hold a JSON object, holds a {type(content).__name__}"])
    return content


class Reader:
    """Looks up dotted paths in one file and collects every problem on the way."""

    def __init__(self, content: dict[str, Any], layout: Layout):
        self.content = content
        self.layout: Layout = layout
        self.problems: list[str] = []

    def get(self, path: str) -> Any:
        """The value at `path`; `Required` where there is none. A null counts as none."""
        node: Any = self.content
        for part in path.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return Required if node is None else node

    def record(self, record: type, rows: Iterable[Key], root: str = "") -> dict[str, Any]:
        """The fields of `record` that `rows` name; fields with a problem are left out."""
        found = {}
        for key in rows:
            value = self.value(root + key.path(self.layout), getattr(record, key.field), key)
            if value is not Required:
                found[key.field] = value
        return found

    def value(self, path: str, example: Any, key: Key) -> Any:
        """The value at `path` as the type of `example`, or `Required` after noting why not."""
        value = self.get(path)
        if value is Required:
            if key.default is Required:
                self.problems.append(f"{path} is missing")
            return key.default
        wanted = type(example)
        if wanted is float and type(value) is int and value in _INT64:
            value = float(value)
        if type(value) is not wanted:
            self.problems.append(f"{path} must be of type {wanted.__name__}, is {json.dumps(value)[:80]}")
        elif wanted is int and value not in _INT64:
            self.problems.append(f"{path} must be less than 2^63")
        elif wanted is not bool and not (math.isfinite(value) and (value > 0 or (value == 0 and key.zero_ok))):
            self.problems.append(f"{path} must be {'at least' if key.zero_ok else 'more than'} 0, is {value}")
        else:
            return value
        return Required

    def check_facts(self, facts: Iterable[Fact], root: str = "") -> None:
        for fact in facts:
            stated = self.get(root + fact.path)
            value = fact.when_absent if stated is Required else stated
            if value not in (fact.value, fact.alias):
                unsaid = " (what a file means that leaves it out)" if stated is Required else ""
                self.problems.append(
                    f"{root}{fact.path} is {json.dumps(value)}{unsaid}; only {json.dumps(fact.value)} is supported"
                )

    def check_strict_blocks(self, rows: Iterable[Key], facts: Iterable[Fact], root: str = "") -> None:
        named = {key.path(self.layout) for key in rows} | {fact.path for fact in facts}
        for block, harmless in STRICT_BLOCKS[self.layout].items():
            content = self.get(root + block)
            for name in content if isinstance(content, Mapping) else ():
                if f"{block}.{name}" not in named and name not in harmless:
                    self.problems.append(f"{root}{block}.{name} is not a key that this model family has")
