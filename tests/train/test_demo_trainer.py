"""The trainer of the bundled model: a step, its judging, and a start from another run's weights."""

from dataclasses import replace

import pytest
import torch

from tests.tiny import write_tiny
from ventoux.checkpoint.hub import bundled_model
from ventoux.checkpoint.quantize import quantize
from ventoux.errors import ConfigError
from ventoux.text.tokenizer import Tokenizer
from ventoux.train.demo import TrainConfig, Trainer
from ventoux.train.demo_batches import batches
from ventoux.train.export import export

CONFIG = TrainConfig(
    tokens_per_step=500, drawings_per_step=1, reading_steps=0, drill_steps=0, num_threads=1, judge_tokens=1600
)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory) -> Trainer:
    """After one step."""
    trainer = Trainer(CONFIG, Tokenizer.from_file(bundled_model()), tmp_path_factory.mktemp("run"))
    trainer.run.schedule = type(trainer.run.schedule)(steps=1, decay_steps=1, warmup_steps=1, learning_rate=1e-3)
    records = []
    trainer.train(records.append)
    (trainer.record,) = records
    return trainer


def test_a_step_learns_from_answers_and_from_drawings(trainer):
    """Catches a loss that was dropped, and gradients that never reach the reader."""
    assert trainer.record["loss"] > 1 and trainer.record["reading"] > 1 and trainer.record["norm"] > 0
    fresh = Trainer(CONFIG, trainer.tokenizer, trainer.run.out / "fresh")
    moved = {
        name.split(".")[0]
        for module, other in ((trainer.model, fresh.model), (trainer.reader, fresh.reader))
        for (name, p), q in zip(module.named_parameters(), other.parameters(), strict=True)
        if not torch.equal(p, q)
    }
    assert {"language_model", "vision_tower", "multi_modal_projector", "lm_head", "of_patch", "of_row"} <= moved


def test_reading_steps_hold_drawings_alone_and_move_the_eyes_alone(tmp_path, trainer):
    """Catches text in the steps before, and a decoder that moves without having been asked."""
    config = replace(CONFIG, reading_steps=1, drawings_per_reading_step=3)
    assert config.shape(0).tokens == 0 and config.shape(1).tokens == 500
    reading = Trainer(config, trainer.tokenizer, tmp_path)
    before = {name: p.clone() for name, p in reading.model.named_parameters()}
    parts = next(batches(trainer.tokenizer, reading.source, config.shape, 1024, 0))
    assert sum(len(part.drawings) for part in parts) == 3 and not any(part.num_tokens for part in parts)
    assert reading.train_step(parts)["reading"] > 1
    moved = {name.split(".")[0] for name, p in reading.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"vision_tower", "multi_modal_projector"}


def test_judging_reports_tasks_and_the_load_of_every_layer(trainer):
    assert trainer.record["exact"]
    assert all(0 <= share <= 1 for share in trainer.record["named"])
    assert all(0 <= int(a) <= int(b) for a, b in (tally.split("/") for tally in trainer.record["exact"].values()))
    load = trainer.record["experts"]
    assert len(load) == trainer.model.config.text.num_hidden_layers
    assert all(sum(layer) == pytest.approx(1, abs=0.01) for layer in load)


def test_a_new_run_starts_with_another_runs_weights(trainer, tmp_path):
    """Catches a start that keeps its own weights, or goes on counting the other's steps."""
    other = Trainer(CONFIG, trainer.tokenizer, tmp_path)
    other.start_from(trainer.run.state_file)
    assert torch.equal(other.model.lm_head.weight, trainer.model.lm_head.weight)
    assert torch.equal(other.reader.of_row.weight, trainer.reader.of_row.weight)
    assert other.run.step == 0


def test_a_new_run_starts_with_a_checkpoint(trainer, tmp_path):
    """Catches weights that stay as they were laid out, eyes included."""
    export(trainer, tmp_path / "model")
    other = Trainer(CONFIG, trainer.tokenizer, tmp_path)
    other.start_from(tmp_path / "model")
    for (name, p), q in zip(other.model.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(p, q.bfloat16().float()), name
        assert p.requires_grad


@pytest.mark.parametrize(("quantized", "words"), [(False, "not a model of this architecture"), (True, "is quantized")])
def test_a_start_with_another_architecture_or_quantized_says_so(trainer, tmp_path, quantized, words):
    folder = write_tiny(tmp_path / "model")
    if quantized:
        quantize(folder, tmp_path / "fp8", "fp8")
        folder = tmp_path / "fp8"
    with pytest.raises(ConfigError, match=words):
        Trainer(CONFIG, trainer.tokenizer, tmp_path / "out").start_from(folder)


@pytest.mark.parametrize("content", [b"", b"no state", None], ids=["empty", "text", "another state"])
def test_a_start_from_something_else_says_so(trainer, tmp_path, content):
    """Catches tracebacks of whatever the file turns out to be."""
    path = tmp_path / "state.pt"
    if content is None:
        torch.save({"step": 3}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="not the state"):
        Trainer(CONFIG, trainer.tokenizer, tmp_path / "out").start_from(path)
