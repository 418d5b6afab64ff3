"""What every training run shares: optimizer, learning rate, state file, log."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """`steps` in all: warm-up, a constant rate, and the last `decay_steps` bring it to zero."""

    steps: int
    decay_steps: int
    warmup_steps: int
    learning_rate: float

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = min(1.0, (self.steps - step) / self.decay_steps)
        return self.learning_rate * warm * left


class Run:
    """AdamW over named modules; everything that an interrupted run needs lies in one file, written atomically."""

    def __init__(self, modules: Mapping[str, nn.Module], schedule: Schedule, weight_decay: float, out: Path):
        self.modules, self.schedule, self.out = dict(modules), schedule, out
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.95), fused=True)
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0

    def parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules.values() for p in module.parameters()]

    @property
    def state_file(self) -> Path:
        return self.out / "state.pt"

    def resume(self) -> bool:
        """Goes on from the state file, if there is one."""
        if not self.state_file.exists():
            return False
        state = torch.load(self.state_file, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        return True

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"optimizer": self.optimizer.state_dict(), "step": self.step}
        state |= {"tokens": self.tokens, "seconds": self.seconds}
        partial = self.state_file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.state_file)

    def update(self, num_tokens: int) -> dict[str, float]:
        """One step along the gradients that are there; returns their norm (clipped at 1) and the rate."""
        rate = self.schedule.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += num_tokens
        return {"norm": norm.item(), "rate": rate}

    def loop(
        self,
        do_step: Callable[[], dict[str, Any]],
        report: Callable[[dict], None],
        judge: Callable[[], dict[str, Any]],
        judge_every: int,
        save_every_s: float = 150.0,
    ) -> None:
        """Steps to the end of the schedule. `report` gets a record per step, what `judge` found included."""
        saved = time.monotonic()
        while self.step < self.schedule.steps:
            start = time.monotonic()
            numbers = do_step()
            self.seconds += time.monotonic() - start
            last = self.step == self.schedule.steps
            if self.step % judge_every == 0 or last:
                numbers |= judge()
            counts = {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 1)}
            report(counts | {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in numbers.items()})
            if time.monotonic() - saved > save_every_s or last:
                self.save()
                saved = time.monotonic()


def log_to(path: Path) -> Callable[[dict], None]:
    """A `report` that appends one JSON line per record."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def report(record: dict) -> None:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    return report
