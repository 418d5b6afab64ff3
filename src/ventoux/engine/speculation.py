"""When to guess, how much, and what came of it: between the engine and a drafter.

Guessing pays while the weights that a step reads are its cost and guesses come true, and stops paying as sequences are
many or the text is hard to guess. Both are measured: for every number of sequences (by powers of two) and every number
of guesses, the tokens per second that such steps brought. Now and then another number is tried, for two steps, of which
the second counts: the first catches up on what the draft has not seen.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

import torch

from ventoux.engine.drafting import Drafter, Progress
from ventoux.engine.scheduler import Chunk, Scheduler
from ventoux.engine.sequence import Sequence
from ventoux.plan import EnginePlan

logger = logging.getLogger(__name__)
# Two of 64 steps are spent on another number of guesses: where those take twice as long, that is 3 %.
TRY_EVERY = 64
TRY_STEPS = 2
SMOOTHING = 0.2
FIRST_STEPS = 4  # of each number, when as many sequences are met for the first time


class Pace:
    def __init__(self, most: int, adaptive: bool = True):
        self.most, self.adaptive = most, adaptive
        self._rates: dict[tuple[int, int], float] = {}
        self._counts: Counter[tuple[int, int]] = Counter()
        self._steps = 0
        self._trying = most
        self._previous: dict[int, int] = {}  # guesses of the last step with as many sequences

    def choose(self, num_sequences: int) -> int:
        """Guesses per sequence for the next step."""
        if not self.adaptive:
            return self.most
        self._steps += 1
        bucket = num_sequences.bit_length()
        phase = self._steps % TRY_EVERY
        if phase == 0:
            self._trying = (self._trying - 1) % (self.most + 1)
        return self._trying if phase < TRY_STEPS else self._best(bucket)

    def note(self, num_sequences: int, guesses: int, num_tokens: int, seconds: float) -> None:
        """What a step of answers alone brought, guesses for the next one included."""
        bucket = num_sequences.bit_length()
        key = (bucket, guesses)
        if self._previous.get(bucket) == guesses and seconds > 0:
            rate, weight = num_tokens / seconds, max(SMOOTHING, 1 / (1 + self._counts[key]))
            self._rates[key] = self._rates.get(key, 0.0) * (1 - weight) + rate * weight
            self._counts[key] += 1
        self._previous[bucket] = guesses

    def _best(self, bucket: int) -> int:
        """The fastest, once each was seen a few times, from the most down."""
        for k in range(self.most, -1, -1):
            if self._counts[bucket, k] < FIRST_STEPS:
                return k
        return max(range(self.most + 1), key=lambda k: self._rates[bucket, k])


class Speculation:
    """Asks the drafter after every step, for as many tokens as there is use and room for."""

    def __init__(self, drafter: Drafter, scheduler: Scheduler, plan: EnginePlan, vocab_size: int):
        self.drafter, self.scheduler, self.plan = drafter, scheduler, plan
        self.vocab_size = vocab_size
        self.pace = Pace(plan.num_speculative_tokens, plan.adaptive_speculation)

    def guess(self, computed: list[tuple[Chunk, torch.Tensor]], began: float) -> None:
        """Leaves guesses in those sequences of a step that go on. `began`: when the step did, in monotonic seconds.

        A drafter that fails costs the guesses, not the requests.
        """
        going_on = [(chunk, hidden_TD) for chunk, hidden_TD in computed if chunk.sequence.finish_reason is None]
        answering = [chunk for chunk, _ in going_on if chunk.sequence.num_generated]
        most = self.pace.choose(len(answering))
        progress = [
            Progress(
                c.sequence, c.start, hidden_TD[: c.sequence.num_computed - c.start], self._wanted(c.sequence, most)
            )
            for c, hidden_TD in going_on
        ]
        try:
            proposals = self.drafter.propose(progress)
            if not all(0 <= token_id < self.vocab_size for token_ids in proposals for token_id in token_ids):
                raise ValueError("the drafter proposed what is no token")
            for p, token_ids in zip(progress, proposals, strict=True):
                p.sequence.draft_ids = token_ids[: p.wanted]
        except Exception:
            logger.exception("drafting failed; the next step has no guesses")
        if answering and all(chunk.num_known == 1 for chunk, _ in computed):
            guesses = max(len(chunk.draft_ids) for chunk, _ in computed)
            num_tokens = sum(len(p.hidden_KD) for p in progress)
            self.pace.note(len(answering), guesses, num_tokens, time.monotonic() - began)

    def _wanted(self, sequence: Sequence, most: int) -> int:
        """No more guesses than tokens may follow before the last one, and pages for them."""
        if not sequence.num_generated or sequence.num_wanted != 1:
            return 0
        count = len(sequence.token_ids)
        left = self.plan.max_model_len - count
        if sequence.params.max_tokens is not None:
            left = min(left, sequence.params.max_tokens - sequence.num_generated)
        wanted = min(most, left - 1)
        return wanted if wanted > 0 and self.scheduler.reserve(sequence, count + wanted) else 0
