"""The engine: add, abort, step. One owner of scheduler, pages and device; everybody else sends messages.

A step reads: schedule, encode images, forward, sample, commit. Each request has its own failure boundary in every one
of these: what goes wrong for one ends that one.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from ventoux.cache.pages import PagePool
from ventoux.engine.drafting import Drafter
from ventoux.engine.masks import MaskCompiler, MaskFactory, MaskJob
from ventoux.engine.request import EngineOutput, EngineStats, FinishReason, Request, TokenOutput
from ventoux.engine.runner import Computed, Runner, computing
from ventoux.engine.sampler import Row, rows_of, sample, score_prompt, token_logprobs
from ventoux.engine.scheduler import Chunk, Scheduler, SchedulerConfig
from ventoux.engine.sequence import Sequence, make_sequences
from ventoux.engine.speculation import Speculation
from ventoux.errors import InvalidRequestError, NumericalError, UserError
from ventoux.model.mistral4 import Mistral4
from ventoux.plan import EnginePlan

logger = logging.getLogger(__name__)
# How long a step waits for a grammar if there is nothing else to do: aborts and new requests wait as long.
GRAMMAR_WAIT_SECONDS = 0.01


class Engine:
    """`mask_factory` turns a request's grammar into a TokenMask; without it grammars are refused.

    `make_drafter` builds what guesses `plan.num_speculative_tokens` tokens ahead; without it every step brings one.
    """

    def __init__(
        self,
        model: Mistral4,
        plan: EnginePlan,
        mask_factory: MaskFactory | None = None,
        make_drafter: Callable[[Runner], Drafter] | None = None,
    ):
        self.plan = plan
        self.config = model.config
        self.ops = model.ops
        self.masks = None if mask_factory is None else MaskCompiler(mask_factory)
        self.runner = Runner(model, plan)
        self.pool = PagePool(plan.num_pages)
        self.scheduler = Scheduler(
            SchedulerConfig(plan.max_num_seqs, plan.max_num_batched_tokens, plan.page_size, plan.enable_prefix_caching),
            self.pool,
        )
        self.speculation: Speculation | None = None
        if make_drafter is not None:
            self.speculation = Speculation(make_drafter(self.runner), self.scheduler, plan, self.config.text.vocab_size)
        self.sequences: dict[tuple[str, int], Sequence] = {}
        # The other answers to a request with n > 1 wait until the first has computed the prompt that they share.
        self.siblings: dict[str, list[Sequence]] = {}
        self.seeds: dict[str, int] = {}
        self._seeder = random.Random(plan.seed)
        self._stats = EngineStats(num_pages=plan.num_pages, num_free_pages=plan.num_pages)
        self._stats.spec_decode_num_accepted_tokens_per_pos = [0] * plan.num_speculative_tokens

    # ------------------------------------------------------------------------------------------------- from outside

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
            InvalidRequestError: a value is out of range, or the images do not fit the prompt. An unusable grammar shows
                later, and ends the request with an error.
            ContextLengthError: the prompt leaves no room for an answer.
        """
        params = request.params
        if request.request_id in self.seeds:
            raise InvalidRequestError(f"request id {request.request_id!r} is already running.", param="request_id")
        if params.grammar is not None and self.masks is None:
            raise InvalidRequestError("this engine was built without grammars.", param="grammar")
        sequences = make_sequences(request, self.config, self.plan.max_model_len)
        self.seeds[request.request_id] = self._seeder.getrandbits(63) if params.seed is None else params.seed
        for sequence in sequences:
            self.sequences[sequence.key] = sequence
        if self.masks is not None and params.grammar is not None:
            self.masks.submit(params.grammar, sequences)
        else:
            self._enqueue(sequences)

    def abort(self, request_id: str, index: int | None = None) -> list[EngineOutput]:
        """Ends a request, or one sequence of it, now. Pages are free when this returns."""
        keys = [key for key in self.sequences if key[0] == request_id and index in (None, key[1])]
        outputs = [self._finish(self.sequences[key], "abort") for key in keys]
        if self.speculation is not None:
            self.speculation.drop_ended()
        return outputs

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or (self.masks is not None and self.masks.has_work)

    @computing
    def step(self, begin: Callable[[list[Chunk]], None] = lambda chunks: None) -> list[EngineOutput]:
        """Computes one batch and returns what it brought, if anything; `begin` gets its chunks before that."""
        outputs = self._collect_masks()
        if not self.scheduler.has_work:
            return outputs
        # Not right behind the step that this is about: so its tokens go out before the draft reads a prompt.
        if self.speculation is not None:
            self.speculation.guess()
        began = time.monotonic()
        begin(chunks := self.scheduler.schedule())
        chunks = self._encode_images(chunks, outputs)
        computed = self._forward(chunks, outputs)
        for one, rows in zip(computed, self._due_rows(computed), strict=True):
            sequence, tokens = one.chunk.sequence, list[TokenOutput]()
            try:
                output = self._advance(one, rows, tokens)
            except Exception as error:
                output = self._fail(sequence, error, tokens)
            for token, experts in zip(tokens, sequence.routes, strict=False):
                token.experts = experts
            if output is not None:
                outputs.append(output)
        if self.speculation is not None:
            self.speculation.follow(computed, time.monotonic() - began)
        self._stats.num_steps += 1
        return outputs

    def stats(self) -> EngineStats:
        scheduler, stats = self.scheduler, self._stats
        stats.num_running = len(scheduler.running)
        stats.num_waiting = len(scheduler.waiting) + sum(map(len, self.siblings.values()))
        stats.num_waiting += self.masks.num_waiting if self.masks is not None else 0
        stats.num_free_pages = self.pool.num_idle
        stats.num_preemptions = scheduler.num_preemptions
        stats.prefix_cache_queries = scheduler.prefix_queries
        stats.prefix_cache_hits = scheduler.prefix_hits
        stats.num_images_encoded = self.runner.num_images_encoded
        return stats

    # ----------------------------------------------------------------------------------------------------- admission

    def _enqueue(self, sequences: list[Sequence]) -> None:
        """The answers to a request queue up: the first in the scheduler, the others behind it."""
        first, *others = sequences
        self.siblings[first.request.request_id] = others
        self.scheduler.add(first)

    def _collect_masks(self) -> list[EngineOutput]:
        """Requests whose grammar is ready queue up; one whose grammar is unusable ends here."""
        outputs: list[EngineOutput] = []
        if self.masks is None or not self.masks.has_work:
            return outputs
        for job in self.masks.collect(0.0 if self.scheduler.has_work else GRAMMAR_WAIT_SECONDS):
            if not (live := job.live):
                continue
            try:
                self._set_masks(job)
                self._enqueue(live)
            except Exception as error:
                outputs += [self._fail(sequence, error) for sequence in live]
        return outputs

    def _set_masks(self, job: MaskJob) -> None:
        """Each answer follows a copy of its own. Raises what compilation raised."""
        if isinstance(job.outcome, Exception):
            raise job.outcome
        assert job.outcome is not None, "a job that was collected has an outcome, or nobody left"
        for sequence in job.live:
            sequence.mask = job.outcome.clone()

    # ------------------------------------------------------------------------------------------------------ one step

    def _encode_images(self, chunks: list[Chunk], outputs: list[EngineOutput]) -> list[Chunk]:
        """Encodes the images that these chunks touch; a request whose image fails ends here."""
        if len(self.runner.images) <= self.plan.image_cache_size and not any(c.sequence.request.images for c in chunks):
            return chunks  # nothing to encode, and nothing to let go of
        # Rows that cannot be computed again are kept for all who may want them, running or not.
        in_use = {
            image.content_hash
            for s in self.sequences.values()
            for image in s.request.images
            if not image.pixels or s in self.scheduler.running
        }
        good: list[Chunk] = []
        for chunk in chunks:
            slots = chunk.sequence.image_slots
            touched = sorted(set(slots.image[slots.between(chunk.start, chunk.stop)].tolist()))
            images = [chunk.sequence.request.images[i] for i in touched]
            try:
                self.runner.encode_images(images, in_use)
                good.append(chunk)
                for image in images:
                    # 28 MB each, and the rows stay as long as the request.
                    image.pixels = b""
            except Exception as error:
                outputs.append(self._fail(chunk.sequence, error))
        return good

    def _forward(self, chunks: list[Chunk], outputs: list[EngineOutput]) -> list[Computed]:
        """Hidden states per chunk. If the batch fails, each chunk is tried alone and only the culprits end."""
        if not chunks:
            return []
        try:
            return self.runner.forward(chunks)
        except Exception as error:
            if len(chunks) == 1:
                (chunk,) = chunks
                if chunk.draft_ids:
                    return self._forward([replace(chunk, draft_ids=())], outputs)
                outputs.append(self._fail(chunk.sequence, error))
                return []
            logger.warning("a batch of %d failed (%s); trying its requests one by one", len(chunks), error)
        return [one for chunk in chunks for one in self._forward([chunk], outputs)]

    def _due_rows(self, computed: list[Computed]) -> list[list[Row] | None]:
        """Logits where tokens are due, in one product: the head is a tenth of the weights that a step reads.

        That is at a sequence's last token, and at each guess of what follows it. If the product fails, None for all:
        each is then tried alone, inside its own boundary.
        """
        counts = [1 + len(one.chunk.draft_ids) if one.chunk.is_last else 0 for one in computed]
        try:
            rows = iter(rows_of(self.runner.last_logits(computed, counts), self.ops) if any(counts) else ())
            return [list(islice(rows, count)) or None for count in counts]
        except Exception as error:
            logger.warning("the head failed for a batch of %d (%s); trying one by one", sum(counts), error)
            return [None] * len(computed)

    def _advance(self, computed: Computed, rows: list[Row] | None, tokens: list[TokenOutput]) -> EngineOutput | None:
        """Commits a computed chunk and, if it was the last, samples what follows; new tokens go into `tokens`.

        Behind a guess it samples only if the guess was what it sampled: the next logits were computed with it. So the
        tokens are those of one step after the other, whatever was guessed.
        """
        chunk, finite = computed.chunk, computed.finite
        sequence, known = chunk.sequence, chunk.num_known
        if chunk.draft_ids and not all(finite[:known]):
            # Rows of wrong guesses may have done that: 0 x NaN is NaN, in masked attention too.
            (computed,), rows = self.runner.forward([replace(chunk, draft_ids=())]), None
            chunk, finite = computed.chunk, computed.finite
        if not all(finite[:known]):
            # Before its pages can be found by others: a NaN anywhere may have reached the latents of all of it.
            raise NumericalError("the model's hidden states are not finite")
        self.scheduler.commit(sequence, known)
        self._stats.prompt_tokens += max(min(chunk.start + known, sequence.num_prompt) - chunk.start, 0)
        score_prompt(computed, self.runner.logits)
        if not chunk.is_last:
            return None
        for sibling in reversed(self.siblings.pop(sequence.request.request_id, [])):
            self.scheduler.add(sibling, first=True)
        if rows is None:
            rows = rows_of(self.runner.last_logits([computed], [1 + len(chunk.draft_ids)]), self.ops)
        sequence.draft_ids = []
        if chunk.draft_ids:
            sequence.num_drafted += len(chunk.draft_ids)
            self._stats.spec_decode_num_drafts += 1
            self._stats.spec_decode_num_draft_tokens += len(chunk.draft_ids)
        for row, guess in zip(rows, [*chunk.draft_ids, None], strict=True):
            if (ended := self._next_token(sequence, row, guess, tokens)) is not None:
                return ended
            if not tokens[-1].drafted or not finite[known + len(tokens) - 1]:
                break  # what is not finite here is computed again, alone
            self.scheduler.commit(sequence, 1)
        return self._output(sequence, tokens=tokens)

    def _next_token(
        self, sequence: Sequence, row: Row, guess: int | None, tokens: list[TokenOutput]
    ) -> EngineOutput | None:
        """Samples one token; the last output of the sequence if it ends with it."""
        params = sequence.params
        raw_KV = row.logits[None].clone() if params.logprobs is not None else None
        end_ids = self._end_ids(sequence)
        token_id = sample(row, sequence, self.seeds[sequence.request.request_id], end_ids)
        if sequence.mask is not None and not sequence.mask.accept(token_id):
            raise NumericalError("the sampled token is outside the grammar")
        self._stats.generation_tokens += 1
        if token_id == guess:
            sequence.num_accepted += 1
            self._stats.spec_decode_num_accepted_tokens += 1
            self._stats.spec_decode_num_accepted_tokens_per_pos[len(tokens)] += 1
        if token_id in end_ids:
            return self._finish(sequence, "stop", tokens, stop_token_id=token_id)
        sequence.token_ids.append(token_id)
        logprobs = token_logprobs(raw_KV, [token_id], params.logprobs or 0)[0] if raw_KV is not None else []
        tokens.append(TokenOutput(token_id, logprobs, drafted=token_id == guess))
        if self._is_full(sequence):
            return self._finish(sequence, "length", tokens)
        if sequence.mask is not None and sequence.mask.is_stopped():
            return self._finish(sequence, "stop", tokens)
        return None

    def _end_ids(self, sequence: Sequence) -> set[int]:
        ids = set(sequence.params.stop_token_ids)
        return ids if sequence.params.ignore_eos else ids | {self.config.eos_token_id}

    def _is_full(self, sequence: Sequence) -> bool:
        limit = sequence.params.max_tokens
        return len(sequence.token_ids) >= self.plan.max_model_len or sequence.num_generated == limit

    # ------------------------------------------------------------------------------------------------------- endings

    def _output(self, sequence: Sequence, **fields) -> EngineOutput:
        output = EngineOutput(
            request_id=sequence.request.request_id,
            index=sequence.index,
            num_drafted_tokens=sequence.num_drafted,
            num_accepted_tokens=sequence.num_accepted,
            **fields,
        )
        if not sequence.reported:
            sequence.reported = True
            output.num_cached_tokens = sequence.num_cached or 0
            output.queue_seconds = sequence.queue_seconds or 0.0
            output.prompt_logprobs = sequence.prompt_logprobs
        return output

    def _finish(
        self, sequence: Sequence, reason: FinishReason, tokens: list[TokenOutput] | None = None, **fields
    ) -> EngineOutput:
        sequence.finish_reason = reason
        self.scheduler.remove(sequence)
        request_id = sequence.request.request_id
        self.sequences.pop(sequence.key, None)
        waiting = self.siblings.get(request_id, [])
        if sequence in waiting:
            waiting.remove(sequence)
        elif waiting and (request_id, 0) not in self.sequences:
            # The first answer is gone before it was through with the prompt: the next one takes its place.
            self.scheduler.add(waiting.pop(0), first=True)
        if not any(key[0] == request_id for key in self.sequences):
            self.seeds.pop(request_id, None)
            self.siblings.pop(request_id, None)
        return self._output(sequence, tokens=tokens or [], finish_reason=reason, **fields)

    def _fail(self, sequence: Sequence, error: Exception, tokens: list[TokenOutput] | None = None) -> EngineOutput:
        """Ends one sequence with an error. What the caller can mend is told in full, the rest goes to the log."""
        self._stats.num_failed += 1
        if isinstance(error, UserError):
            code = getattr(error, "code", None) or "invalid_request"
            return self._finish(sequence, "error", tokens, error=str(error), error_code=code)
        logger.error("request %s failed", sequence.request.request_id, exc_info=error)
        code = "numerical_error" if isinstance(error, NumericalError) else "internal_error"
        text = f"The engine could not go on with this request ({code})."
        return self._finish(sequence, "error", tokens, error=text, error_code=code)
