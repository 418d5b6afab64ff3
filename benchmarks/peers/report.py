"""From rounds of measurements to medians, shares of what the machine can do, ratios, and a table."""

from __future__ import annotations

import statistics
from typing import Any

from ventoux.evals.bench import spread

OURS = "ventoux "


def summary(rounds: list[list[dict[str, Any]]], model: dict[str, Any]) -> dict[str, Any]:
    """Everything by engine, in the order of the first round."""
    speeds = [line for entries in rounds for entry in entries for line in entry["cases"]]
    engines = [entry["engine"] for entry in rounds[0]]
    limits = {"memory_bytes_per_second": "bytes_per_second", "matrix_operations_per_second": "operations_per_second"}
    return {
        **{name: spread([line[rate] for line in speeds]) for name, rate in limits.items() if speeds},
        "engines": {engine: _engine(engine, rounds, model) for engine in engines},
        "ratios": _ratios(rounds, engines),
    }


def _engine(engine: str, rounds: list[list[dict[str, Any]]], model: dict[str, Any]) -> dict[str, Any]:
    entries = [entry for entries in rounds for entry in entries if entry["engine"] == engine]
    found: dict[str, Any] = {"cases": {}}
    for name in dict.fromkeys(line["case"] for entry in entries for line in entry["cases"]):
        lines = [line for entry in entries for line in entry["cases"] if line["case"] == name]
        if name == "load":
            found |= {key: lines[0][key] for key in ("versions", "note")}
            for key in ("start_seconds", "seconds"):
                found["load_seconds" if key == "seconds" else key] = spread([line[key] for line in lines])
        elif name == "memory":
            found["peak_bytes"] = max(line["peak_bytes"] for line in lines)
        else:
            found["cases"][name] = {
                "tokens_per_second": spread([line["tokens_per_second"] for line in lines]),
                **_shares(lines, model),
            }
    problems = [entry["problem"] for entry in entries if "problem" in entry]
    return {**found, "problems": problems} if problems else found


def _shares(lines: list[dict[str, Any]], model: dict[str, Any]) -> dict[str, Any]:
    """Medians over rounds of the share of the memory's speed (decode) or of the matrix units' (prefill)."""
    if "weight_bytes" in lines[0]:
        shares = [
            line["tokens_per_second"] / line["sequences"] * line["weight_bytes"] / line["bytes_per_second"]
            for line in lines
        ]
        new_tokens = [line["new_tokens"] for line in lines]
        return {"share_of_bandwidth": statistics.median(shares), "new_tokens": new_tokens}
    # The head multiplies one row of a prompt, and attention comes on top: neither is counted.
    active = model["shared_parameters"] - model["head_parameters"]
    active += model["expert_parameters"] * model["experts_per_token"] / model["experts"]
    shares = [line["tokens_per_second"] * 2 * active / line["operations_per_second"] for line in lines]
    return {"share_of_matrix_peak": statistics.median(shares), "cold": [line["cold"] for line in lines]}


def _ratios(rounds: list[list[dict[str, Any]]], engines: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """By case and engine of ours: how many times as fast as each peer's; the median over rounds that have both."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    rates = [
        {(e["engine"], c["case"]): c.get("tokens_per_second") for e in r for c in e["cases"] if not c.get("cold")}
        for r in rounds
    ]
    for case in dict.fromkeys(case for by_case in rates for (_, case), rate in by_case.items() if rate):
        for ours in (engine for engine in engines if engine.startswith(OURS)):
            for peer in (engine for engine in engines if not engine.startswith(OURS)):
                both = [(by[ours, case], by[peer, case]) for by in rates if {(ours, case), (peer, case)} <= by.keys()]
                if both:
                    ratio = statistics.median(mine / theirs for mine, theirs in both)
                    found.setdefault(case, {}).setdefault(ours, {})[peer] = ratio
    return found


def table(results: dict[str, Any]) -> str:
    """Tokens per second with their share of the roofline, start and memory; then ours over the best peer."""
    engines = results["engines"]
    cases = list(dict.fromkeys(case for found in engines.values() for case in found["cases"]))
    rows = [["tokens/s (of the roofline)", *cases, "first token, s", "peak, GiB"]]
    for engine, found in engines.items():
        row = [engine, *(_cell(found["cases"].get(case)) for case in cases)]
        start, peak = found.get("start_seconds"), found.get("peak_bytes")
        rows.append([*row, f"{start['median']:.1f}" if start else "-", f"{peak / 2**30:.2f}" if peak else "-"])
    for engine in (engine for engine in engines if engine.startswith(OURS)):
        best = [results["ratios"].get(case, {}).get(engine, {}) for case in cases]
        rows.append([f"{engine} / best peer", *(_least(ratios) for ratios in best), "", ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(_align(cell, i, widths[i]) for i, cell in enumerate(row)) for row in rows]
    notes = [f"{name}: {problem}" for name, problem in results["not_measured"].items()]
    notes += [f"{engine}: {problem}" for engine, found in engines.items() for problem in found.get("problems", ())]
    return "\n".join([*lines, *notes])


def _align(cell: str, column: int, width: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _cell(case: dict[str, Any] | None) -> str:
    if case is None:
        return "-"
    share = case.get("share_of_bandwidth", case.get("share_of_matrix_peak"))
    return f"{case['tokens_per_second']['median']:.1f} ({share:.0%})"


def _least(ratios: dict[str, float]) -> str:
    """Against the best peer, by which the ratio is the least."""
    if not ratios:
        return "-"
    peer = min(ratios, key=lambda name: ratios[name])
    return f"{ratios[peer]:.2f} {peer}"
