"""Logits of one sequence -> one token. The steps do not commute; this is their order:

 1. log-probabilities for the answer are taken from the untouched logits
 2. logit bias is added
 3. repetition, frequency and presence penalties
 4. the grammar's mask
 5. end tokens are barred until `min_tokens`, as long as anything else is left
    temperature 0: the first of the largest logits, and no more steps
 6. temperature
 7. min-p: at least min_p times the largest probability
 8. top-k, then top-p: the smallest set of most likely tokens that holds top_p
 9. one uniform number picks from the cumulative distribution

The uniform number depends on the seed, the answer's index and the position alone (Philox, a counter-based generator),
so neither batch nor preemption changes what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from ventoux.engine.request import SamplingParams, TokenLogprob
from ventoux.engine.runner import Computed
from ventoux.engine.sequence import Sequence
from ventoux.errors import EngineError, NumericalError
from ventoux.ops.reference import largest_of
from ventoux.ops.spec import Operators

Tensor = torch.Tensor
BARRED = float("-inf")
# Below this, temperature means 0: logits of order 100 divided by less than 1e-36 are no longer fp32 numbers.
MIN_TEMPERATURE = 1e-6
# Rows of prompt log-probabilities worked on at once: 256 x 131072 fp32 logits are 128 MiB.
LOGPROB_ROWS = 256
# Probabilities summed at once to find the block in which a number falls: a running sum takes 5 ns each.
SUMMED = 256


class Row(NamedTuple):
    """A position's logits, which are row `number` of fp32 [K, V]; whether all of them are finite; the first of the
    largest."""

    logits_KV: Tensor
    number: int
    is_finite: bool
    largest: int

    @property
    def logits(self) -> Tensor:
        """[V], a view: a call of torch's that most tokens can do without."""
        return self.logits_KV[self.number]


def rows_of(logits_KV: Tensor, ops: Operators) -> list[Row]:
    """Rows of a batch's logits. What nearly every request asks of them is found for all at once: torch calls on single
    rows were a third of a step of the bundled model with 32 sequences."""
    found = zip(*ops.scan(logits_KV), strict=True)
    return [Row(logits_KV, i, is_finite, largest) for i, (is_finite, largest) in enumerate(found)]


def sample(row: Row, sequence: Sequence, seed: int, end_ids: set[int]) -> int:
    """The next token of `sequence`. The row's logits are changed in place.

    Raises NumericalError if the logits hold NaN or infinity, or come to them by the request's rules.
    """
    params = sequence.params
    if not row.is_finite:
        raise NumericalError("the model's logits are not finite")
    ruled = _rule(row, sequence, end_ids)
    if params.temperature < MIN_TEMPERATURE:
        return largest_of(row.logits.unsqueeze(0))[0] if ruled else row.largest
    counter = np.random.Philox(key=[seed % 2**64, sequence.index]).advance(sequence.num_generated)
    return _draw(row.logits / params.temperature, params, np.random.Generator(counter).random())


def _rule(row: Row, sequence: Sequence, end_ids: set[int]) -> bool:
    """Applies steps 2 to 5 to the row; whether there was anything to apply."""
    params = sequence.params
    early = sequence.num_generated < params.min_tokens and bool(end_ids)
    penalised = params.repetition_penalty != 1.0 or bool(params.frequency_penalty or params.presence_penalty)
    if not (params.logit_bias or penalised or sequence.mask is not None or early):
        return False
    logits_V = row.logits
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits_V.device)
        logits_V[ids] += torch.tensor(list(params.logit_bias.values()), device=logits_V.device)
    _penalise(logits_V, sequence)
    if sequence.mask is not None:
        _apply_mask(logits_V, sequence)
    if early:
        _bar(logits_V, end_ids)
    return True


