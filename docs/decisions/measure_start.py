"""The figures of decision 006: how fast copying is learned from two starts. Run it from the repository's root."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F

from ventoux.model.decoder import ForwardInputs
from ventoux.model.mistral4 import Mistral4
from ventoux.ops.reference import REFERENCE
from ventoux.train.demo_model import demo_config
from ventoux.train.start import initialise

LENGTH = 64
SEQUENCES = 32
DIGITS = range(1048, 1058)  # ids of the bytes "0" to "9"


def plain(model: Mistral4, seed: int) -> None:
    """Fan-in scaled noise everywhere, embeddings with a standard deviation of 0.05."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            torch.nn.init.ones_(p)
        else:
            std = 0.05 if "embed_tokens" in name else p.shape[-1] ** -0.5
            torch.nn.init.normal_(p, 0.0, std, generator=generator)


def batch(step: int) -> tuple[ForwardInputs, torch.Tensor]:
    """Pieces of 3 to 20 digits, of 2 to 10 different ones, repeated to 64 tokens; the loss is on the repetitions."""
    rng = random.Random(step)
    ids, targets = [], []
    for _ in range(SEQUENCES):
        digits = rng.sample(DIGITS, rng.randint(2, 10))
        piece = [rng.choice(digits) for _ in range(rng.randint(3, 20))]
        row = (piece * LENGTH)[:LENGTH]
        ids += row
        targets += [row[i + 1] if len(piece) <= i + 1 < LENGTH else -100 for i in range(LENGTH)]
    positions = torch.arange(LENGTH).repeat(SEQUENCES)
    return ForwardInputs(torch.tensor(ids), positions, (LENGTH,) * SEQUENCES), torch.tensor(targets)


def losses(start, steps: int = 100) -> list[float]:
    model = Mistral4(demo_config(), REFERENCE)
    start(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    found = []
    for step in range(steps):
        inputs, targets_T = batch(step)
        loss = F.cross_entropy(model.logits(model(inputs)), targets_T, ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


if __name__ == "__main__":
    for name, start in (("plain", plain), ("induction circuit", initialise)):
        curve = losses(start)
        print(f"{name:<19}" + "  ".join(f"step {n}: {curve[n - 1]:.2f}" for n in (1, 20, 60, 100)), flush=True)
