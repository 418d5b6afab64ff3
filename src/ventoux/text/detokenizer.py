"""Token ids -> text as they arrive, and stop strings in that text. Both give the same result for any split."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ventoux.text.tokenizer import Tokenizer


class Detokenizer:
    """Incremental decoding of one sequence: what `push` returned so far plus `flush()` equals `tokenizer.decode(ids)`.

    Tokens are byte strings, so a character may arrive in pieces (an emoji is often 2 to 4 tokens); its bytes are held
    back until it is whole. A control token ends a broken character, as it does in `decode`.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Returns the text that is certain now; never a part of a character."""
        if self._tokenizer.is_control(token_id):
            return self.flush()
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """Ends the text: bytes of an unfinished character become U+FFFD."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Looks for stop strings in text that arrives in pieces.

    The stop whose last character comes first ends the text; of several that end together, the longest. Only the longest
    suffix that may still become a stop is held back.
    """

    def __init__(self, stops: Sequence[str], include: bool = False):
        """`include`: the stop string itself stays in the text."""
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.stopped_by: str | None = None

    def feed(self, text: str) -> tuple[str, bool]:
        """Returns the text that is safe to send, and whether a stop string was hit; after a hit nothing follows."""
        if self.stopped_by is not None:
            return "", True
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start, self.stopped_by = min(found)
            self._held = ""
            return text[: end if self._include else start], True
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held], False

    def flush(self) -> str:
        """The text has ended without a stop: returns what was held back."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a proper prefix of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            suffix = text[-length:]
            if any(stop.startswith(suffix) for stop in self._stops if len(stop) > length):
                return length
        return 0
