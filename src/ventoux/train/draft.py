"""Trains an EAGLE draft for a model, on recordings of its own answers (Li et al., EAGLE, 2024, section 4.2).

The loss is taken where the answer is: cross-entropy against the token that came, and smooth L1 against the hidden state
that the model itself had one position later. An answer counts with the root of its length: by tokens alone, one trace
would outweigh thirty greetings. A share of the hidden states that the draft reads are its own of a first pass, as they
will be when it continues its guesses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ventoux.checkpoint.files import Checkpoint
from ventoux.checkpoint.load import load_draft
from ventoux.config import ModelConfig
from ventoux.errors import ConfigError
from ventoux.model.decoder import ForwardInputs
from ventoux.model.eagle import Draft
from ventoux.model.mistral4 import Mistral4
from ventoux.ops.formats import dense
from ventoux.ops.reference import REFERENCE
from ventoux.train.record import Recording, load_recordings
from ventoux.train.run import Run, Schedule
from ventoux.train.start import fan_in_noise

Tensor = torch.Tensor


@dataclass(frozen=True)
class DraftTrainConfig:
    steps: int = 900
    decay_steps: int = 650
    warmup_steps: int = 50
    tokens_per_step: int = 4096
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    # Of the smooth L1 loss against the model's next hidden state; ten times the cross-entropy's, as in the paper.
    # At a tenth of it, after 431 steps 62 % of the tokens were guessed that 400 steps of regression alone had at 82 %.
    regression: float = 10.0
    own_states: float = 0.4  # share of the hidden states that are the draft's own
    num_threads: int = 2
    judge_every: int = 250
    seed: int = 0


@dataclass(frozen=True)
class DraftBatch:
    """Packed slots: position P reads token P + 1 and the hidden state at P, and is to say token P + 2."""

    inputs: ForwardInputs
    hidden_TD: Tensor
    targets_T: Tensor  # -100 outside of the answer
    weights_T: Tensor  # of the targets' losses: 1 / sqrt(targets of the same answer); 0 outside
    next_hidden_TD: Tensor  # the model's hidden state at P + 1; zero for the last slot of each, which has none
    has_next_T: Tensor


def draft_config(target: ModelConfig, num_layers: int = 2) -> ModelConfig:
    """The published draft's shape beside this target: dense layers of the target's widths."""
    text = replace(target.text, num_hidden_layers=num_layers, first_k_dense_replace=num_layers)
    return replace(target, text=text, vision=None, is_draft=True)


def pack(recordings: list[Recording]) -> DraftBatch:
    ids, lengths, hidden, targets, weights, nexts, has_next, image_idx, image_rows = ([] for _ in range(9))
    for r in recordings:
        count = len(r.hidden_PD)
        ids.append(r.token_ids_T[1 : count + 1].long())
        is_target = torch.arange(2, count + 2) >= r.num_prompt
        targets.append(torch.where(is_target, r.token_ids_T[2 : count + 2].long(), -100))
        weights.append(is_target / is_target.sum().clamp(min=1).sqrt())
        hidden.append(r.hidden_PD.float())
        nexts.append(F.pad(r.hidden_PD[1:].float(), (0, 0, 0, 1)))
        has_next.append(torch.arange(count) < count - 1)
        ahead = r.image_idx_M - 1
        seen = (ahead >= 0) & (ahead < count)
        image_idx.append(ahead[seen] + sum(lengths))
        image_rows.append(r.image_rows_MD[seen].float())
        lengths.append(count)
    idx = torch.cat(image_idx)
    inputs = ForwardInputs(
        torch.cat(ids),
        torch.cat([torch.arange(n) for n in lengths]),
        tuple(lengths),
        image_idx_M=idx if len(idx) else None,
        image_rows_MD=torch.cat(image_rows) if len(idx) else None,
    )
    return DraftBatch(inputs, *(torch.cat(rows) for rows in (hidden, targets, weights, nexts, has_next)))


@torch.no_grad()
def initialise_draft(draft: Draft, seed: int) -> None:
    """Fan-in scaled noise; the layers start by passing the model's hidden state on."""
    fan_in_noise(draft, draft.config.num_hidden_layers, torch.Generator().manual_seed(seed))
    D = draft.config.hidden_size
    draft.eagle_linear.weight[:, D:] += torch.eye(D)


def first_draft(target: ModelConfig, seed: int, start: Checkpoint | None = None) -> Draft:
    """What training begins with: noise, or a draft's weights, of the same model trained less for instance.

    Raises ConfigError if they are not of `draft_config`'s shape for this model.
    """
    draft = Draft(draft_config(target).text, REFERENCE)
    if start is None:
        initialise_draft(draft, seed)
        return draft
    try:
        draft.load_state_dict(load_draft(start, REFERENCE, dtype=torch.float32).state_dict())
    except RuntimeError as error:  # torch's way to list tensors that do not fit
        raise ConfigError(f"--start-from: not a draft of this model's shape ({error}).") from error
    return draft


