"""Which experts computed a token, for requests that ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ventoux.engine.scheduler import Chunk
from ventoux.model.moe import Router


@contextmanager
def recorded_routes(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside, the list grows by the expert ids [T, K] of one layer after the other, as `model` computes."""
    routes: list[torch.Tensor] = []
    routers = [module for module in model.modules() if isinstance(module, Router)]
    hooks = [router.register_forward_hook(lambda _, __, routed: routes.append(routed[1])) for router in routers]
    try:
        yield routes
    finally:
        for hook in hooks:
            hook.remove()


def keep_routes(chunks: list[Chunk], routes: list[torch.Tensor]) -> None:
    """Leaves with each sequence that asked the experts of the rows that its next tokens are sampled from."""
    if not routes:  # a model of dense layers alone
        return
    start = 0
    routes_TLK = torch.stack(routes, dim=1).cpu()
    for chunk in chunks:
        if chunk.sequence.params.routed_experts:
            rows = routes_TLK[start + chunk.num_known - 1 : start + chunk.length]
            chunk.sequence.routes = rows.tolist()
        start += chunk.length
