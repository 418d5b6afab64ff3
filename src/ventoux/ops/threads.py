"""How many threads torch may use, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """`count` for what the calling thread does inside; then as before. Nothing is set that is so already.

    torch keeps a number per thread, taken from a common one at a thread's first operation: a thread that begins
    meanwhile begins with `count`. Whoever depends on the number sets it himself.
    """
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
