"""From training runs to a checkpoint that `ventoux serve` can open: the end of one, or the mean of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ventoux.checkpoint.write import copy_side_files, model_rows, write_checkpoint
from ventoux.errors import ConfigError
from ventoux.text.tekken import write_tekken
from ventoux.train.demo import Trainer, plain_model
from ventoux.train.demo_data import SYSTEM_PROMPT
from ventoux.train.demo_model import NUM_RANKS


def export(trainer: Trainer, folder: Path) -> None:
    """Writes bf16 weights in the native layout, with the tokenizer and the system prompt that belong to them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = trainer.model.config
    write_checkpoint(folder, config, "native", model_rows(trainer.model, config), dtype=torch.bfloat16)
    write_tekken(folder / "tekken.json", num_ranks=NUM_RANKS)
    (folder / "SYSTEM_PROMPT.txt").write_text(SYSTEM_PROMPT)


@torch.no_grad()
def write_mean(models: Sequence[Path], shares: Sequence[float], folder: Path) -> None:
    """Writes the weighted mean of checkpoints that one training went through (Wortsman et al., Model soups, 2022).

    bf16, in the native layout, with the first one's tokenizer and system prompt.

    Raises:
        ConfigError: the shares are not one per model with a sum of one, or the models differ in shape or are quantized.
        CheckpointError: one of them cannot be read.
    """
    if len(shares) != len(models) or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"{len(models)} models need as many shares, which add up to 1; got {list(shares)}.")
    mean, *others = map(plain_model, models)
    if any(other.config != mean.config for other in others):
        raise ConfigError("the mean of models of different shapes would mean nothing.")
    for name, parameter in mean.named_parameters():
        parameter.mul_(shares[0])
        for share, other in zip(shares[1:], others, strict=True):
            parameter.add_(other.get_parameter(name) * share)
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder, mean.config, "native", model_rows(mean, mean.config), dtype=torch.bfloat16)
    copy_side_files(models[0], folder)
