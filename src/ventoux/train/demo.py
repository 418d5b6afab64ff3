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
from torch.utils.data import DataLoader, IterableDataset

from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.load import load_model
from ventoux.checkpoint.schemes import FORMAT_NAMES
from ventoux.errors import ConfigError
from ventoux.model.mistral4 import Mistral4
from ventoux.model.moe import Router
from ventoux.ops.reference import REFERENCE
from ventoux.text.tokenizer import Tokenizer
from ventoux.train.demo_batches import Batch, StepShape, batches
from ventoux.train.demo_data import DEFAULT_WEIGHTS, Example, examples
from ventoux.train.demo_images import NUM_LABELS, NUM_NAMING, ROW_LABELS
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
    drawings_per_step: int = 6  # images for the reading loss alone
    reading_steps: int = 400  # first steps, which hold nothing but drawings: eyes learn to read before they are asked
    drawings_per_reading_step: int = 32
    num_threads: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    balance: float = 0.01  # weight of the load-balancing loss (Fedus et al., Switch Transformers, 2021, eq. 4)
    reading: float = 0.3  # weight of the loss that reads characters out of the vision tower
    max_offset: int = 40960  # positions of long input reach so far, those of conversations a quarter
    drill_steps: int = 150  # drills alone for so long after reading, then fading to `drills` over as many steps
    drills: float = 0.12
    seed: int = 0
    judge_every: int = 200
    judge_tokens: int = 24576

    def shape(self, step: int) -> StepShape:
        """What step number `step` holds."""
        if step < self.reading_steps:
            return StepShape(0, self.drawings_per_reading_step, self.num_threads)
        drills = self.drills
        if self.drill_steps:
            drills = max(drills, min(1.0, 2.0 - (step - self.reading_steps) / self.drill_steps))
        return StepShape(self.tokens_per_step, self.drawings_per_step, self.num_threads, drills)


