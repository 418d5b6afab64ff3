"""Prompts that are too long, noticed before they are tokenized whole: 10 MB of text take tiktoken 3 to 25 seconds.

Two bounds, both exact. A token holds at most as many bytes as the longest vocabulary entry, so some texts cannot fit
whatever they say. And long texts are encoded piece by piece, until there are more tokens than there may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from ventoux.errors import ContextLengthError

# Characters encoded between two looks at the count: 50 ms of work.
PIECE_LENGTH = 2**16
# How tekken cuts text before it merges bytes to tokens. `_CUT` is proven for this pattern and for no other.
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Places where that pattern always cuts, whatever stands around them, so that both sides can be encoded alone:
# - before a blank that follows something else: no alternative goes on with a blank after what is none;
# - after a digit: each is a piece by itself, and no other alternative takes one in;
# - after a letter, before ASCII that is no letter, or CJK punctuation: words go on with letters and marks only.
# The text before a cut ends in no white space, so the look-ahead of `\s+(?!\S)` never looks beyond the cut.
_CUT = re.compile(r"\S(?= )|[0-9]|[^\W_](?=[\x00-@\[-`{-\x7f\u3001\u3002\u300c\u300d\uff01\uff0c\uff1a\uff1b\uff1f])")


@dataclass(frozen=True)
class PromptLimit:
    """More than `max_tokens` tokens are refused; `max_model_len` is what the refusal tells."""

    max_model_len: int
    max_tokens: int

    @classmethod
    def for_answer(cls, max_model_len: int) -> PromptLimit:
        """Leaves room for one token of answer."""
        return cls(max_model_len, max_model_len - 1)

    def check(self, num_tokens: int, param: str) -> None:
        """Raises ContextLengthError if a whole prompt is too long."""
        if num_tokens > self.max_tokens:
            raise ContextLengthError(num_tokens, self.max_model_len, param=param)


class LimitedTekkenizer(Tekkenizer):
    """A view of a tekkenizer for one prompt: `encode` counts, over all calls, and gives up beyond the limit."""

    def __init__(self, full: Tekkenizer, limit: PromptLimit, longest_token: int, param: str):
        # The tables are shared; a second vocabulary would take seconds and 100 MB.
        vars(self).update(vars(full))
        self._full = full
        self._limit = limit
        self._longest_token = longest_token
        self._param = param
        self._count = 0

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """As the tekkenizer's own. Raises ContextLengthError as soon as the prompt is known to be too long."""
        self._refuse_beyond(self._count - (-len(s.encode()) // self._longest_token))
        ids = [self.bos_id] if bos else []
        for piece in pieces(s) if self._model._pat_str == TEKKEN_PATTERN else (s,):
            new = self._full.encode(piece, bos=False, eos=False)
            self._count += len(new)
            self._refuse_beyond(self._count)
            ids += new
        return [*ids, self.eos_id] if eos else ids

    def _refuse_beyond(self, least: int) -> None:
        if least > self._limit.max_tokens:
            raise ContextLengthError(least, self._limit.max_model_len, param=self._param, at_least=True)


def pieces(text: str, length: int = PIECE_LENGTH) -> Iterator[str]:
    """The text in pieces of `length` characters or more, cut only where tekken's own pattern cuts.

    Encoding them one by one gives the tokens of the whole. A text without such places is one piece.
    """
    start = 0
    while len(text) - start > length:
        cut = _CUT.search(text, start + length - 1)
        if cut is None:
            break
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]
