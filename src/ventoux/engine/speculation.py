"""When to guess and how much, between the engine and a drafter: the pace, and room for what is guessed."""

from __future__ import annotations

import logging
import time
from weakref import WeakKeyDictionary

from ventoux.engine.drafting import Drafter, Progress
from ventoux.engine.pace import Pace
from ventoux.engine.runner import Computed
from ventoux.engine.scheduler import Scheduler
from ventoux.engine.sequence import Sequence
from ventoux.plan import EnginePlan

logger = logging.getLogger(__name__)


class Speculation:
    """Asks the drafter between steps, for as many tokens as there is use and room for."""

    def __init__(self, drafter: Drafter, scheduler: Scheduler, plan: EnginePlan, vocab_size: int):
        self.drafter, self.scheduler, self.plan = drafter, scheduler, plan
        self.vocab_size = vocab_size
        self.pace = Pace(plan.num_speculative_tokens, plan.adaptive_speculation)
        self._last_step: list[Computed] = []
        self._answer_seconds: float | None = None
        # While guesses do not pay, few prompts are worth reading; a sequence whose prompt was not read gets no guesses.
        self.followed: WeakKeyDictionary[Sequence, bool] = WeakKeyDictionary()

    def follow(self, computed: list[Computed], seconds: float) -> None:
        """A step has computed these hidden states, in so many seconds."""
        self._last_step = computed
        self.drop_ended()
        # Only steps without prompts tell what guesses bring.
        self._answer_seconds = seconds if all(c.chunk.num_known == 1 for c in computed) else None

    def drop_ended(self) -> None:
        """Lets go of what ended sequences would have gone on from: an idle engine holds no hidden states."""
        self._last_step = [c for c in self._last_step if c.chunk.sequence.finish_reason is None]

    def guess(self) -> None:
        """Leaves guesses in those sequences of the last step that go on.

        A drafter that fails costs the guesses, not the requests.
        """
        going_on, self._last_step, began = self._last_step, [], time.monotonic()
        if not going_on:
            return
        sequences = [c.chunk.sequence for c in going_on]
        answering = [sequence for sequence in sequences if sequence.num_generated]
        self._meet(sequences, len(answering))
        followed = [c for c in going_on if self.followed[c.chunk.sequence]]
        most = self.pace.choose(len(answering), sum(not self.followed[sequence] for sequence in answering))
        progress = [self._progress(one, most) for one in followed]
        self._propose(progress)
        if self._answer_seconds is not None:
            num_tokens = sum(c.chunk.sequence.num_computed - c.chunk.start for c in going_on)
            self.pace.note(num_tokens, self._answer_seconds + time.monotonic() - began)

    def _meet(self, sequences: list[Sequence], num_answering: int) -> None:
        """Decides about those seen for the first time whether the drafter follows them."""
        for sequence in sequences:
            if sequence not in self.followed:
                # One whose prompt fitted into the step answers already, and was counted.
                also = sequence.num_generated == 0
                useful = self._useful(sequence, num_generated=1) > 0
                self.followed[sequence] = useful and self.pace.reads_prompt(num_answering + also)

    def _propose(self, progress: list[Progress]) -> None:
        try:
            proposals = self.drafter.propose(progress)
            if not all(0 <= token_id < self.vocab_size for token_ids in proposals for token_id in token_ids):
                raise ValueError("the drafter proposed what is no token")
            for p, token_ids in zip(progress, proposals, strict=True):
                p.sequence.draft_ids = token_ids[: p.wanted]
        except Exception:
            logger.exception("drafting failed; the next step has no guesses")

    def _progress(self, computed: Computed, most: int) -> Progress:
        sequence, start = computed.chunk.sequence, computed.chunk.start
        true_rows = computed.hidden_rows[: sequence.num_computed - start]
        return Progress(sequence, start, true_rows, self._wanted(sequence, most))

    def _wanted(self, sequence: Sequence, most: int) -> int:
        """No more guesses than there is use for, and pages for them."""
        if not sequence.num_generated or sequence.num_wanted != 1:
            return 0
        wanted = min(most, self._useful(sequence, sequence.num_generated))
        return wanted if wanted > 0 and self.scheduler.reserve(sequence, len(sequence.token_ids) + wanted) else 0

    def _useful(self, sequence: Sequence, num_generated: int) -> int:
        """How many guesses could come true behind so many tokens of the answer: the last of all is not guessed."""
        left = self.plan.max_model_len - sequence.num_prompt - num_generated
        if sequence.params.max_tokens is not None:
            left = min(left, sequence.params.max_tokens - num_generated)
        return left - 1
