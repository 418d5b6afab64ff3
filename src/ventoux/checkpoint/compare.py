"""How far a quantized model's logits are from its source's; one model in memory at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ventoux.checkpoint.files import Checkpoint
from ventoux.checkpoint.load import Progress, load_model
from ventoux.errors import CheckpointError, ConfigError
from ventoux.hardware import probe_hardware
from ventoux.model.decoder import ForwardInputs
from ventoux.ops.spec import Operators
from ventoux.plan import BYTES_PER_VALUE, FP32_UP_TO_PARAMETERS

NUM_PROMPTS = 4
PROMPT_TOKENS = 64
# Ids below are control tokens; [IMG] would ask for an image.
_FIRST_REGULAR = 1000


@dataclass(frozen=True)
class Divergence:
    """Of the next-token distributions at all positions of all prompts; KL(source || quantized) in nats."""

    mean_kl: float
    max_kl: float
    same_top_token: float


def random_prompts(vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Token ids [prompts, tokens], the same for the same seed."""
    first = _FIRST_REGULAR if vocab_size > _FIRST_REGULAR else 0
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(first, vocab_size, (NUM_PROMPTS, PROMPT_TOKENS), generator=generator)


def compute_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """fp32 for small models, so that nothing but the weights' rounding is seen; bf16 for the others."""
    weights = checkpoint.weights()
    small = weights.dense_parameters + weights.quantized_parameters <= FP32_UP_TO_PARAMETERS
    return torch.float32 if small else torch.bfloat16


def check_memory(checkpoint: Checkpoint) -> None:
    """Raises ConfigError if the model's weights do not fit into the free memory."""
    weights, dtype = checkpoint.weights(), str(compute_dtype(checkpoint)).removeprefix("torch.")
    needed = weights.dense_parameters * BYTES_PER_VALUE[dtype] + weights.quantized_bytes
    available = probe_hardware().available_bytes
    if needed > available:
        raise ConfigError(
            f"Comparing logits loads the source model, {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are"
            " free. Use --no-check to quantize without it."
        )


def logits_of(
    checkpoint: Checkpoint, ops: Operators, dtype: torch.dtype, prompts: torch.Tensor, progress: Progress | None = None
) -> torch.Tensor:
    """Logits at every position of the prompts, fp32 [prompts * tokens, V]. The model is gone afterwards.

    Raises:
        CheckpointError: the weights cannot be used, or bring logits that are not finite.
    """
    model = load_model(checkpoint, ops, dtype=dtype, progress=progress)
    num_prompts, length = prompts.shape
    inputs = ForwardInputs(prompts.flatten(), torch.arange(length).repeat(num_prompts), (length,) * num_prompts)
    with torch.inference_mode():
        logits = model.logits(model(inputs)).float()
    if not logits.isfinite().all():
        raise CheckpointError(str(checkpoint.folder), ["its logits are not finite, so there is nothing to compare"])
    return logits


def divergence(source: torch.Tensor, quantized: torch.Tensor) -> Divergence:
    """Compares two results of `logits_of`."""
    log_p, log_q = source.log_softmax(-1), quantized.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    same = (source.argmax(-1) == quantized.argmax(-1)).float().mean()
    return Divergence(kl.mean().item(), kl.max().item(), same.item())