class Drawn(IterableDataset[list[Batch]]):
    """What a generator yields, as a data set: one process draws the next steps while this one computes."""

    def __init__(self, stream: Iterator[list[Batch]]):
        self.stream = stream

    def __iter__(self) -> Iterator[list[Batch]]:
        return self.stream


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
        """Summed over what is labelled, and a quarter of it for what holds nothing, per labelled half patch or row.

        A line's first characters count twice: they have to be brought over from another patch.
        """
        losses = []
        for logits, labels in self._logits(seen, batch):
            weights = (labels > 0).float() * 0.75 + 0.25
            if labels.shape[1] == ROW_LABELS:
                weights[:, -NUM_NAMING:] *= 2.0
            each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            losses.append((each * weights.flatten()).sum() / weights.sum())
        return torch.stack(losses).sum()

    def right(self, seen: Seen, batch: Batch) -> Tensor:
        """Of labelled half patches and of labels of rows: how many are named right, of how many [2, 2]."""
        counts = []
        for logits, labels in self._logits(seen, batch):
            counts.append([(logits.argmax(-1) == labels)[labels > 0].sum(), (labels > 0).sum()])
        return torch.tensor(counts)

    def _logits(self, seen: Seen, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Logits and labels of half patches and of rows."""
        of_both = (
            (seen.states_PD, self.of_patch, batch.characters_P2),
            (seen.rows_MD, self.of_row, batch.rows_MR),
        )
        return [
            (out(F.rms_norm(states, states.shape[-1:])).unflatten(-1, (-1, NUM_LABELS)), labels)
            for states, out, labels in of_both
        ]


@dataclass(frozen=True)
class Seen:
    """Of all images of a batch: the vision tower's states [P, D], and the rows that the decoder gets [M, D]."""

    states_PD: Tensor
    rows_MD: Tensor


def look(model: Mistral4, batch: Batch) -> Seen | None:
    """What is seen of a batch's images, None where it has none."""
    images = [*batch.images, *batch.drawings]
    if not images:
        return None
    states_PD = model.vision_tower(images)
    return Seen(states_PD, model.multi_modal_projector(states_PD, [model.vision_tower.grid(i) for i in images]))


def forward(model: Mistral4, batch: Batch) -> tuple[Tensor, Tensor, Seen | None]:
    """Logits [M, V] at the positions that have a target, those targets [M], and what was seen of images."""
    inputs, seen = batch.inputs, look(model, batch)
    if batch.images and seen is not None:
        grids = [model.vision_tower.grid(image) for image in batch.images]
        merge = model.vision_tower.config.spatial_merge_size**2
        inputs = replace(inputs, image_rows_MD=seen.rows_MD[: sum(rows * cols for rows, cols in grids) // merge])
    wanted = batch.targets_T >= 0
    return model.logits(model(inputs)[wanted]), batch.targets_T[wanted], seen


def plain_model(path: Path) -> Mistral4:
    """A checkpoint's model in fp32, all of its weights parameters.

    Raises:
        ConfigError: the checkpoint is quantized. What was rounded so far is nothing to train on, nor to average.
        CheckpointError: it cannot be read.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.quant_formats:
        formats = ", ".join(FORMAT_NAMES[form] for form in checkpoint.quant_formats)
        raise ConfigError(f"{path} is quantized ({formats}): take the checkpoint that it was made of.")
    return load_model(checkpoint, REFERENCE, dtype=torch.float32)


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
        schedule = Schedule(config.steps, config.decay_steps, config.warmup_steps, config.learning_rate)
        self.run = Run({"model": self.model, "reader": self.reader}, schedule, config.weight_decay, out)

    def start_from(self, path: Path) -> None:
        """Takes the weights of a checkpoint, or the weights and the reader of another run's state file.

        The optimizer starts anew. Raises ConfigError if there is no such file, it is no such state, or a checkpoint of
        another architecture or quantized; CheckpointError for a broken checkpoint.
        """
        if not path.exists():
            raise ConfigError(f"--start-from {path}: there is no such file or folder.")
        if path.is_dir():
            loaded = plain_model(path)
            try:
                self.model.load_state_dict(loaded.state_dict())
            except RuntimeError as error:  # names that are missing, shapes that differ
                raise ConfigError(f"--start-from {path}: not a model of this architecture ({error}).") from error
            return
        try:
            state = torch.load(path, weights_only=True)
            for name, module in self.run.modules.items():
                module.load_state_dict(state[name])
        except Exception as error:  # torch.load has many ways to say that a file is not one of its own
            raise ConfigError(f"--start-from {path}: not the state of such a run ({error}).") from error

    def source(self, step: int) -> Iterator[Example]:
        return examples(self.config.seed * 1_000_003 + step, held_out=False)

    def train(self, report: Callable[[dict], None]) -> None:
        """Runs to the last step. `report` gets a record per step; the state is saved every few minutes."""
        cfg = self.config
        drawn = Drawn(batches(self.tokenizer, self.source, cfg.shape, cfg.max_offset, self.run.step))
        stream = iter(DataLoader(drawn, batch_size=None, num_workers=1, prefetch_factor=4))
        self.run.loop(lambda: self.train_step(next(stream)), report, self.judge, cfg.judge_every)

    def train_step(self, parts: list[Batch]) -> dict:
        parts = [part for part in parts if part.num_tokens or part.drawings]
        num_targets = sum(int((part.targets_T >= 0).sum()) for part in parts)
        num_patches = sum(len(part.characters_P2) for part in parts)

        def work(part: Batch) -> tuple[float, float, float]:
            loss = balance = reading = torch.zeros(())
            if part.num_tokens:
                logits_MV, targets_M, seen = forward(self.model, part)
                loss = F.cross_entropy(logits_MV, targets_M, reduction="sum") / num_targets
                balance = self.watch.balance_loss() / len(parts)
            else:
                seen = look(self.model, part)
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
        `named`: shares of the labels of half patches and of rows that are read out right, of held-out images.
        `experts`: each expert's share of its layer's choices [L][E].
        """

        short = {task: share for task, share in DEFAULT_WEIGHTS.items() if not task.startswith("long")}

        def held_out(step: int) -> Iterator[Example]:
            return examples(10**9 + step, held_out=True, weights=short)

        shape = StepShape(self.config.judge_tokens // 8, 0, 1)
        stream = batches(self.tokenizer, held_out, lambda _: shape, self.config.max_offset, 0)
        right: dict[str, list[int]] = {}
        named = torch.zeros(2, 2)
        for _ in range(8):
            (batch,) = next(stream)
            logits_MV, targets_M, seen = forward(self.model, batch)
            if seen is not None:
                named += self.reader.right(seen, batch)
            hits = torch.zeros_like(batch.targets_T, dtype=torch.bool)
            hits[batch.targets_T >= 0] = logits_MV.argmax(-1) == targets_M
            fine = hits | (batch.targets_T < 0)
            for task, ok in zip(batch.tasks, fine.split(batch.inputs.lengths), strict=True):
                tally = right.setdefault(task, [0, 0])
                tally[0] += bool(ok.all())
                tally[1] += 1
        load_LE = self.watch.load()
        exact = {task: f"{a}/{b}" for task, (a, b) in sorted(right.items())}
        return {
            "exact": exact,
            "named": [round(right / max(count, 1), 4) for right, count in named.tolist()],
            "experts": [[round(share, 4) for share in layer] for layer in load_LE.tolist()],
        }
