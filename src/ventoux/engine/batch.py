"""The chunks of a step -> the tensors of one forward."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ventoux.engine.scheduler import Chunk
from ventoux.model.decoder import ForwardInputs
from ventoux.ops.spec import AttentionLayout


def build(chunks: list[Chunk], page_size: int, image_rows: Mapping[bytes, torch.Tensor], device: str) -> ForwardInputs:
    """Packs chunks in order. `image_rows` holds the encoded images [rows, D] by content hash."""
    token_ids = [t for c in chunks for t in c.sequence.token_ids[c.start : c.stop]]
    positions = np.concatenate([np.arange(c.start, c.stop) for c in chunks])
    most = max(len(c.sequence.pages) for c in chunks)
    pages = np.zeros((len(chunks), most), dtype=np.int64)
    slots = []
    for i, c in enumerate(chunks):
        own = np.asarray(c.sequence.pages)
        pages[i, : len(own)] = own
        where = np.arange(c.start, c.stop)
        slots.append(own[where // page_size] * page_size + where % page_size)
    layout = AttentionLayout(
        lengths=tuple(c.length for c in chunks),
        context_lengths=tuple(c.stop for c in chunks),
        pages_NP=torch.from_numpy(pages).to(device),
        slots_T=torch.from_numpy(np.concatenate(slots)).to(device),
    )
    image_idx, rows = _image_rows(chunks, image_rows)
    return ForwardInputs(
        token_ids_T=torch.tensor(token_ids, device=device),
        positions_T=torch.from_numpy(positions).to(device),
        lengths=layout.lengths,
        layout=layout,
        image_idx_M=torch.from_numpy(np.concatenate(image_idx)).to(device) if rows else None,
        image_rows_MD=torch.cat(rows) if rows else None,
    )


def _image_rows(
    chunks: list[Chunk], image_rows: Mapping[bytes, torch.Tensor]
) -> tuple[list[np.ndarray], list[torch.Tensor]]:
    """Packed indices of the [IMG] tokens in these chunks, and the rows that replace their embeddings."""
    packed_start = 0
    indices: list[np.ndarray] = []
    rows: list[torch.Tensor] = []
    for c in chunks:
        slots = c.sequence.image_slots
        where = slots.between(c.start, c.stop)
        if where.start < where.stop:
            indices.append(slots.position[where] - c.start + packed_start)
            for image in np.unique(slots.image[where]):
                of_image = slots.row[where][slots.image[where] == image]
                encoded = image_rows[c.sequence.request.images[image].content_hash]
                rows.append(encoded[int(of_image[0]) : int(of_image[-1]) + 1])
        packed_start += c.length
    return indices, rows
