"""The device side: the model, the latent cache and the encoded images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from itertools import islice
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch

from ventoux.cache.latent import make_latent_cache
from ventoux.engine.batch import Span, build
from ventoux.engine.request import ImageInput
from ventoux.engine.routing import keep_routes, recorded_routes
from ventoux.engine.scheduler import Chunk
from ventoux.model.mistral4 import Mistral4
from ventoux.ops.threads import torch_threads
from ventoux.plan import EnginePlan

P = ParamSpec("P")
R = TypeVar("R")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Computed(NamedTuple):
    """A chunk, its hidden states [T, D], and of each of its rows whether all values are finite."""

    chunk: Chunk
    hidden_TD: torch.Tensor
    finite: list[bool]


def computing(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """For a method of what has a plan: no gradients, and as many of torch's threads as the plan says."""

    @wraps(method)
    def run(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(), torch_threads(self.plan.torch_threads):
            return method(self, *args, **kwargs)

    return run


def finite_rows(rows_KN: torch.Tensor) -> list[bool]:
    """Whether all values of a row are finite. What is not shows in the extremes, which take 2 ms of 32 x 131072 fp32 on
    one core; isfinite takes 21."""
    return torch.stack((rows_KN.amax(-1), rows_KN.amin(-1))).isfinite().all(0).tolist()


def largest_of(logits_KV: torch.Tensor) -> list[int]:
    """The first of the largest of each row. numpy looks at 16 values at a time: on one core 0.8 ms for 32 x 131072,
    torch 7.9."""
    if logits_KV.device.type == "cpu":
        return logits_KV.numpy().argmax(-1).tolist()
    return logits_KV.argmax(-1).tolist()


class Runner:
    def __init__(self, model: Mistral4, plan: EnginePlan):
        self.model = model
        self.plan = plan
        self.cache = make_latent_cache(
            model.config.text, plan.num_pages, plan.page_size, DTYPES[plan.kv_cache_dtype], plan.device
        )
        self.images: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.num_images_encoded = 0

    def forward(self, chunks: list[Chunk]) -> list[Computed]:
        """Computes the chunks and writes their latents."""
        lengths = [chunk.length for chunk in chunks]
        hidden_TD = self._hidden(chunks)
        finite = iter(finite_rows(hidden_TD))
        states = zip(chunks, hidden_TD.split(lengths), lengths, strict=True)
        return [Computed(chunk, rows_TD, list(islice(finite, length))) for chunk, rows_TD, length in states]

    def _hidden(self, chunks: list[Chunk]) -> torch.Tensor:
        """Hidden states [T, D] in packed order."""
        spans = [Span(chunk.sequence, chunk.start, chunk.token_ids) for chunk in chunks]
        inputs = build(spans, self.plan.page_size, self.images, self.plan.device)
        if not any(chunk.sequence.params.routed_experts for chunk in chunks):
            return self.model(inputs, self.cache)
        with recorded_routes(self.model) as routes:
            hidden_TD = self.model(replace(inputs, block_by_block=True), self.cache)
        keep_routes(chunks, routes)
        return hidden_TD

    def logits(self, hidden_KD: torch.Tensor) -> torch.Tensor:
        """Logits [K, V] of hidden states, in fp32."""
        return self.model.logits(hidden_KD)

    def encode_images(self, images: list[ImageInput], in_use: set[bytes]) -> None:
        """Encodes what is not there yet, one image at a time (so that a result never depends on its neighbours).

        Of the images that no running sequence needs (`in_use`), the most recently used `image_cache_size` are kept.
        """
        for image in images:
            if image.content_hash in self.images:
                self.images.move_to_end(image.content_hash)
                continue
            pixels = np.frombuffer(image.pixels, dtype="<f4").reshape(3, image.height, image.width)
            tensor = torch.tensor(pixels, dtype=DTYPES[self.plan.dtype], device=self.plan.device)
            self.images[image.content_hash] = self.model.encode_images([tensor])[0]
            self.num_images_encoded += 1
        idle = [name for name in self.images if name not in in_use]
        for name in idle[: max(len(idle) - self.plan.image_cache_size, 0)]:
            del self.images[name]
