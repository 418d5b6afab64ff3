"""A sequence: the running state of one answer to a request. No torch."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np

from ventoux.cache.pages import page_hash
from ventoux.config import ModelConfig
from ventoux.engine.request import FinishReason, ImageInput, Request, SamplingParams
from ventoux.errors import ContextLengthError, InvalidRequestError


class TokenMask(Protocol):
    """Which tokens may come next (a grammar's state)."""

    def fill(self, mask: np.ndarray) -> None:
        """Sets mask[id] (bool, [V]) to whether token `id` may come next."""
        ...

    def accept(self, token_id: int) -> bool:
        """Moves on by one token; False if the token was not allowed."""
        ...

    def is_stopped(self) -> bool:
        """True once nothing may follow."""
        ...

    def clone(self) -> TokenMask:
        """The same state, to go on by itself."""
        ...


@dataclass(frozen=True)
class ImageSlots:
    """Where the rows of a prompt's images go: packed arrays over all [IMG] tokens, in rising position."""

    position: np.ndarray
    image: np.ndarray
    row: np.ndarray

    def between(self, start: int, stop: int) -> slice:
        """The entries whose positions lie in [start, stop)."""
        if not len(self.position):
            return slice(0, 0)
        low, high = np.searchsorted(self.position, (start, stop))
        return slice(int(low), int(high))


@dataclass(eq=False)
class Sequence:
    """Tokens wanted are `token_ids`; tokens whose latents lie in the cache are the first `num_computed`.

    Prefill, chunks, decode, prefix hits and recomputation after preemption are all this one inequality:
    num_computed < len(token_ids). `draft_ids` are guesses at what follows, computed along with the last token.
    """

    request: Request
    index: int
    token_ids: list[int]
    image_slots: ImageSlots
    mask: TokenMask | None = None
    num_computed: int = 0
    # Prompt tokens found in the cache at the first admission; None before it.
    num_cached: int | None = None
    pages: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prompt_logprobs: list | None = None
    reported: bool = False
    # Monotonic time of arrival, and how long it took from there to the first step.
    arrived: float = field(default_factory=time.monotonic)
    queue_seconds: float | None = None
    draft_ids: list[int] = field(default_factory=list)
    num_drafted: int = 0  # guesses that were computed, and how many of them came true
    num_accepted: int = 0
    # If asked for: experts by row [rows][layers][top k], of the rows that the next tokens are sampled from.
    routes: list[list[list[int]]] = field(default_factory=list)

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def key(self) -> tuple[str, int]:
        return self.request.request_id, self.index

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_wanted(self) -> int:
        """Tokens still to compute, guesses aside."""
        return len(self.token_ids) - self.num_computed

    def page_hashes(self, page_size: int, count: int) -> list[bytes]:
        """Hashes of the first `count` full pages, extended as tokens arrive."""
        while len(self.hashes) < count:
            start = len(self.hashes) * page_size
            parent = self.hashes[-1] if self.hashes else self._salt_hash()
            tokens = self.token_ids[start : start + page_size]
            self.hashes.append(page_hash(parent, tokens, self._images_between(start, start + page_size)))
        return self.hashes[:count]

    def _salt_hash(self) -> bytes:
        """Of one length, so that no salt can pass for another one followed by tokens. Any string will do."""
        return page_hash(self.request.cache_salt.encode(errors="surrogatepass"), ())

    def _images_between(self, start: int, stop: int) -> bytes:
        """Names the image rows of a page by content: two images of one size differ in nothing else."""
        where = self.image_slots.between(start, stop)
        images, rows = self.image_slots.image[where], self.image_slots.row[where]
        pieces = []
        for image in np.unique(images):
            pieces.append(self.request.images[image].content_hash)
            pieces.append(int(rows[bisect_left(images.tolist(), image)]).to_bytes(4, "little"))
        return b"".join(pieces)


def make_sequences(request: Request, config: ModelConfig, max_model_len: int) -> list[Sequence]:
    """One per answer that the request asks for.

    Raises:
        InvalidRequestError: a value is out of range, or the images do not fit the prompt.
        ContextLengthError: the prompt leaves no room for an answer.
    """
    ids, vocab_size, vision = request.prompt_token_ids, config.text.vocab_size, config.vision
    request.params.check(vocab_size)
    if not ids:
        raise InvalidRequestError("the prompt is empty.", param="prompt")
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise InvalidRequestError(f"prompt token ids must lie in 0 .. {vocab_size - 1}.", param="prompt")
    if len(ids) >= max_model_len:
        raise ContextLengthError(len(ids), max_model_len)
    if request.images and vision is None:
        raise InvalidRequestError("this checkpoint has no vision tower; send text only.", param="messages")
    try:
        merged = vision.patch_size * vision.spatial_merge_size if vision else 1
        slots = image_slots(ids, request.images, config.image_token_id, merged)
    except ValueError as error:
        raise InvalidRequestError(f"{error}.", param="prompt") from error
    # Records of our own: their pixels are dropped once they are encoded, and the caller's stay as they are.
    request = msgspec.structs.replace(request, images=[msgspec.structs.replace(i) for i in request.images])
    return [Sequence(request, index, list(ids), slots) for index in range(request.params.n)]


def image_slots(token_ids: list[int], images: list[ImageInput], image_token_id: int, pixels_per_row: int) -> ImageSlots:
    """Deals the [IMG] tokens of a prompt out to its images.

    `pixels_per_row` is patch size times merge, 28: an image of 56 x 84 pixels owns 2 * 3 = 6 [IMG] tokens.
    Raises ValueError if the counts do not agree.
    """
    position = np.flatnonzero(np.asarray(token_ids, dtype=np.int64) == image_token_id)
    counts = [(i.height // pixels_per_row) * (i.width // pixels_per_row) for i in images]
    if len(position) != sum(counts):
        raise ValueError(
            f"the prompt has {len(position)} image tokens, but its {len(images)} images have {sum(counts)} rows"
        )
    image = np.repeat(np.arange(len(images)), counts)
    row = np.concatenate([np.arange(c) for c in counts]) if counts else np.zeros(0, dtype=np.int64)
    return ImageSlots(position, image, row)
