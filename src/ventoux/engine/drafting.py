"""Guessing the tokens that come next, so that one forward can settle several of them.

A drafter proposes; nothing else. The engine computes the guesses together with a sequence's last token and then samples
position by position as it always does: a guess counts only if it is the very token that was sampled, and sampling goes
on behind it only then. So a drafter can change how fast tokens come and never which (docs/decisions/009).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ventoux.cache.latent import make_latent_cache
from ventoux.engine.batch import Span, build
from ventoux.engine.runner import DTYPES, Runner
from ventoux.engine.sequence import Sequence
from ventoux.model.eagle import Draft
from ventoux.ops.formats import Weight
from ventoux.plan import EnginePlan

Tensor = torch.Tensor


@dataclass(frozen=True)
class Progress:
    """What a step brought for a sequence that goes on.

    The hidden states [K, D] are the target's, at the positions from `start` on, guesses that did not come true left
    out. `wanted` is how many tokens may be proposed: 0 as long as the prompt is not through.
    """

    sequence: Sequence
    start: int
    hidden_KD: Tensor
    wanted: int


class Drafter(Protocol):
    def propose(self, progress: list[Progress]) -> list[list[int]]:
        """Up to `wanted` tokens for each; called after every step, with all sequences that the step computed."""
        ...


class NgramDrafter:
    """Prompt lookup (Saxena, 2023): what followed the last few tokens where they stood before.

    Looks for the last `longest` tokens, then for fewer, down to `shortest`, in the last `window` tokens.
    """

    def __init__(self, longest: int = 4, shortest: int = 2, window: int = 16384):
        self.longest, self.shortest, self.window = longest, shortest, window
        self._seen: WeakKeyDictionary[Sequence, array[int]] = WeakKeyDictionary()

    def propose(self, progress: list[Progress]) -> list[list[int]]:
        return [self._continuation(p.sequence, p.wanted) if p.wanted else [] for p in progress]

    def _continuation(self, sequence: Sequence, wanted: int) -> list[int]:
        seen = self._seen.setdefault(sequence, array("i"))
        seen.extend(sequence.token_ids[len(seen) :])
        recent = np.frombuffer(seen, dtype=np.int32)[-self.window :]
        # Where the last token stood before; of these places, those where the token before it did; and so on.
        places = np.flatnonzero(recent[:-1] == recent[-1])
        after = None
        for length in range(1, self.longest + 1):
            places = places[places >= length - 1]
            places = places[recent[places - length + 1] == recent[-length]]
            if not len(places):
                break
            if length >= self.shortest:
                after = int(places[-1]) + 1
        if after is None:
            return []
        guesses = recent[after : after + wanted].tolist()
        while len(guesses) < wanted:
            # The text has repeated itself up to its end: it goes on as the guesses began.
            guesses.append(guesses[len(guesses) - (len(recent) - after)])
        return guesses


class EagleDrafter:
    """The EAGLE head: continues the target's hidden states (see `Draft` for what a slot of its cache holds).

    Its latents lie in the same pages as the target's: page p of both caches holds the same positions, so sharing,
    preemption and prefix hits need no books of their own. The last slot of a shared page knows the token after the
    page, which may be another one for the next sequence, and what was forgotten while nobody wanted guesses was never
    written: that can spoil guesses, and nothing else.

    `head` turns its states into logits; by default it is the target's own. A coarser copy is read faster.
    """

    def __init__(self, draft: Draft, runner: Runner, plan: EnginePlan, head: Weight | None = None):
        self.draft, self.runner, self.plan = draft, runner, plan
        self.head = runner.model.lm_head.weight if head is None else head
        self.cache = make_latent_cache(
            draft.config, plan.num_pages, plan.page_size, DTYPES[plan.kv_cache_dtype], plan.device, zeroed=True
        )
        self._behind: WeakKeyDictionary[Sequence, _Behind] = WeakKeyDictionary()

    def propose(self, progress: list[Progress]) -> list[list[int]]:
        """First all positions not yet seen with the target's true hidden states, which overwrite what guessing left
        there; then one token per pass, each continuing the draft's own state."""
        proposals: list[list[int]] = [[] for _ in progress]
        due = [i for i, p in enumerate(progress) if self._note(p)]
        if not due:
            return proposals
        behind = [self._behind.pop(progress[i].sequence) for i in due]
        spans = [b.span(progress[i].sequence) for b, i in zip(behind, due, strict=True)]
        states_TD = self._run(spans, torch.cat([rows for b in behind for rows in b.rows]))
        ends = torch.tensor([len(span.token_ids) for span in spans]).cumsum(0) - 1
        asked = [n for n, i in enumerate(due) if progress[i].wanted]
        # The pass for the j-th guess of a chain, from the second on, writes the slot j - 2 behind the span.
        longest = self.plan.draft_max_model_len + 1
        wanted = [min(progress[due[n]].wanted, longest - spans[n].stop) for n in asked]
        chains = self._continue([spans[n] for n in asked], states_TD[ends[asked]], wanted)
        for n, chain in zip(asked, chains, strict=True):
            proposals[due[n]] = chain
        return proposals

    def _note(self, p: Progress) -> bool:
        """Adds to what the draft has not seen of a sequence; whether it has to see it now.

        That is when tokens are wanted, and in the prompt from time to time. Answers that nobody wants guesses for are
        forgotten but for their end: reading them would cost 6 % of the published model's arithmetic.
        """
        behind = self._behind.get(p.sequence)
        if behind is None or behind.stop != p.start:  # else: preempted, or found its prefix in the cache
            behind = self._behind[p.sequence] = _Behind(p.start)
        behind.add(p.hidden_KD)
        if behind.stop > self.plan.draft_max_model_len:
            del self._behind[p.sequence]
            return False
        if p.wanted or (behind.start < p.sequence.num_prompt and behind.stop - behind.start >= ROWS_BEHIND):
            return True
        behind.rows[-1] = p.hidden_KD.clone()  # a view would keep the states of the whole step
        behind.forget(ROWS_BEHIND)
        return False

    def _continue(self, spans: list[Span], states_ND: Tensor, wanted: list[int]) -> list[list[int]]:
        """Chains of `wanted` tokens each, from the draft's states at the ends of `spans`."""
        chains: list[list[int]] = [[] for _ in spans]
        alive = list(range(len(spans)))
        while alive:
            _, largest = self.draft.ops.scan(self.draft.ops.head(states_ND, self.head))
            for i, token_id in zip(alive, largest, strict=True):
                chains[i].append(token_id)
            kept = [n for n, i in enumerate(alive) if len(chains[i]) < wanted[i]]
            alive = [alive[n] for n in kept]
            if alive:
                nexts = [Span(spans[i].sequence, spans[i].stop + len(chains[i]) - 1, chains[i][-1:]) for i in alive]
                states_ND = self._run(nexts, states_ND[kept])
        return chains

    def _run(self, spans: list[Span], hidden_TD: Tensor) -> Tensor:
        inputs = build(spans, self.plan.page_size, self.runner.images, self.plan.device, ahead=1)
        return self.draft(self.runner.model.language_model.embed(inputs), hidden_TD, inputs, self.cache)


# Positions of an answer for which the target's states are kept while nobody wants guesses: 0.5 MB of 4096 bf16 values.
ROWS_BEHIND = 64


class _Behind:
    """Positions from `start` on that the draft has not seen yet, with the target's hidden states there."""

    def __init__(self, start: int):
        self.start = self.stop = start
        self.rows: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        self.rows.append(rows)
        self.stop += len(rows)

    def forget(self, most: int) -> None:
        """Keeps the last `most` rows."""
        while (excess := self.stop - self.start - most) > 0:
            first = self.rows.pop(0)
            if len(first) > excess:
                self.rows.insert(0, first[excess:].clone())
            self.start += min(excess, len(first))

    def span(self, sequence: Sequence) -> Span:
        """With the tokens one position further on; the last of them was just sampled."""
        return Span(sequence, self.start, sequence.token_ids[self.start + 1 : self.stop + 1])
