"""A training run's log as curves: losses, what held-out examples got right, and how evenly the experts are used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ventoux.errors import ConfigError

LOSSES = {"loss": "next token", "reading": "characters in images", "balance": "router balance"}
POINTS = 300  # per curve: more are not seen, and make the file large


def read_log(path: Path) -> list[dict[str, Any]]:
    """Raises ConfigError if there is none, or nothing in it."""
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
    if not records:
        raise ConfigError(f"{path} is empty.")
    return records


def averaged(values: Sequence[float], count: int = POINTS) -> list[float]:
    """At most `count` means of neighbours."""
    width = -(-len(values) // count)
    return [sum(part) / len(part) for part in (values[i : i + width] for i in range(0, len(values), width))]


def accuracies(records: Sequence[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Per task the steps at which it was judged, and the share of held-out examples that were right."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        for task, tally in record.get("exact", {}).items():
            right, asked = map(int, tally.split("/"))
            steps, shares = curves.setdefault(task, ([], []))
            steps.append(record["step"])
            shares.append(right / asked)
    return curves


def plot(log: Path, file: Path) -> None:
    """Draws `log` (a run's log.jsonl) into `file`, whose ending says how: .svg, .png, .pdf.

    Raises ConfigError without matplotlib, or without a log.
    """
    records = read_log(log)
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("Plots need matplotlib: pip install 'ventoux[demo]'.") from error
    loads = [record["experts"] for record in records if "experts" in record]
    figure = Figure(figsize=(9, 10 if loads else 7), layout="constrained")
    FigureCanvasSVG(figure)
    above, middle, *below = figure.subplots(3 if loads else 2, 1)
    steps = averaged([record["step"] for record in records])
    for name, label in LOSSES.items():
        above.plot(steps, averaged([record.get(name, 0.0) for record in records]), label=label)
    above.set(title="losses", yscale="log", xlabel="step")
    for task, (at, shares) in accuracies(records).items():
        middle.plot(at, shares, label=task, marker=".")
    middle.set(title="held-out examples right, with the correct text before each token", ylim=(0, 1.02), xlabel="step")
    for axes in (above, middle):
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    for axes in below:
        shown = axes.imshow(loads[-1], aspect="auto", vmin=0, cmap="viridis")
        figure.colorbar(shown, ax=axes, label="share of a layer's choices")
        axes.set(title="experts, at the last judging", xlabel="expert", ylabel="layer")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ventoux"}):
        figure.savefig(file)
