"""Prompts on which two sets of weights are compared: stored texts, in the words of the model's own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ventoux.checkpoint.compare import NUM_PROMPTS, PROMPT_TOKENS, random_prompts
from ventoux.checkpoint.files import Checkpoint
from ventoux.errors import CheckpointError
from ventoux.text.tokenizer import Tokenizer

# Prose in two languages, code, and a conversation with numbers: each longer than PROMPT_TOKENS tokens of 6 bytes.
TEXTS = (
    "The mountain stands alone above the plain, and its upper slopes are bare white stone. On most days of the year a"
    " wind blows there that can knock a rider off the road; in winter the pass is closed. From the top one sees the"
    " Alps in the east, the sea in the south and, on a very clear morning, the peaks of the Pyrenees. People have"
    " measured the weather up there for more than a hundred years, first by mule and later by wire.",
    "Le moteur lit les poids du modèle une seule fois, puis il répond aux demandes dans l'ordre où elles arrivent. Si"
    " la mémoire ne suffit pas, il le dit avant de commencer, avec les chiffres qu'il faudrait changer. Une réponse ne"
    " dépend jamais de ce que les autres ont demandé au même moment, ni du nombre de processeurs de la machine, et"
    " c'est ce que vérifient les essais avant chaque nouvelle version.",
    "def merge(intervals):\n    merged = []\n    for start, end in sorted(intervals):\n        if merged and start <="
    " merged[-1][1]:\n            merged[-1][1] = max(merged[-1][1], end)\n        else:\n"
    "            merged.append([start, end])\n    return merged\n\n\ndef total_length(intervals):\n"
    "    return sum(end - start for start, end in merge(intervals))\n\n\nassert total_length([(1, 4), (2, 6), (8, 9)])"
    " == 6\nassert total_length([]) == 0\n",
    "Question: A baker sells 240 loaves on Monday, a quarter fewer on Tuesday, and on Wednesday as many as on both days"
    " together, less 36. Each loaf costs 2.80 euros. How much does she earn in the three days?\nAnswer: On Tuesday she"
    " sells 240 - 60 = 180 loaves. Monday and Tuesday together make 420, so on Wednesday it is 420 - 36 = 384. In all"
    " three days that is 804 loaves, and 804 times 2.80 euros is 2251.20 euros.",
)
assert len(TEXTS) == NUM_PROMPTS


@dataclass(frozen=True)
class Prompts:
    """Token ids [prompts, tokens], and what they are, for reports."""

    ids: torch.Tensor
    what: str


def prompts_for(checkpoint: Checkpoint) -> Prompts:
    """The beginnings of the stored texts; random tokens where the folder has no tokenizer of this model."""
    vocab_size = checkpoint.config.text.vocab_size
    try:
        tokenizer = Tokenizer.from_file(checkpoint.folder)
        tokenizer.require_vocabulary(vocab_size)
    except CheckpointError:
        return Prompts(random_prompts(vocab_size), f"{NUM_PROMPTS} prompts of {PROMPT_TOKENS} random tokens")
    rows = [tokenizer.encode_text(text, bos=True) for text in TEXTS]
    length = min(PROMPT_TOKENS, *map(len, rows))  # fewer if a tokenizer has words of its own for them
    return Prompts(torch.tensor([row[:length] for row in rows]), f"{NUM_PROMPTS} stored texts of {length} tokens")
