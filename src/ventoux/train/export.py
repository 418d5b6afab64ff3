"""From a training run to a checkpoint that `ventoux serve` can open."""

from __future__ import annotations

from pathlib import Path

import torch

from ventoux.checkpoint.write import model_rows, write_checkpoint
from ventoux.text.tekken import write_tekken
from ventoux.train.demo import Trainer
from ventoux.train.demo_data import SYSTEM_PROMPT
from ventoux.train.demo_model import NUM_RANKS


def export(trainer: Trainer, folder: Path) -> None:
    """Writes bf16 weights in the native layout, with the tokenizer and the system prompt that belong to them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = trainer.model.config
    write_checkpoint(folder, config, "native", model_rows(trainer.model, config), dtype=torch.bfloat16)
    write_tekken(folder / "tekken.json", num_ranks=NUM_RANKS)
    (folder / "SYSTEM_PROMPT.txt").write_text(SYSTEM_PROMPT)
