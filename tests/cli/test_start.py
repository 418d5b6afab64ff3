"""Help answers at once: no command loads what only its work needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ventoux import __version__
from ventoux.cli import COMMANDS, main

HEAVY = ("torch", "fastapi", "mistral_common", "rich", "numpy", "pydantic", "uvicorn", "httpx2", "huggingface_hub")


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)], ids=lambda words: words[0] if words else "-")
def test_help_imports_nothing_heavy(words):
    program = (
        "import sys\nfrom ventoux.cli import main\n"
        f"try:\n    main([*{words!r}, '--help'])\n"
        f"finally:\n    print('loaded:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: ventoux" in done.stdout
    assert done.stdout.endswith("loaded: []\n")


@pytest.mark.parametrize("what", ["latency", "throughput", "serve"])
def test_help_of_each_bench(what, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", what, "--help"])
    assert exit_.value.code == 0
    assert "--output FILE" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"ventoux {__version__}\n"


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_crash():
    """`ventoux inspect --json | head -1` must not end in a traceback."""
    program = (
        "import sys\nfrom types import SimpleNamespace\nfrom unittest.mock import patch\nimport ventoux.cli.inspect\n"
        "def run(args):\n    print('x' * 200_000)\n    return 0\n"
        "from ventoux.cli import main\n"
        "with patch.object(ventoux.cli.inspect, 'run', run):\n    sys.exit(main(['inspect']))"
    )
    command = f'{sys.executable} -c "$PROGRAM" | head -c 1'
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={"PROGRAM": program, "PATH": "/usr/bin:/bin"},
        timeout=60,
    )
    assert done.stdout == "x"
    assert "Traceback" not in done.stderr
