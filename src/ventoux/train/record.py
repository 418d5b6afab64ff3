"""What a draft learns from: a model's own answers, with the hidden states that led to them.

They are recorded through the engine, at the place where a drafter would see them (engine/drafting.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ventoux.engine.drafting import Progress
from ventoux.engine.engine import Engine
from ventoux.engine.request import EngineOutput, Request
from ventoux.engine.sequence import Sequence as EngineSequence
from ventoux.engine.speculation import Speculation
from ventoux.errors import ConfigError, EngineError

Tensor = torch.Tensor
# Conversations per file, all of them in the engine at once: what an interruption costs.
FILE_SIZE = 64


@dataclass(frozen=True)
class Recording:
    """One conversation: ids [T] of prompt and answer, hidden states [T - 2, D] at the first positions.

    `image_rows_MD` stand at the positions `image_idx_M` instead of embeddings.
    """

    token_ids_T: Tensor
    num_prompt: int
    hidden_PD: Tensor
    image_idx_M: Tensor
    image_rows_MD: Tensor


class _Recorder:
    """A drafter that takes notes and proposes nothing."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[EngineSequence, list[Tensor]]] = {}

    def propose(self, progress: list[Progress]) -> list[list[int]]:
        for p in progress:
            if p.start == 0:  # also after a preemption: all is computed again
                self.seen[p.sequence.request.request_id] = (p.sequence, [])
            self.seen[p.sequence.request.request_id][1].append(p.hidden_KD.to(torch.bfloat16).cpu())
        return [[] for _ in progress]


def record(engine: Engine, requests: Sequence[Request], folder: Path) -> Iterator[int]:
    """Answers all requests and writes files of recordings; yields how many are done, those of earlier runs included.

    The engine must not reuse prefixes (`enable_prefix_caching=False`): what is not computed cannot be seen.

    Raises:
        ConfigError: the folder holds recordings of another model or of other requests.
        EngineError: a request failed.
    """
    assert not engine.plan.enable_prefix_caching
    assert all(request.params.n == 1 for request in requests)
    folder.mkdir(parents=True, exist_ok=True)
    _check_source(engine, requests, folder / "source.sha256")
    for start in range(0, len(requests), FILE_SIZE):
        path = folder / f"recordings-{start // FILE_SIZE:05d}.safetensors"
        part = requests[start : start + FILE_SIZE]
        if not path.exists():
            partial = path.with_suffix(".partial")
            save_file(_flat(_answer(engine, part)), partial)
            partial.rename(path)
        yield start + len(part)


def _check_source(engine: Engine, requests: Sequence[Request], path: Path) -> None:
    """What is there must be of this model (its config and the first values of every parameter) and these requests."""
    digest = hashlib.sha256(repr(engine.config).encode())
    for parameter in engine.runner.model.parameters():
        digest.update(repr(parameter.flatten()[:8].tolist()).encode())
    for request in requests:
        hashes = [image.content_hash for image in request.images]
        digest.update(repr((request.prompt_token_ids, request.params, hashes)).encode())
    if not path.exists():
        path.write_text(digest.hexdigest())
    elif path.read_text() != digest.hexdigest():
        raise ConfigError(f"{path.parent} has recordings of another model or of other prompts; choose another folder.")


def _answer(engine: Engine, requests: Sequence[Request]) -> list[Recording]:
    recorder = _Recorder()
    engine.speculation = Speculation(recorder, engine.scheduler, engine.plan, engine.config.text.vocab_size)
    engine.speculation.pace.adaptive = False  # all is to be seen, whether it pays or not
    for request in requests:
        engine.add(request)
    recordings = []
    while engine.has_work:
        for output in engine.step():
            if output.finish_reason == "error":
                raise EngineError(output.error or "the engine gave no reason")
            if output.finish_reason is not None and output.request_id in recorder.seen:
                recordings.append(_recording(engine, *recorder.seen.pop(output.request_id), output))
    return recordings


def _recording(engine: Engine, sequence: EngineSequence, hidden: list[Tensor], last: EngineOutput) -> Recording:
    ids = [*sequence.token_ids] + ([last.stop_token_id] if last.stop_token_id is not None else [])
    slots, rows = sequence.image_slots, []
    for i, image in enumerate(sequence.request.images):
        rows.append(engine.runner.images[image.content_hash][slots.row[slots.image == i]].to(torch.bfloat16).cpu())
    width = engine.config.text.hidden_size
    hidden_PD = torch.cat(hidden)[: len(ids) - 2]
    return Recording(
        torch.tensor(ids, dtype=torch.int32)[: len(hidden_PD) + 2],
        sequence.num_prompt,
        hidden_PD,
        torch.from_numpy(slots.position.copy()),
        torch.cat(rows) if rows else torch.zeros(0, width, dtype=torch.bfloat16),
    )


def _flat(recordings: list[Recording]) -> dict[str, Tensor]:
    tensors = {}
    for i, r in enumerate(recordings):
        tensors |= {f"{i}.ids": r.token_ids_T, f"{i}.prompt": torch.tensor(r.num_prompt), f"{i}.hidden": r.hidden_PD}
        tensors |= {f"{i}.image_idx": r.image_idx_M, f"{i}.image_rows": r.image_rows_MD}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def load_recordings(path: Path) -> list[Recording]:
    with safe_open(path, "pt") as file:
        count = sum(name.endswith(".ids") for name in file.keys())  # noqa: SIM118 (safe_open is no mapping)
        get = file.get_tensor
        return [
            Recording(
                get(f"{i}.ids"),
                int(get(f"{i}.prompt")),
                get(f"{i}.hidden"),
                get(f"{i}.image_idx"),
                get(f"{i}.image_rows"),
            )
            for i in range(count)
        ]