def _penalise(logits_V: Tensor, sequence: Sequence) -> None:
    """Repetition (CTRL, 2019) looks at prompt and answer; frequency and presence (OpenAI) at the answer alone."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.token_ids)), device=logits_V.device)
        values = logits_V[seen]
        penalty = params.repetition_penalty
        logits_V[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if (params.frequency_penalty or params.presence_penalty) and sequence.num_generated:
        answer = torch.tensor(sequence.token_ids[sequence.num_prompt :], device=logits_V.device)
        ids, counts = answer.unique(return_counts=True)
        logits_V[ids] -= params.frequency_penalty * counts + params.presence_penalty


def _apply_mask(logits_V: Tensor, sequence: Sequence) -> None:
    assert sequence.mask is not None
    allowed = np.zeros(len(logits_V), dtype=bool)
    sequence.mask.fill(allowed)
    if not allowed.any():
        raise EngineError("the grammar allows no token here")
    logits_V.masked_fill_(~torch.from_numpy(allowed).to(logits_V.device), BARRED)


def _bar(logits_V: Tensor, end_ids: set[int]) -> None:
    ids = torch.tensor(sorted(end_ids), device=logits_V.device)
    before = logits_V[ids]
    logits_V[ids] = BARRED
    if logits_V.max() == BARRED:
        logits_V[ids] = before


def _draw(logits_V: Tensor, params: SamplingParams, uniform: float) -> int:
    probs_V = logits_V.softmax(-1).cpu().numpy()
    if np.isnan(probs_V[0]):  # then all are: a penalty made infinity of a logit
        raise NumericalError("the rules of this request make the logits infinite")
    if params.min_p > 0:
        probs_V = np.where(probs_V >= params.min_p * probs_V.max(), probs_V, 0)
    if params.top_k <= 0 and params.top_p >= 1:
        return _pick(probs_V, uniform)
    ids = _most_likely(probs_V, params)
    return int(ids[_pick(probs_V[ids], uniform)])


def _most_likely(probs_V: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Ids that top-k, then top-p leave, rising; among equals lower ids stay."""
    if 0 < params.top_k < len(probs_V):
        least = np.partition(probs_V, -params.top_k)[-params.top_k]
        falling = np.sort(probs_V[probs_V >= least])[::-1][: params.top_k]
        total = falling.sum(dtype=np.float64)
    else:
        total = probs_V.sum(dtype=np.float64)
        # What is less likely than the V-th part of what top-p cuts off lies in what it cuts off. Half of that leaves
        # room for rounding.
        least = total * (1 - params.top_p) / (2 * len(probs_V))
        falling = np.sort(probs_V[probs_V >= least])[::-1]
    before = falling.cumsum(dtype=np.float64) - falling
    count = max(1, int(before.searchsorted(params.top_p * total))) if params.top_p < 1 else len(falling)
    kept_V = probs_V > falling[count - 1]
    equal = np.flatnonzero(probs_V == falling[count - 1])
    kept_V[equal[: count - kept_V.sum()]] = True
    return np.flatnonzero(kept_V)


def _pick(probs: np.ndarray, uniform: float) -> int:
    """The first place up to which more than `uniform` of the sum lies; never one with probability 0."""
    starts = np.arange(0, len(probs), SUMMED)
    sums = np.add.reduceat(probs, starts, dtype=np.float64).cumsum()
    threshold = uniform * sums[-1]
    block = int(sums.searchsorted(threshold, side="right"))
    # Rounding may put the threshold at the very end, of all or of a block.
    block = min(block, int(sums.searchsorted(sums[-1])))
    part = probs[starts[block] : starts[block] + SUMMED]
    before = sums[block - 1] if block else 0.0
    place = int(part.cumsum(dtype=np.float64).searchsorted(threshold - before, side="right"))
    return int(starts[block]) + min(place, int(part.nonzero()[0][-1]))


def score_prompt(computed: Computed, head: Callable[[Tensor], Tensor]) -> None:
    """Log-probabilities of the prompt tokens that follow the positions of a chunk, if its request asks for them.

    `head` turns hidden states [K, D] into logits [K, V].
    """
    chunk = computed.chunk
    sequence = chunk.sequence
    top = sequence.params.prompt_logprobs
    if top is None:
        return
    if sequence.prompt_logprobs is None:
        sequence.prompt_logprobs = [[]]
    # A preempted sequence computes positions again that it has scored already.
    first = max(chunk.start, len(sequence.prompt_logprobs) - 1)
    last = min(chunk.start + chunk.num_known, sequence.num_prompt - 1)
    for start in range(first, last, LOGPROB_ROWS):
        stop = min(start + LOGPROB_ROWS, last)
        logits_KV = head(computed.hidden_rows[start - chunk.start : stop - chunk.start])
        sequence.prompt_logprobs += token_logprobs(logits_KV, sequence.token_ids[start + 1 : stop + 1], top)


def token_logprobs(logits_KV: Tensor, chosen_ids: list[int], top: int) -> list[list[TokenLogprob]]:
    """Per row of fp32 logits: the chosen token, then the `top` most likely ones, with ranks (1 = most likely)."""
    logprobs_KV = logits_KV.log_softmax(-1)
    chosen = torch.tensor(chosen_ids, device=logits_KV.device).unsqueeze(1)
    chosen_K1 = logprobs_KV.gather(1, chosen)
    ranks = (logprobs_KV > chosen_K1).sum(1) + 1
    values, ids = logprobs_KV.topk(top, dim=-1)
    rows = []
    for k, token_id in enumerate(chosen_ids):
        row = [TokenLogprob(token_id, float(chosen_K1[k, 0]), int(ranks[k]))]
        pairs = zip(ids[k].tolist(), values[k].tolist(), strict=True)
        row += [TokenLogprob(i, value, rank) for rank, (i, value) in enumerate(pairs, start=1)]
        rows.append(row)
    return rows
