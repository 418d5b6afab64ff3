"""How many guesses pay: measured while the engine runs, at a bounded price.

Guessing pays while the weights that a step reads are its cost and guesses come true, and stops paying as sequences are
many or the text is hard to guess. So for every number of sequences (1, 2, up to 4, up to 8 and so on) and every number
of guesses the tokens and the seconds of such steps are averaged, and the fastest number is taken. The others are tried
in turn. What a trial loses against the fastest is paid out of an allowance of 1.5 % of the time, so that finding out
stays cheap whatever a guess costs: a number that halves the speed is tried seldom, one that comes near it often.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

# Share of the time that trials may lose, after a first credit of as many seconds as FIRST_CREDIT steps take.
SHARE = 0.015
FIRST_CREDIT = 8
# Steps of a trial. The first is not measured: it checks the guesses of another number, and the draft catches up in it.
TRIAL_STEPS = 6
# Steps that an average remembers. Tokens per step scatter by half their mean, so that 48 tell 7 % apart.
MEMORY = 48
# Where the search begins, and how many steps may guess before one of them has told what that brings.
FIRST_GUESSES = 3
UNTOLD_STEPS = 2 * TRIAL_STEPS
# While guesses do not pay, this many prompts to one that the draft reads, which is what a trial needs. Reading doubles
# the time of a prompt at worst (the bundled model), so that this is 3 % of it.
PROMPTS_TO_ONE_READ = 32
# How much of a batch must get guesses for a step to tell whether they pay. The others bring one token each.
TELLING_SHARE = 0.75
# A step counts as at most so many average ones: longer ones waited for something else (a machine that stood still), and
# would spoil an average for eighty times as long.
LONGEST_STEP = 4


@dataclass
class _Average:
    """Of the steps with one number of guesses."""

    tokens: float = 0.0
    seconds: float = 0.0
    count: int = 0

    def add(self, tokens: float, seconds: float) -> None:
        self.count += 1
        weight = max(1 / self.count, 1 / MEMORY)
        self.tokens += weight * (tokens - self.tokens)
        self.seconds += weight * (seconds - self.seconds)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


@dataclass
class _Search:
    """What is known for one number of sequences."""

    most: int
    measured: dict[int, _Average] = field(default_factory=dict)
    allowance: float | None = None  # seconds; None before anything is measured
    trial: int = 0
    steps_left: int = 0
    untold_steps: int = 0
    untold_prompts: int = 0

    @property
    def knows(self) -> bool:
        """Whether any guesses were measured."""
        return any(self.measured)

    def best(self) -> int | None:
        return max(self.measured, key=lambda k: self.measured[k].rate, default=None)

    def wants_prompt(self, at_most_untold: int) -> bool:
        """Whether guesses pay; while that is not known, True for so many prompts."""
        if self.knows:
            return self.best() != 0
        self.untold_prompts = min(self.untold_prompts, at_most_untold) + 1
        return self.untold_prompts <= at_most_untold

    def choose(self, first: int, may_try: bool) -> int:
        """`first`: where the search begins."""
        best = self.best()
        if best is None:
            self.untold_steps += may_try
            return first if may_try and self.untold_steps <= UNTOLD_STEPS else 0
        if not may_try:
            self.steps_left = 0
        elif self.steps_left == 0 and self.allowance is not None and self.allowance >= self._price(best):
            self.steps_left = TRIAL_STEPS
        if self.steps_left == 0:
            return best
        self.steps_left -= 1
        trial = self.trial
        if self.steps_left == 0:
            self.trial = self._after(trial, best)
        return trial

    def note(self, guesses: int, tokens: int, seconds: float, steady: bool) -> None:
        usual = self.measured.get(guesses, self.measured.get(self.best() or 0))
        if usual is not None:
            seconds = min(seconds, LONGEST_STEP * usual.seconds)
        if steady:
            self.untold_prompts = max(self.untold_prompts - 1, 0)  # something can be told here after all
            self.measured.setdefault(guesses, _Average()).add(tokens, seconds)
        best = self.best()
        if best is None:
            return
        if self.trial == best:
            self.trial = self._after(best, best)
        if self.allowance is None:
            self.allowance = FIRST_CREDIT * seconds
        elif guesses == best:
            self.allowance = min(self.allowance + SHARE * seconds, self._price(best))
        else:
            self.allowance -= max(seconds - tokens / self.measured[best].rate, 0.0)

    def _after(self, k: int, best: int) -> int:
        """The number to try after `k`, in turn."""
        following = (k + 1) % (self.most + 1)
        return following if following != best or self.most == 0 else (following + 1) % (self.most + 1)

    def _price(self, best: int) -> float:
        """Seconds that the next trial may lose. Of a number never measured: a step for each guess more."""
        known, now = self.measured.get(self.trial), self.measured[best]
        loss = known.seconds - known.tokens / now.rate if known else max(self.trial - best, 1) * now.seconds
        return TRIAL_STEPS * loss


class Pace:
    """`choose` for every step, then `note` what it brought.

    Args:
        most: Guesses per sequence and step that are allowed.
        adaptive: False: always `most`.
    """

    def __init__(self, most: int, adaptive: bool = True):
        self.most, self.adaptive = most, adaptive
        self._searches: defaultdict[int, _Search] = defaultdict(lambda: _Search(most))
        self._previous: tuple[int, int] | None = None  # bucket and guesses, of the step before this one
        self._chosen: tuple[int, int] | None = None
        self._tells = True  # of the last choice: whether enough sequences get guesses
        self._prompts = 0

    def choose(self, num_sequences: int, num_unfollowed: int = 0) -> int:
        """Guesses per sequence for the step that follows; so many of the sequences will get none."""
        if not self.adaptive:
            return self.most
        bucket = _bucket(num_sequences)
        self._tells = num_sequences - num_unfollowed >= TELLING_SHARE * num_sequences
        guesses = self._searches[bucket].choose(self._first(bucket), self._tells)
        self._previous, self._chosen = self._chosen, (bucket, guesses)
        return guesses

    def note(self, num_tokens: int, seconds: float) -> None:
        """What the step before the last choice brought: its tokens, and its seconds with the guessing after it."""
        if self._chosen is None or seconds <= 0:
            return
        bucket, guesses = self._chosen
        if guesses and not self._tells:
            return
        self._searches[bucket].note(guesses, num_tokens, seconds, self._chosen == self._previous)

    def _first(self, bucket: int) -> int:
        """Where a search begins: with what is best for fewer sequences, since guesses pay for those sooner."""
        smaller = (self._searches[k] for k in range(bucket - 1, 0, -1) if k in self._searches)
        known = (search.best() or 0 for search in smaller if search.knows)
        return next(known, min(self.most, FIRST_GUESSES))

    def reads_prompt(self, num_sequences: int) -> bool:
        """Whether the draft should read the prompt that comes now: if guesses pay, or to find out whether they do.

        To find out it reads as many in a row as come by while a batch is renewed twice: a trial needs one most of whose
        prompts were read. Where as many told nothing, 32 at least, it is as if guesses did not pay.
        """
        if not self.adaptive:
            return True
        bucket = _bucket(num_sequences)
        search, in_a_row = self._searches[bucket], 2 * _largest(bucket) - 1
        self._prompts += 1
        if search.wants_prompt(at_most_untold=max(in_a_row, PROMPTS_TO_ONE_READ)):
            return True
        return self._prompts % (PROMPTS_TO_ONE_READ * in_a_row) < in_a_row


# A full batch must not lie on a border, or every step after an answer's end would count for another bucket: the largest
# is a power of two, as limits are.
def _bucket(num_sequences: int) -> int:
    return (num_sequences - 1).bit_length() + 1 if num_sequences else 0


def _largest(bucket: int) -> int:
    """The most sequences of a bucket."""
    return 1 << (bucket - 1)
