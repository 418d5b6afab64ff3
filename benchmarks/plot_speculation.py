"""Draws what `ventoux bench speculation` measured: the speed-up by acceptance and batch size, beside the limit.

.venv/bin/python benchmarks/plot_speculation.py benchmarks/results/NAME.json docs/images/speculation.svg
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


def main(source: Path, target: Path) -> None:
    result = json.loads(source.read_text())
    lines: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    limits: dict[float, float] = {}
    for row in result["results"]["speculation"]:
        lines[row["batch_size"]].append((row["acceptance"], row["speed_up"]))
        limits[row["acceptance"]] = row["limit"]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*sorted(limits.items()), strict=True), "k--", label="tokens per step (limit)")
    for batch_size, points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=f"batch of {batch_size}")
    axes.axhline(1, color="grey", linewidth=0.8)
    guesses = result["config"]["num_speculative_tokens"]
    axes.set(xlabel="chance of a guess to come true", ylabel="times as fast as without", ylim=(0, None))
    axes.set_title(f"{result['model']}, {guesses} guesses a step, {result['date'][:10]}", fontsize="medium")
    axes.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
