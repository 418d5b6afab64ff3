"""Trains the bundled model: AdamW, warm-up, constant rate, then linear decay; resumable at any step.

A step depends on its number alone (data, offsets, learning rate), so an interrupted run continues as if it had not been
interrupted.

Each thread takes its own share of a step's conversations forward and backward, with operators that run on one thread:
products of a model this small are over before a second thread has joined in. Their gradients add up in the parameters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ventoux.model.mistral4 import Mistral4
from ventoux.model.moe import Router
from ventoux.ops.reference import REFERENCE
from ventoux.text.tokenizer import Tokenizer
from ventoux.train.demo_batches import Batch, StepShape, batches
from ventoux.train.demo_data import Example, examples
from ventoux.train.demo_model import demo_config
from ventoux.train.run import Run, Schedule
from ventoux.train.start import initialise

Tensor = torch.Tensor
NUM_CHARACTERS = 96  # nothing, and printable ASCII


@dataclass(frozen=True)
class TrainConfig:
    """`steps` in all, of which the last `decay_steps` bring the rate to zero."""

    steps: int = 5200
    decay_steps: int = 3500
    warmup_steps: int = 100
    tokens_per_step: int = 3072
    drawings_per_step: int = 6  # images of random text, for the reading loss alone
    num_threads: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    balance: float = 0.01  # weight of the load-balancing loss (Fedus et al., Switch Transformers, 2021, eq. 4)
    reading: float = 0.3  # weight of the loss that reads characters out of the vision tower
    max_offset: int = 8192
    drill_steps: int = 150  # copying drills alone for so long, then fading to a tenth over as many steps
    seed: int = 0
    judge_every: int = 200

    def drill_share(self, step: int) -> float:
        return max(0.1, min(1.0, 2.0 - step / max(self.drill_steps, 1))) if self.drill_steps else 0.0


class RouterWatch:
    """Collects what each router saw in a thread's forward, for the load-balancing loss; models know nothing of it."""

    def __init__(self, model: Mistral4):
        self._thread = threading.local()
        for module in model.modules():
            if isinstance(module, Router):
                module.register_forward_hook(self._note)

    @property
    def seen(self) -> list[tuple[Router, Tensor, Tensor]]:
        return self._thread.__dict__.setdefault("seen", [])

    def _note(self, router: Router, args: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        self.seen.append((router, args[0], output[1]))

    def balance_loss(self) -> Tensor:
        """Mean over layers of E * sum_e f_e P_e: f_e the share of choices, P_e the mean probability of expert e."""
        losses = []
        for router, x_TD, ids_TK in self.seen:
            probs_TE = F.linear(x_TD, router.weight).softmax(-1)
            num_experts = probs_TE.shape[1]
            share_E = torch.bincount(ids_TK.flatten(), minlength=num_experts) / ids_TK.numel()
            losses.append(num_experts * (share_E * probs_TE.mean(0)).sum())
        self.seen.clear()
        return torch.stack(losses).mean()

    def load(self) -> Tensor:
        """Share of choices per layer and expert [L, E] of the last forward; empties the record."""
        counts = [
            torch.bincount(ids.flatten(), minlength=router.weight.shape[0]) / ids.numel()
            for router, _, ids in self.seen
        ]
        self.seen.clear()
        return torch.stack(counts)


class Reader(nn.Module):
    """Names the characters under both halves of each patch from the vision tower's states; for training only."""

    def __init__(self, model: Mistral4):
        super().__init__()
        self.out = nn.Linear(model.vision_tower.config.hidden_size, 2 * NUM_CHARACTERS)

    def loss(self, states_PD: Tensor, characters_P2: Tensor) -> Tensor:
        logits_P2C = self.out(F.rms_norm(states_PD, states_PD.shape[-1:])).unflatten(-1, (2, NUM_CHARACTERS))
        return F.cross_entropy(logits_P2C.flatten(0, 1), characters_P2.flatten())


def forward(model: Mistral4, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [M, V] at the positions that have a target, those targets [M], and the vision tower's states [P, D]."""
    inputs, images = batch.inputs, [*batch.images, *batch.drawings]
    states_PD = model.vision_tower(images) if images else None
    if batch.images and states_PD is not None:
        grids = [model.vision_tower.grid(image) for image in batch.images]
        shown = states_PD[: sum(rows * cols for rows, cols in grids)]
        inputs = replace(inputs, image_rows_MD=model.multi_modal_projector(shown, grids))
    wanted = batch.targets_T >= 0
    return model.logits(model(inputs)[wanted]), batch.targets_T[wanted], states_PD


class Trainer:
    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, out: Path):
        self.config = config
        self.tokenizer = tokenizer
        self.model = Mistral4(demo_config(), REFERENCE)
        initialise(self.model, config.seed)
        torch.manual_seed(config.seed)  # the reader starts as nn.Linear does
        self.watch = RouterWatch(self.model)
        self.reader = Reader(self.model)
        self.pool = ThreadPoolExecutor(config.num_threads)
        self.shape = StepShape(config.tokens_per_step, config.drawings_per_step, config.num_threads)
        schedule = Schedule(config.steps, config.decay_steps, config.warmup_steps, config.learning_rate)
        self.run = Run({"model": self.model, "reader": self.reader}, schedule, config.weight_decay, out)

    def source(self, step: int) -> Iterator[Example]:
        return examples(self.config.seed * 1_000_003 + step, held_out=False)

    def train(self, report: Callable[[dict], None]) -> None:
        """Runs to the last step. `report` gets a record per step; the state is saved every few minutes."""
        cfg = self.config
        stream = batches(self.tokenizer, self.source, self.shape, cfg.max_offset, self.run.step, cfg.drill_share)
        self.run.loop(lambda: self.train_step(next(stream)), report, lambda: {"exact": self.judge()}, cfg.judge_every)

    def train_step(self, parts: list[Batch]) -> dict:
        num_targets = sum(int((part.targets_T >= 0).sum()) for part in parts)
        num_patches = sum(len(part.characters_P2) for part in parts)

        def work(part: Batch) -> tuple[float, float, float]:
            logits_MV, targets_M, states_PD = forward(self.model, part)
            loss = F.cross_entropy(logits_MV, targets_M, reduction="sum") / num_targets
            balance = self.watch.balance_loss() / len(parts)
            reading = torch.zeros(())
            if states_PD is not None:
                share = len(states_PD) / num_patches
                reading = self.reader.loss(states_PD, part.characters_P2) * share
            (loss + self.config.balance * balance + self.config.reading * reading).backward()
            return loss.item(), balance.item(), reading.item()

        losses, balances, readings = zip(*self.pool.map(work, parts), strict=True)
        moved = self.run.update(sum(part.num_tokens for part in parts))
        numbers = {"loss": sum(losses), "balance": sum(balances), "reading": sum(readings)}
        return {"targets": num_targets, **numbers, **moved}

    @torch.no_grad()
    def judge(self, num_tokens: int = 24576) -> dict[str, str]:
        """Held-out examples whose every target token is the model's first choice, per task: "right/all".

        That is what greedy decoding would write. Alphabet sentences, where many answers are right, hardly ever count.
        """

        def held_out(step: int) -> Iterator[Example]:
            return examples(10**9 + step, held_out=True)

        stream = batches(self.tokenizer, held_out, StepShape(num_tokens // 8, 0, 1), self.config.max_offset, 0)
        right: dict[str, list[int]] = {}
        for _ in range(8):
            (batch,) = next(stream)
            logits_MV, targets_M, _ = forward(self.model, batch)
            hits = torch.zeros_like(batch.targets_T, dtype=torch.bool)
            hits[batch.targets_T >= 0] = logits_MV.argmax(-1) == targets_M
            fine = hits | (batch.targets_T < 0)
            for task, ok in zip(batch.tasks, fine.split(batch.inputs.lengths), strict=True):
                tally = right.setdefault(task, [0, 0])
                tally[0] += bool(ok.all())
                tally[1] += 1
        self.watch.seen.clear()
        return {task: f"{a}/{b}" for task, (a, b) in sorted(right.items())}
