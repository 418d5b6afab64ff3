"""Tokens of many sequences -> the tensors of one forward, of the model or of its draft."""

from __future__ import annotations

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
    token_ids = [t for span in spans for t in span.token_ids]
    lengths = np.array([len(span.token_ids) for span in spans])
    pages = np.zeros((len(spans), max(len(span.sequence.pages) for span in spans)), dtype=np.int64)
    for i, span in enumerate(spans):
        pages[i, : len(span.sequence.pages)] = span.sequence.pages
    number = np.repeat(np.arange(len(spans)), lengths)  # of each token's span
    before = np.cumsum(lengths) - lengths
    positions = np.arange(len(token_ids)) + np.array([span.start for span in spans])[number] - before[number]
    slots = pages[number, positions // page_size] * page_size + positions % page_size
    layout = AttentionLayout(
        lengths=tuple(lengths.tolist()),
        context_lengths=tuple(span.stop for span in spans),
        pages_NP=torch.from_numpy(pages).to(device),
        slots_T=torch.from_numpy(slots).to(device),
    )
    image_idx, rows = _image_rows(spans, image_rows, ahead)
    return ForwardInputs(
        token_ids_T=torch.tensor(token_ids, device=device),
        positions_T=torch.from_numpy(positions).to(device),
        lengths=layout.lengths,
        layout=layout,
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
