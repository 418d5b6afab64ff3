"""Wires a checkpoint, the machine and the user's choices into an engine that is ready to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from ventoux.checkpoint.files import Checkpoint, narrow, open_checkpoint
from ventoux.checkpoint.hub import resolve_model
from ventoux.checkpoint.load import load_draft, load_model
from ventoux.config import EngineConfig, ModelConfig, Speculation
from ventoux.engine.drafting import Drafter, EagleDrafter, NgramDrafter
from ventoux.engine.engine import Engine, MaskFactory
from ventoux.engine.runner import DTYPES, Runner
from ventoux.errors import ConfigError
from ventoux.hardware import Hardware, probe_hardware
from ventoux.ops.cpu import instruction_sets, native_operators
from ventoux.ops.formats import GROUP, nvfp4_bytes, to_nvfp4
from ventoux.ops.reference import REFERENCE
from ventoux.ops.spec import Operators
from ventoux.ops.threads import torch_threads
from ventoux.plan import EnginePlan, resolve
from ventoux.speculative import SpeculativeConfig, parse_speculative

# Where a draft lies in its model's folder.
DRAFT_FOLDER = "eagle"
# Parameters of a head that no cache holds.
LARGE_HEAD = 2**25
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


@dataclass(frozen=True)
class Start:
    """All that is decided before the first weight is read."""

    checkpoint: Checkpoint
    asked: SpeculativeConfig
    draft: Checkpoint | None
    plan: EnginePlan


def plan_start(folder: Path, choices: EngineConfig) -> Start:
    """Opens the files and plans. Raises as `build_engine`."""
    checkpoint = open_checkpoint(folder)
    if choices.yarn_apply_scale is not None:
        text = checkpoint.config.text
        text = replace(text, rope=replace(text.rope, apply_scale=choices.yarn_apply_scale))
        checkpoint = replace(checkpoint, config=replace(checkpoint.config, text=text))
    checkpoint = narrow(checkpoint, {"attention": choices.attention_format, "head": choices.head_format})
    config = checkpoint.config
    asked = parse_speculative(choices.speculative_config)
    draft = open_draft(folder, asked, config)
    plan = resolve(config, checkpoint.weights(), choices, probe(), speculation(asked, draft, checkpoint))
    return Start(checkpoint, asked, draft, plan)


def build_engine(folder: Path, choices: EngineConfig, progress: Progress | None = None) -> Built:
    """Opens, plans, loads. No tokenizer is needed before the first grammar.

    Raises:
        CheckpointError: the files cannot be used; all problems are listed.
        ConfigError: the choices cannot be honoured on this machine.
    """
    start = plan_start(folder, choices)
    checkpoint, asked, draft, plan = start.checkpoint, start.asked, start.draft, start.plan
    config = checkpoint.config
    ops = choose_operators(plan)
    plan = replace(plan, operators=ops.name)
    with torch_threads(plan.num_threads):
        model = load_model(checkpoint, ops, dtype=DTYPES[plan.dtype], device=plan.device, progress=progress)

        def make_drafter(runner: Runner) -> Drafter:
            if draft is None:
                return NgramDrafter(asked.prompt_lookup_max, min(asked.prompt_lookup_min, asked.prompt_lookup_max))
            weights = load_draft(draft, ops, dtype=DTYPES[plan.dtype], device=plan.device, progress=progress)
            # The reference would dequantize all of it for every guess.
            copies = ops is not REFERENCE and copies_head(checkpoint)
            head = model.lm_head.weight
            return EagleDrafter(weights, runner, plan, to_nvfp4(head) if copies else head)

        drafting = None if plan.speculation == "none" else make_drafter
        return Built(Engine(model, plan, _mask_factory(folder), drafting), plan, config)


def open_draft(folder: Path, asked: SpeculativeConfig, target: ModelConfig) -> Checkpoint | None:
    """The draft that is to guess for the model in `folder`: the one asked for, or the one that lies in the folder.

    Raises:
        CheckpointError: it cannot be opened.
        ConfigError: none was found though EAGLE was asked for, or it does not fit the model.
    """
    if asked.method in ("ngram", "none"):
        return None
    place = resolve_model(asked.model) if asked.model is not None else folder / DRAFT_FOLDER
    if asked.model is None and not place.is_dir():
        if asked.method == "eagle":
            raise ConfigError(
                f'--speculative-config: which draft? Name one with "model"; {folder} has no folder {DRAFT_FOLDER}.'
            )
        return None
    draft = open_checkpoint(place)
    text, own = target.text, draft.config.text
    problems = [] if draft.config.is_draft else ["it is a whole model, not a draft"]
    for name in ("hidden_size", "vocab_size"):
        if getattr(own, name) != getattr(text, name):
            problems.append(f"its {name} is {getattr(own, name)}, the model's is {getattr(text, name)}")
    if asked.max_model_len is not None and asked.max_model_len > own.max_position_embeddings:
        problems.append(f"max_model_len {asked.max_model_len} is more than its {own.max_position_embeddings} positions")
    if problems:
        raise ConfigError(f"The draft {place} cannot guess for this model: {'; '.join(problems)}.")
    return draft


def speculation(asked: SpeculativeConfig, draft: Checkpoint | None, target: Checkpoint) -> Speculation:
    """What the plan has to know. A draft reads positions as the target does, so its own limit binds only if asked."""
    count, adaptive = asked.num_speculative_tokens, asked.adaptive
    if draft is None:
        return Speculation("ngram", count, adaptive=adaptive) if asked.method == "ngram" else Speculation()
    text, own = target.config.text, draft.config.text
    weights = draft.weights()
    if copies_head(target):
        weights = replace(weights, quantized_bytes=weights.quantized_bytes + nvfp4_bytes(_head_size(target)))
    longest = min(own.max_position_embeddings, text.max_position_embeddings)
    return Speculation("eagle", count, weights, own.cached_values, asked.max_model_len or longest, adaptive)


def copies_head(target: Checkpoint) -> bool:
    """Whether guesses are read from a copy of the target's head, in NVFP4: each guess reads all of it, and what is
    sampled in the end does not depend on guesses."""
    head = next((row for row in target.rows if row.part == "head"), None)  # None: tied to the embeddings
    is_plain = head is None or target.loaded_as(head) == "bf16"
    return is_plain and _head_size(target) >= LARGE_HEAD and target.config.text.hidden_size % GROUP == 0


def _head_size(target: Checkpoint) -> int:
    return target.config.text.vocab_size * target.config.text.hidden_size


def _mask_factory(folder: Path) -> MaskFactory:
    """Compiles grammars; mistral-common and the vocabulary (0.7 to 3 s) are loaded when the first one comes."""

    @cache
    def compiler():
        from ventoux.text.grammar import GrammarCompiler
        from ventoux.text.tokenizer import Tokenizer

        return GrammarCompiler(Tokenizer.from_file(folder))

    return lambda grammar: compiler().compile(grammar)
