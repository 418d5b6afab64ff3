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
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ventoux.model.mistral4 import Mistral4
from ventoux.model.moe import Router
from ventoux.ops.reference import REFERENCE
from ventoux.text.tokenizer import Tokenizer
from ventoux.train.demo_batches import Batch, StepShape, batches
from ventoux.train.demo_data import DEFAULT_WEIGHTS, Example, examples
from ventoux.train.demo_images import NUM_LABELS, ROW_LABELS
from ventoux.train.demo_model import demo_config
from ventoux.train.run import Run, Schedule
from ventoux.train.start import initialise

Tensor = torch.Tensor


@dataclass(frozen=True)
class TrainConfig:
    """`steps` in all, of which the last `decay_steps` bring the rate to zero."""

    steps: int = 4000
    decay_steps: int = 3200
    warmup_steps: int = 100
    tokens_per_step: int = 3072
    drawings_per_step: int = 2  # images of random text, for the reading loss alone
    num_threads: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    balance: float = 0.01  # weight of the load-balancing loss (Fedus et al., Switch Transformers, 2021, eq. 4)
    reading: float = 0.3  # weight of the loss that reads characters out of the vision tower
    max_offset: int = 40960  # positions of long input reach so far, those of conversations a quarter
    drill_steps: int = 150  # drills alone for so long, then fading to `drills` over as many steps
    drills: float = 0.07
    seed: int = 0
    judge_every: int = 200
    judge_tokens: int = 24576

    def drill_share(self, step: int) -> float:
        return max(self.drills, min(1.0, 2.0 - step / self.drill_steps)) if self.drill_steps else self.drills


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
        """Share of choices per layer and expert [L, E] since the last call; empties the record."""
        counts: dict[Router, Tensor] = {}
        for router, _, ids in self.seen:
            num_experts = router.weight.shape[0]
            counts[router] = counts.get(router, 0) + torch.bincount(ids.flatten(), minlength=num_experts)
        self.seen.clear()
        return torch.stack([count / count.sum() for count in counts.values()])


class Reader(nn.Module):
    """Names what is drawn, for training only: the characters under both halves of each patch from the vision tower's
    states, and what each merged patch holds of its line from the row that the decoder gets."""

    def __init__(self, model: Mistral4):
        super().__init__()
        self.of_patch = nn.Linear(model.vision_tower.config.hidden_size, 2 * NUM_LABELS)
        self.of_row = nn.Linear(model.config.text.hidden_size, ROW_LABELS * NUM_LABELS)

    def loss(self, seen: Seen, batch: Batch) -> Tensor:
        """Summed over what is labelled, and a quarter of it for what holds nothing, per labelled half patch or row."""
        losses = []
        for states, out, labels in (
            (seen.states_PD, self.of_patch, batch.characters_P2),
            (seen.rows_MD, self.of_row, batch.rows_MR),
        ):
            logits = out(F.rms_norm(states, states.shape[-1:])).unflatten(-1, (-1, NUM_LABELS))
            weights = (labels > 0).float() * 0.75 + 0.25
            each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            losses.append((each * weights.flatten()).sum() / weights.sum())
        return torch.stack(losses).sum()


@dataclass(frozen=True)
class Seen:
    """Of all images of a batch: the vision tower's states [P, D], and the rows that the decoder gets [M, D]."""

    states_PD: Tensor
    rows_MD: Tensor


def forward(model: Mistral4, batch: Batch) -> tuple[Tensor, Tensor, Seen | None]:
    """Logits [M, V] at the positions that have a target, those targets [M], and what was seen of images."""
    inputs, images = batch.inputs, [*batch.images, *batch.drawings]
    seen = None
    if images:
        states_PD = model.vision_tower(images)
        seen = Seen(states_PD, model.multi_modal_projector(states_PD, [model.vision_tower.grid(i) for i in images]))
    if batch.images and seen is not None:
        grids = [model.vision_tower.grid(image) for image in batch.images]
        merge = model.vision_tower.config.spatial_merge_size**2
        inputs = replace(inputs, image_rows_MD=seen.rows_MD[: sum(rows * cols for rows, cols in grids) // merge])
    wanted = batch.targets_T >= 0
    return model.logits(model(inputs)[wanted]), batch.targets_T[wanted], seen


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

    def start_from(self, state: Path) -> None:
        """Takes the weights of another run's state file; the reader and the optimizer start anew."""
        self.model.load_state_dict(torch.load(state, weights_only=True)["model"])

    def source(self, step: int) -> Iterator[Example]:
        return examples(self.config.seed * 1_000_003 + step, held_out=False)

    def train(self, report: Callable[[dict], None]) -> None:
        """Runs to the last step. `report` gets a record per step; the state is saved every few minutes."""
        cfg = self.config
        stream = batches(self.tokenizer, self.source, self.shape, cfg.max_offset, self.run.step, cfg.drill_share)
        self.run.loop(lambda: self.train_step(next(stream)), report, self.judge, cfg.judge_every)

    def train_step(self, parts: list[Batch]) -> dict:
        num_targets = sum(int((part.targets_T >= 0).sum()) for part in parts)
        num_patches = sum(len(part.characters_P2) for part in parts)

        def work(part: Batch) -> tuple[float, float, float]:
            logits_MV, targets_M, seen = forward(self.model, part)
            loss = F.cross_entropy(logits_MV, targets_M, reduction="sum") / num_targets
            balance = self.watch.balance_loss() / len(parts)
            reading = torch.zeros(())
            if seen is not None:
                reading = self.reader.loss(seen, part) * len(seen.states_PD) / num_patches
            (loss + self.config.balance * balance + self.config.reading * reading).backward()
            return loss.item(), balance.item(), reading.item()

        losses, balances, readings = zip(*self.pool.map(work, parts), strict=True)
        moved = self.run.update(sum(part.num_tokens for part in parts))
        numbers = {"loss": sum(losses), "balance": sum(balances), "reading": sum(readings)}
        return {"targets": num_targets, **numbers, **moved}

    @torch.no_grad()
    def judge(self) -> dict[str, Any]:
        """`exact`: held-out examples whose every target token is the model's first choice, per task: "right/all".

        That is what greedy decoding would write. Alphabet sentences, where many answers are right, hardly ever count.
        `experts`: each expert's share of its layer's choices [L][E].
        """

        short = {task: share for task, share in DEFAULT_WEIGHTS.items() if not task.startswith("long")}

        def held_out(step: int) -> Iterator[Example]:
            return examples(10**9 + step, held_out=True, weights=short)

        stream = batches(
            self.tokenizer, held_out, StepShape(self.config.judge_tokens // 8, 0, 1), self.config.max_offset, 0
        )
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
        load_LE = self.watch.load()
        exact = {task: f"{a}/{b}" for task, (a, b) in sorted(right.items())}
        return {"exact": exact, "experts": [[round(share, 4) for share in layer] for layer in load_LE.tolist()]}
