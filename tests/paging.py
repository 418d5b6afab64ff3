"""A paged latent cache for tests that call the model directly: pages in shuffled order, filled with NaN until written,
so that reading an unwritten slot or a neighbour's page shows at once."""

from __future__ import annotations

import torch

from ventoux.config import TextConfig
from ventoux.ops.spec import AttentionLayout


class PagedCache:
    """Room for sequences of `lengths` tokens; `layout(new)` advances each by `new[i]` tokens."""

    def __init__(self, config: TextConfig, lengths: list[int], page_size: int, dtype: torch.dtype = torch.float32):
        self.page_size = page_size
        self.done = [0] * len(lengths)
        counts = [-(-length // page_size) for length in lengths]
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(len(lengths)))
        self.pages = list(order.split(counts))
        shape = (sum(counts), page_size, config.latent_dim)
        self.tensors = [torch.full(shape, float("nan"), dtype=dtype) for _ in range(config.num_hidden_layers)]

    def layout(self, new: list[int]) -> AttentionLayout:
        slots = [
            pages[i // self.page_size] * self.page_size + i % self.page_size
            for pages, done, count in zip(self.pages, self.done, new, strict=True)
            for i in range(done, done + count)
        ]
        self.done = [done + count for done, count in zip(self.done, new, strict=True)]
        table = torch.nn.utils.rnn.pad_sequence(self.pages, batch_first=True)
        return AttentionLayout(tuple(new), tuple(self.done), table, torch.stack(slots))
