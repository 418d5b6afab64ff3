"""Wires a checkpoint, the machine and the user's choices into an engine that is ready to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.load import load_model
from ventoux.config import EngineConfig, EnginePlan, ModelConfig, resolve
from ventoux.engine.engine import Engine, MaskFactory
from ventoux.engine.runner import DTYPES
from ventoux.hardware import Hardware, probe_hardware
from ventoux.model.tensors import tensor_table
from ventoux.ops.reference import REFERENCE
from ventoux.ops.spec import choose

Progress = Callable[[int, int], None]
# In order of preference.
PROVIDERS = [REFERENCE]


@dataclass(frozen=True)
class Built:
    engine: Engine
    plan: EnginePlan
    config: ModelConfig


def probe() -> Hardware:
    """The machine, CUDA included (which only torch can tell)."""
    if not torch.cuda.is_available():
        return probe_hardware()
    free, _ = torch.cuda.mem_get_info()
    return replace(probe_hardware(), cuda_name=torch.cuda.get_device_name(), cuda_available_bytes=free)


def build_engine(folder: Path, choices: EngineConfig, progress: Progress | None = None) -> Built:
    """Opens, plans, loads. No tokenizer is needed before the first grammar.

    Raises:
        CheckpointError: the files cannot be used; all problems are listed.
        ConfigError: the choices cannot be honoured on this machine.
    """
    checkpoint = open_checkpoint(folder)
    checkpoint.require_loadable()
    if choices.yarn_apply_scale is not None:
        text = checkpoint.config.text
        text = replace(text, rope=replace(text.rope, apply_scale=choices.yarn_apply_scale))
        checkpoint = replace(checkpoint, config=replace(checkpoint.config, text=text))
    config = checkpoint.config
    num_parameters = sum(row.num_parameters for row in tensor_table(config))
    plan = resolve(config, num_parameters, choices, probe())
    torch.set_num_threads(plan.num_threads)
    ops = choose(PROVIDERS)
    model = load_model(checkpoint, ops, dtype=DTYPES[plan.dtype], device=plan.device, progress=progress)
    return Built(Engine(model, plan, _mask_factory(folder)), plan, config)


def _mask_factory(folder: Path) -> MaskFactory:
    """Compiles grammars; mistral-common and the vocabulary (0.7 to 3 s) are loaded when the first one comes."""

    @cache
    def compiler():
        from ventoux.text.grammar import GrammarCompiler
        from ventoux.text.tokenizer import Tokenizer

        return GrammarCompiler(Tokenizer.from_file(folder))

    return lambda grammar: compiler().compile(grammar)