class DraftTrainer:
    """`recordings` are files written by `record`, of which the last is held out; `draft` is trained in place.

    Of the target only embeddings and head are used. The head's product is the reference's, whatever operators the
    target was loaded with: native ones pass no gradients on.
    """

    def __init__(self, config: DraftTrainConfig, target: Mistral4, draft: Draft, recordings: list[Path], out: Path):
        self.config = config
        self.decoder = target.language_model.float().requires_grad_(False)
        self.head_VD = dense(target.lm_head.weight, torch.float32).detach().float()
        self.draft = draft
        self.files, self.held_out = recordings[:-1], load_recordings(recordings[-1])
        schedule = Schedule(config.steps, config.decay_steps, config.warmup_steps, config.learning_rate)
        self.run = Run({"draft": self.draft}, schedule, config.weight_decay, out)
        self.pool = ThreadPoolExecutor(config.num_threads)

    def train(self, report: Callable[[dict], None]) -> None:
        """Runs to the last step; `report` gets a record per step."""
        stream = self._recordings()
        self.run.loop(lambda: self.train_step(self._take(stream)), report, self.judge, self.config.judge_every)

    def _recordings(self) -> Iterator[Recording]:
        """Endless; each pass over the files in another order. A resumed run goes on with a pass of its own."""
        rng = random.Random(f"{self.config.seed} {self.run.step}")
        while True:
            for path in rng.sample(self.files, len(self.files)):
                recordings = load_recordings(path)
                rng.shuffle(recordings)
                yield from (r for r in recordings if len(r.hidden_PD) > 1)

    def _take(self, stream: Iterator[Recording]) -> list[DraftBatch]:
        """One step's recordings, dealt over the threads."""
        heaps: list[list[Recording]] = [[] for _ in range(self.config.num_threads)]
        sizes = [0] * len(heaps)
        while sum(sizes) < self.config.tokens_per_step:
            least = sizes.index(min(sizes))
            heaps[least].append(next(stream))
            sizes[least] += len(heaps[least][-1].hidden_PD)
        return [pack(heap) for heap in heaps if heap]

    def train_step(self, parts: list[DraftBatch]) -> dict:
        # At least 1: answers may be empty, prompts of other models' conversations too.
        num_targets = max(sum(int((part.targets_T >= 0).sum()) for part in parts), 1)
        weight = max(sum(float(part.weights_T.sum()) for part in parts), 1e-6)

        def work(index: int, part: DraftBatch) -> tuple[float, float, int]:
            with torch.no_grad():
                states_TD = self._states(part, part.hidden_TD)
            seed = random.Random(f"{self.config.seed} {self.run.step} {index}").getrandbits(63)
            chance_T = torch.rand(len(states_TD), generator=torch.Generator().manual_seed(seed))
            own_T = chance_T < self.config.own_states
            states_TD = self._states(part, torch.where(own_T[:, None], _shifted(part, states_TD), part.hidden_TD))
            wanted = part.targets_T >= 0
            logits_MV = self._logits(states_TD[wanted])
            targets_M = part.targets_T[wanted]
            guess = part.weights_T[wanted] @ F.cross_entropy(logits_MV, targets_M, reduction="none") / weight
            near = wanted & part.has_next_T
            distances = F.smooth_l1_loss(states_TD[near], part.next_hidden_TD[near], reduction="none").mean(1)
            regression = part.weights_T[near] @ distances / weight
            (guess + self.config.regression * regression).backward()
            return guess.item(), regression.item(), int((logits_MV.argmax(-1) == targets_M).sum())

        guesses, regressions, hits = zip(*self.pool.map(work, *zip(*enumerate(parts), strict=True)), strict=True)
        moved = self.run.update(sum(len(part.targets_T) for part in parts))
        numbers = {"loss": sum(guesses), "regression": sum(regressions), "right": sum(hits) / num_targets}
        return {**numbers, **moved}

    def _states(self, batch: DraftBatch, hidden_TD: Tensor) -> Tensor:
        return self.draft(self.decoder.embed(batch.inputs), hidden_TD, batch.inputs)

    def _logits(self, states_MD: Tensor) -> Tensor:
        return REFERENCE.head(states_MD, self.head_VD)

    @torch.no_grad()
    def judge(self) -> dict[str, list[float]]:
        """Share of held-out tokens that are guessed first, from true hidden states, then from its own of one and of
        two passes before (where all the others are its own as well: an estimate from below)."""
        batch = pack([r for r in self.held_out if len(r.hidden_PD) > 1])
        wanted = batch.targets_T >= 0
        hidden_TD, shares = batch.hidden_TD, []
        for _ in range(3):
            states_TD = self._states(batch, hidden_TD)
            right_M = self._logits(states_TD[wanted]).argmax(-1) == batch.targets_T[wanted]
            shares.append(round(float(right_M.float().mean()), 3))
            hidden_TD = _shifted(batch, states_TD)
        return {"held_out": shares}


def _shifted(batch: DraftBatch, states_TD: Tensor) -> Tensor:
    """The state that each slot's predecessor came to; the first of every sequence keeps the model's."""
    before_TD = states_TD.roll(1, 0)
    first_T = batch.inputs.positions_T == 0
    return torch.where(first_T[:, None], batch.hidden_TD, before_TD)
