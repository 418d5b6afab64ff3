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
from ventoux.errors import ConfigError
from ventoux.hardware import Hardware, probe_hardware
from ventoux.ops.cpu import instruction_sets, native_operators
from ventoux.ops.reference import REFERENCE
from ventoux.ops.spec import Operators

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Built:
    engine: Engine
    plan: EnginePlan
    config: ModelConfig


def choose_operators(plan: EnginePlan) -> Operators:
    """Native code where it is installed and the model runs on a CPU, unless the user chose.

    Raises:
        ConfigError: native code was asked for and is not to be had.
    """
    if plan.operators == "cpu" and plan.device != "cpu":
        raise ConfigError(f"--operators cpu: the model is to run on {plan.device}; leave the flag out.")
    native = plan.device == "cpu" and bool(instruction_sets())
    if plan.operators == "cpu" or (plan.operators == "auto" and native):
        return native_operators(plan.num_threads)
    return REFERENCE


def all_operators(num_threads: int) -> list[Operators]:
    """Every provider that this machine can run, native ones once per instruction set, best first."""
    return [*(native_operators(num_threads, name) for name in instruction_sets()), REFERENCE]


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
    if choices.yarn_apply_scale is not None:
        text = checkpoint.config.text
        text = replace(text, rope=replace(text.rope, apply_scale=choices.yarn_apply_scale))
        checkpoint = replace(checkpoint, config=replace(checkpoint.config, text=text))
    config = checkpoint.config
    plan = resolve(config, checkpoint.weights(), choices, probe())
    torch.set_num_threads(plan.num_threads)
    ops = choose_operators(plan)
    plan = replace(plan, operators=ops.name)
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
