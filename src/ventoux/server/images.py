"""Images in messages: found, fetched where they are URLs, decoded; every error names the part it is about."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from ventoux.config import ServerConfig
from ventoux.errors import InvalidImageError, InvalidRequestError
from ventoux.server.decoder import ImageDecoder
from ventoux.server.media import MediaFetcher
from ventoux.text.images import data_url_bytes

# Largest images per request, by pixels: 4 of 50 MP, or 16 photos of 12.5 MP. Decoded they take 0.8 GB, and a file of
# 0.2 MB can hold 50 MP.
MAX_LARGEST_IMAGES = 4
# `"detail": "low"`: the picture is scaled down to fit a square of so many pixels, as OpenAI has it.
LOW_DETAIL_SIDE = 512


@dataclass(frozen=True)
class _Slot:
    """Where an image stands: messages[message].content[part]."""

    message: int
    part: int
    url: str
    is_low: bool

    @property
    def param(self) -> str:
        return f"messages[{self.message}].content[{self.part}].image_url"


class MessageImages:
    """The images of one conversation. `fetch` runs in the event loop, `decoded` in a thread."""

    def __init__(self, messages: list[dict[str, Any]], config: ServerConfig):
        """Raises InvalidRequestError for a malformed image part or too many images."""
        self._messages = messages
        self._config = config
        self._slots = list(_find(messages))
        self._fetched: dict[_Slot, bytes] = {}
        if len(self._slots) > config.limit_images:
            raise InvalidRequestError(
                f"At most {config.limit_images} images are taken per request, got {len(self._slots)}.",
                param="messages",
                code="too_many_images",
            )

    def __len__(self) -> int:
        return len(self._slots)

    async def fetch(self, media: MediaFetcher) -> None:
        """Fetches what is not a data URL, all at the same time. Raises InvalidImageError for the first that fails."""
        remote = [slot for slot in self._slots if not _is_data(slot.url)]
        tasks = [asyncio.create_task(media.fetch(slot.url, slot.param)) for slot in remote]
        try:
            self._fetched = dict(zip(remote, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def decoded(self, decoder: ImageDecoder) -> list[dict[str, Any]]:
        """The messages with {"type": "image", "image": picture} parts. Raises InvalidImageError."""
        messages = list(self._messages)
        pixels_left = MAX_LARGEST_IMAGES * self._config.max_image_pixels
        for slot in self._slots:
            image = self._decode(slot, decoder)
            pixels_left -= image.width * image.height
            if pixels_left < 0:
                most = MAX_LARGEST_IMAGES * self._config.max_image_pixels
                raise InvalidImageError(f"The images of a request may have {most} pixels together.", param=slot.param)
            content = list(messages[slot.message]["content"])
            content[slot.part] = {"type": "image", "image": image}
            messages[slot.message] = {**messages[slot.message], "content": content}
        return messages

    def _decode(self, slot: _Slot, decoder: ImageDecoder) -> Image:
        max_bytes, max_pixels = self._config.max_image_bytes, self._config.max_image_pixels
        fetched = self._fetched.get(slot)
        data = data_url_bytes(slot.url, max_bytes=max_bytes, param=slot.param) if fetched is None else fetched
        image = decoder.decode(data, max_bytes=max_bytes, max_pixels=max_pixels, param=slot.param)
        if slot.is_low:
            image.thumbnail((LOW_DETAIL_SIDE, LOW_DETAIL_SIDE))
        return image


def _find(messages: list[dict[str, Any]]) -> Iterator[_Slot]:
    for i, message in enumerate(messages):
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "image_url":
                value, param = part.get("image_url"), f"messages[{i}].content[{j}].image_url"
                yield _Slot(i, j, _url(value, param), _is_low(value, param))
            elif kind == "image":
                # The text room's own form of a decoded image; from outside it can only be something else.
                raise InvalidRequestError(
                    "An image part has the type image_url here.",
                    param=f"messages[{i}].content[{j}].type",
                    code="unsupported_value",
                )


def _url(value: Any, param: str) -> str:
    """OpenAI wraps the URL in an object, Mistral's API also takes it bare."""
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or not url:
        raise InvalidImageError('An image part needs image_url: {"url": "https://... or data:image/..."}.', param=param)
    return url


def _is_low(value: Any, param: str) -> bool:
    """OpenAI's `detail`. Images are always seen in full, so "auto" and "high" ask for nothing."""
    detail = value.get("detail") if isinstance(value, dict) else None
    if detail not in (None, "auto", "high", "low"):
        raise InvalidRequestError(
            f"{param}.detail must be auto, high or low.", param=f"{param}.detail", code="unsupported_value"
        )
    return detail == "low"


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"
