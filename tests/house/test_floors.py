"""The house: imports point down, heavy rooms stay out of light ones, and only config.py reads the environment.

The picture of the floors is FLOORS below; docs/architecture.md shows the same one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ventoux
from ventoux.cli import COMMANDS

ROOT = Path(ventoux.__file__).parent
# Longest prefix wins. A module may import from lower floors, and from its own folder or file group.
FLOORS: dict[str, int] = {
    "": 0,  # the package's own __init__
    "errors": 0,
    "config": 0,
    "speculative": 0,
    "plan": 0,
    "hardware": 0,
    "ops.spec": 1,
    "ops.formats": 1,
    "ops.native": 1,
    "ops": 2,
    "model": 3,
    "checkpoint": 4,
    "cache": 4,
    "engine": 5,
    "text": 5,
    "build": 6,
    "worker": 6,
    "supervisor": 6,
    "llm": 6,
    "server": 6,
    "train": 6,
    "evals": 6,
    "cli": 7,
    "__main__": 8,
}
# What a room may import beside lower floors: neighbours on its own floor, besides itself.
NEIGHBOURS: dict[str, set[str]] = {
    "config": {"errors"},
    "plan": {"config", "errors", "hardware"},
    "speculative": {"errors"},
    "text": {"engine"},  # request records only; see NO_TORCH
    "llm": {"build"},
    "worker": {"build"},
    "supervisor": {"worker"},
    "evals": {"llm", "build", "train"},
    "train": set(),
    "server": set(),
}
# Rooms that work without torch, in any process.
NO_TORCH = (
    "text",
    "server",
    "errors",
    "config",
    "plan",
    "speculative",
    "hardware",
    "worker",
    "supervisor",
    "cli",
    "engine.request",
    "engine.client",
    "engine.scheduler",
)


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found.append((".".join(parts), path))
    return found


def room_of(module: str) -> str:
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return module


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file names in any import, those inside functions and for types included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return {name.removeprefix("ventoux").removeprefix(".") for name in names if name.split(".")[0] == "ventoux"}


@pytest.mark.parametrize(("module", "path"), [(m, p) for m, p in modules() if m])
def test_imports_point_down(module, path):
    room = room_of(module)
    for target in imports_of(path):
        other = room_of(target)
        allowed = (
            FLOORS[other] < FLOORS[room]
            or other.split(".")[0] == room.split(".")[0]
            or other in NEIGHBOURS.get(room, ())
        )
        assert allowed, f"{module} (floor {FLOORS[room]}) imports {target} (floor {FLOORS[other]})"


def test_model_knows_no_requests_and_engine_no_text():
    for module, path in modules():
        targets = imports_of(path)
        if module.startswith("model"):
            assert not any(t.startswith(("engine", "cache", "checkpoint")) for t in targets), module
        if module.startswith("engine"):
            assert not any(t.startswith("text") for t in targets), module
        if module.startswith("server"):
            assert not any(t.startswith(("model", "ops", "cache", "build")) for t in targets), module


@pytest.mark.parametrize(("module", "path"), [(m, p) for m, p in modules() if m != "config"])
def test_only_config_reads_the_environment_and_nothing_is_global(module, path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Global), f"{module}:{node.lineno} uses global"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "getenv"), f"{module}:{node.lineno} reads the environment"


@pytest.mark.parametrize("room", NO_TORCH)
def test_rooms_without_torch(room):
    names = [m for m, _ in modules() if m == room or m.startswith(room + ".")]
    if room == "cli":
        # Commands import what they need when they run; the rest of the folder is what they then import.
        names = [f"cli.{command}" for command in COMMANDS]
    code = "\n".join(f"import ventoux.{name}" for name in names)
    code += "\nimport sys\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom ventoux.cli import main\n"
        "try:\n    main(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "names = {'torch', 'numpy', 'fastapi', 'mistral_common', 'rich', 'pydantic', 'huggingface_hub'}\n"
        "heavy = names & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_files_stay_short():
    long = {m: n for m, p in modules() if (n := len(p.read_text().splitlines())) > 350}
    assert not long, f"over 350 lines: {long}"
