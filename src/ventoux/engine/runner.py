"""The device side: the model, the latent cache and the encoded images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from itertools import accumulate
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
    """A chunk, the hidden states [T, D] of all chunks computed with it, which of them is its first, and of each of its
    own whether all values are finite."""

    chunk: Chunk
    step_TD: torch.Tensor
    first: int
    finite: list[bool]

    @property
    def hidden_rows(self) -> torch.Tensor:
        """Its own (a view)."""
        return self.step_TD[self.first : self.first + self.chunk.length]


def joined(computed: list[Computed]) -> list[Computed]:
    """The same as if all had been computed at once, which they mostly were."""
    if all(one.step_TD is computed[0].step_TD for one in computed):
        return computed
    step_TD = torch.cat([one.hidden_rows for one in computed])
    starts = accumulate((one.chunk.length for one in computed), initial=0)
    return [one._replace(step_TD=step_TD, first=start) for one, start in zip(computed, starts, strict=False)]


def computing(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """For a method of what has a plan: no gradients, and as many of torch's threads as the plan says."""

    @wraps(method)
    def run(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(), torch_threads(self.plan.torch_threads):
            return method(self, *args, **kwargs)

    return run


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
        step_TD = self._hidden(chunks)
        finite, _ = self.model.ops.scan(step_TD)
        starts = accumulate((chunk.length for chunk in chunks), initial=0)
        return [
            Computed(chunk, step_TD, start, finite[start : start + chunk.length])
            for chunk, start in zip(chunks, starts, strict=False)
        ]

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

    def last_logits(self, computed: list[Computed], counts: list[int]) -> torch.Tensor:
        """Those of the last few rows of each chunk, in their order."""
        together = joined(computed)
        ends = [one.first + one.chunk.length for one in together]
        due = [row for end, count in zip(ends, counts, strict=True) for row in range(end - count, end)]
        step_TD = together[0].step_TD
        return self.logits(step_TD if len(due) == len(step_TD) else step_TD[due])

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
