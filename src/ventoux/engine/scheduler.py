"""Who computes how many tokens in the next step: budget, chunks, admission, prefix reuse, preemption. No torch.

The order is decided by arrival alone. Decodes go first (one token each), then chunks of prompts, then new sequences;
what is left of the budget goes to guesses at the decodes' next tokens.
When pages run out, the youngest running sequence gives its pages back and is recomputed later; its tokens stay.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace

from ventoux.cache.pages import PagePool
from ventoux.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens of a sequence from position `start` on, to be computed in this step: known ones, then guesses."""

    sequence: Sequence
    start: int
    num_known: int
    draft_ids: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return self.num_known + len(self.draft_ids)

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def token_ids(self) -> list[int]:
        return [*self.sequence.token_ids[self.start : self.start + self.num_known], *self.draft_ids]

    @property
    def is_last(self) -> bool:
        """After this chunk every known token is computed, so the next one can be sampled."""
        return self.start + self.num_known == len(self.sequence.token_ids)


@dataclass(frozen=True)
class SchedulerConfig:
    max_num_seqs: int
    max_num_batched_tokens: int
    page_size: int
    enable_prefix_caching: bool = True


class Scheduler:
    def __init__(self, config: SchedulerConfig, pool: PagePool):
        self.config = config
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence, *, first: bool = False) -> None:
        (self.waiting.appendleft if first else self.waiting.append)(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its pages."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step; empty if there is nothing to do."""
        budget = self.config.max_num_batched_tokens
        chunks: list[Chunk] = []
        preempted_before = self.num_preemptions
        decodes = [s for s in self.running if s.num_wanted == 1]
        prefills = [s for s in self.running if s.num_wanted > 1]
        for sequence in decodes + prefills:
            # An earlier sequence of this loop may have preempted this one.
            if budget == 0 or sequence not in self.running:
                continue
            length = min(sequence.num_wanted, budget)
            if self._make_room(sequence, sequence.num_computed + length, chunks):
                chunks.append(Chunk(sequence, sequence.num_computed, length))
                budget -= length
        # Who was preempted just now would take back at once the pages that were freed by it.
        if self.num_preemptions == preempted_before:
            self._admit(budget, chunks)
        return self._with_guesses(chunks)

    def commit(self, sequence: Sequence, count: int) -> None:
        """Notes that the next `count` tokens' latents are written; full pages can be found by others from now on."""
        start = sequence.num_computed
        sequence.num_computed += count
        if not self.config.enable_prefix_caching:
            return
        size = self.config.page_size
        full = sequence.num_computed // size
        names = sequence.page_hashes(size, full)
        for i in range(start // size, full):
            self.pool.publish(sequence.pages[i], names[i])

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Gives a running sequence the pages of its first `num_tokens`, if they can be had without taking any away."""
        return self._grow(sequence, num_tokens)

    def _with_guesses(self, chunks: list[Chunk]) -> list[Chunk]:
        """Guesses get what is left of the budget: no prompt waits for them. Their pages were reserved."""
        left = self.config.max_num_batched_tokens - sum(chunk.num_known for chunk in chunks)
        for i, chunk in enumerate(chunks):
            draft_ids = tuple(chunk.sequence.draft_ids[:left])
            if draft_ids:
                chunks[i] = replace(chunk, draft_ids=draft_ids)
                left -= len(draft_ids)
        return chunks

    def _admit(self, budget: int, chunks: list[Chunk]) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            sequence = self.waiting[0]
            self._reuse_prefix(sequence)
            length = min(sequence.num_wanted, budget)
            if not self._grow(sequence, sequence.num_computed + length):
                self._free(sequence)
                return
            self.waiting.popleft()
            self.running.append(sequence)
            if sequence.num_cached is None:  # after a preemption it finds its own pages, which saved nothing
                sequence.num_cached = sequence.num_computed
                sequence.queue_seconds = time.monotonic() - sequence.arrived
                self.prefix_queries += len(sequence.token_ids)
                self.prefix_hits += sequence.num_computed
            chunks.append(Chunk(sequence, sequence.num_computed, length))
            budget -= length

    def _reuse_prefix(self, sequence: Sequence) -> None:
        """Takes over cached pages. At least one token is left to compute: its logits are needed."""
        # Log-probabilities of the prompt need every position's hidden state, which no cache holds.
        if not self.config.enable_prefix_caching or sequence.params.prompt_logprobs is not None:
            return
        size = self.config.page_size
        usable = (len(sequence.token_ids) - 1) // size
        sequence.pages = self.pool.find(sequence.page_hashes(size, usable))
        sequence.num_computed = len(sequence.pages) * size

    def _make_room(self, sequence: Sequence, num_tokens: int, chunks: list[Chunk]) -> bool:
        """Grows a running sequence, preempting from the young end; False if it had to give way itself."""
        while not self._grow(sequence, num_tokens):
            victim = self.running[-1]
            self._preempt(victim)
            chunks[:] = [c for c in chunks if c.sequence is not victim]
            if victim is sequence:
                return False
        return True

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        missing = -(-num_tokens // self.config.page_size) - len(sequence.pages)
        if missing <= 0:
            return True
        pages = self.pool.take(missing)
        if pages is None:
            return False
        sequence.pages += pages
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages = []
        sequence.draft_ids = []
        sequence.num_computed = 0
