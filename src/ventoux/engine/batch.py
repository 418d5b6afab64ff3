"""Tokens of many sequences -> the tensors of one forward, of the model or of its draft."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from ventoux.engine.sequence import Sequence
from ventoux.model.decoder import ForwardInputs
from ventoux.ops.spec import AttentionLayout


class Span(NamedTuple):
    """Tokens to compute for a sequence, whose latents go to the positions from `start` on."""

    sequence: Sequence
    start: int
    token_ids: list[int]

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)


def build(
    spans: list[Span], page_size: int, image_rows: Mapping[bytes, torch.Tensor], device: str, ahead: int = 0
) -> ForwardInputs:
    """Packs spans in order. `image_rows` holds the encoded images [rows, D] by content hash.

    `ahead`: how far the tokens stand ahead of the positions that they are computed at (1 in a draft).
    """
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    table: list[int] = []
    width = max(len(span.sequence.pages) for span in spans)
    for sequence, start, ids in spans:
        here, pages = range(start, start + len(ids)), sequence.pages
        token_ids += ids
        positions += here
        slots += [pages[p // page_size] * page_size + p % page_size for p in here]
        table += pages + [0] * (width - len(pages))
    # One tensor, and one copy to the device: a step of a small model is mostly such calls.
    numbers = torch.frombuffer(array("q", token_ids + positions + slots + table), dtype=torch.int64).to(device)
    num_tokens = len(token_ids)
    token_ids_T, positions_T, slots_T, pages = numbers.split((num_tokens, num_tokens, num_tokens, len(table)))
    lengths = tuple(len(span.token_ids) for span in spans)
    contexts = tuple(span.stop for span in spans)
    image_idx, rows = _image_rows(spans, image_rows, ahead)
    return ForwardInputs(
        token_ids_T,
        positions_T,
        lengths,
        AttentionLayout(lengths, contexts, pages.view(len(spans), width), slots_T),
        image_idx_M=torch.from_numpy(np.concatenate(image_idx)).to(device) if rows else None,
        image_rows_MD=torch.cat(rows) if rows else None,
    )


def _image_rows(
    spans: list[Span], image_rows: Mapping[bytes, torch.Tensor], ahead: int
) -> tuple[list[np.ndarray], list[torch.Tensor]]:
    """Packed indices of the [IMG] tokens in these spans, and the rows that replace their embeddings.

    A draft looks one token ahead, perhaps at an image that is not encoded yet: [IMG]'s own embedding stays there.
    """
    packed_start = 0
    indices: list[np.ndarray] = []
    rows: list[torch.Tensor] = []
    for span in spans:
        slots = span.sequence.image_slots
        start = span.start + ahead
        where = slots.between(start, start + len(span.token_ids))
        for image in np.unique(slots.image[where]) if where.start < where.stop else ():
            encoded = image_rows.get(span.sequence.request.images[image].content_hash)
            if encoded is None and ahead:
                continue
            assert encoded is not None, "the images of a chunk are encoded before it is computed"
            mine = slots.image[where] == image
            of_image = slots.row[where][mine]
            indices.append(slots.position[where][mine] - start + packed_start)
            rows.append(encoded[int(of_image[0]) : int(of_image[-1]) + 1])
        packed_start += len(span.token_ids)
    return indices, rows
