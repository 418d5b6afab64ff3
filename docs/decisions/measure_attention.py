"""The figures of decision 013: what attention loses by rounding to bf16 what tiles multiply, step by step in float64;
and what the native operators come to, against the definition."""

from __future__ import annotations

import torch

from ventoux.ops.cpu import instruction_sets, native_operators
from ventoux.ops.reference import REFERENCE
from ventoux.ops.spec import AttentionLayout, Positions

HEADS, NOPE, ROPE, LATENT, VALUE = 16, 64, 64, 256, 128  # the published proportions
KEYS, QUERIES, PAGE = 1024, 64, 16


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Root of the mean square, relative to that of what is wanted."""
    return ((got.double() - want).square().mean() / want.square().mean()).sqrt().item()


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().double()


def inputs(mean: float, sharpness: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, W_UK and W_UV, cached latents, all bf16. `mean`: what all latents have in common, in units of what sets
    them apart."""
    g = torch.Generator().manual_seed(0)
    q = sharpness * torch.randn(QUERIES, HEADS, NOPE + ROPE, generator=g)
    kv_b = torch.randn(HEADS * (NOPE + VALUE), LATENT, generator=g) / LATENT**0.5
    latents = torch.randn(KEYS, LATENT + ROPE, generator=g) + mean * torch.randn(LATENT + ROPE, generator=g)
    return q.bfloat16(), kv_b.bfloat16(), latents.bfloat16()


def steps(q: torch.Tensor, kv_b: torch.Tensor, latents: torch.Tensor) -> None:
    """Weighted latents with one rounding after the other, before W_UV and without the rounding of the result."""
    w_uk = kv_b.double().reshape(HEADS, NOPE + VALUE, LATENT)[:, :NOPE]
    q, k = q.double(), latents.double()
    absorbed = torch.cat([torch.einsum("thn,hnc->thc", q[..., :NOPE], w_uk), q[..., NOPE:]], -1)

    def attend(query: torch.Tensor, weigh=lambda p: p, add=lambda p: p) -> torch.Tensor:
        scores = query @ k.T / (NOPE + ROPE) ** 0.5
        p = (scores - scores.amax(-1, keepdim=True)).exp()
        return weigh(p) @ k[:, :LATENT] / add(p).sum(-1, keepdim=True)

    want = attend(absorbed)
    scores = absorbed @ k.T / (NOPE + ROPE) ** 0.5
    print(f"  scores about their mean: {(scores - scores.mean(-1, keepdim=True)).square().mean().sqrt():.2f}")
    print(f"  queries rounded: {error(attend(rounded(absorbed)), want):.5f}")
    print(f"  weights rounded, divided by the sum of the exact ones: {error(attend(absorbed, rounded), want):.5f}")
    print(f"  weights rounded, divided by their own sum: {error(attend(absorbed, rounded, rounded), want):.5f}")
    print(f"  both as built: {error(attend(rounded(absorbed), rounded, rounded), want):.5f}")


def native(q: torch.Tensor, kv_b: torch.Tensor, latents: torch.Tensor) -> None:
    """Whole operators, results rounded to bf16."""
    cache = latents.reshape(-1, PAGE, LATENT + ROPE)
    # No rotation and no scale, so that the steps above see the same queries.
    positions = Positions(torch.ones(QUERIES, ROPE // 2), torch.zeros(QUERIES, ROPE // 2), torch.ones(QUERIES))
    pages, slots = torch.arange(len(cache)).unsqueeze(0), torch.arange(KEYS - QUERIES, KEYS)
    layout = AttentionLayout((QUERIES,), (KEYS,), pages, slots)
    scale = (NOPE + ROPE) ** -0.5
    want = REFERENCE.latent_attention(q.double(), kv_b.double(), positions, cache.double(), layout, scale)
    print(f"  the rounding of the result alone: {error(want.bfloat16(), want):.5f}")
    for name in ("avx512", "amx_emulated", "amx"):
        if name in instruction_sets(emulated=True):
            got = native_operators(1, name).latent_attention(q, kv_b, positions, cache, layout, scale)
            print(f"  {name}: {error(got, want):.5f}")


def main() -> None:
    for mean, sharpness in ((0.0, 1.0), (0.0, 3.0), (2.0, 1.0)):
        print(f"queries times {sharpness}, latents with {mean} in common:")
        chosen = inputs(mean, sharpness)
        steps(*chosen)
        native(*chosen)


if __name__ == "__main__":
    main()
