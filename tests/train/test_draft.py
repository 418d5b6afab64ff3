"""Training a draft: what is recorded is what the model computed, and learning from it raises what comes true."""

import pytest
import torch

from tests.engines import generate, image, image_tokens, prompt, request, tiny_engine
from tests.tiny import tiny_config, tiny_draft, tiny_draft_config, tiny_model, write_tiny
from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.load import load_draft
from ventoux.checkpoint.write import model_rows, write_checkpoint
from ventoux.config import Speculation, StoredWeights
from ventoux.engine.drafting import EagleDrafter
from ventoux.errors import ConfigError
from ventoux.model.decoder import ForwardInputs
from ventoux.ops.cpu import instruction_sets, native_operators
from ventoux.ops.reference import REFERENCE
from ventoux.train.draft import DraftTrainConfig, DraftTrainer, draft_config, first_draft, pack
from ventoux.train.record import load_recordings, record

IMAGE = image(2, 3, seed=4)
WITH_IMAGE = [*prompt(5, 1), *image_tokens(2, 3), *prompt(4, 2)]


def requests(count=6):
    texts = [request(prompt(6 + i, seed=i), f"r{i}", max_tokens=10) for i in range(count)]
    return [*texts, request(WITH_IMAGE, "image", images=[IMAGE], max_tokens=9)]


def recorded(tmp_path, asked, **choices):
    engine = tiny_engine(1024, enable_prefix_caching=False, **choices)
    counts = list(record(engine, asked, tmp_path))
    assert counts[-1] == len(asked)
    return [r for path in sorted(tmp_path.glob("*.safetensors")) for r in load_recordings(path)]


def trainer_of(config, target, files, out):
    return DraftTrainer(config, target, first_draft(target.config, config.seed), files, out)


@pytest.mark.parametrize("choices", [{}, {"max_num_batched_tokens": 5}, {"max_num_seqs": 2}], ids=str)
def test_recordings_hold_what_the_model_computed(tmp_path, choices):
    """Hidden states by position, whatever the chunks; the ids of prompt and answer; the rows of images."""
    asked = requests()
    answers = {
        tuple(one.prompt_token_ids): ids for one, ids in zip(asked, generate(tiny_engine(), *requests()), strict=True)
    }
    model = tiny_model()
    found = recorded(tmp_path, asked, **choices)
    assert len(found) == len(asked)
    for r in found:
        ids = r.token_ids_T.tolist()
        assert ids == [*ids[: r.num_prompt], *answers[tuple(ids[: r.num_prompt])]]
        images = {"image_idx_M": r.image_idx_M, "image_rows_MD": r.image_rows_MD.float()} if len(r.image_idx_M) else {}
        inputs = ForwardInputs(torch.tensor(ids), torch.arange(len(ids)), (len(ids),), **images)
        with torch.inference_mode():
            hidden = model(inputs)
        assert len(r.hidden_PD) == len(ids) - 2
        assert torch.allclose(r.hidden_PD.float(), hidden[:-2], atol=0.05), "bf16 of states of order 1"
    assert sum(len(r.image_idx_M) for r in found) == 6


def test_an_interrupted_recording_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("ventoux.train.record.FILE_SIZE", 3)
    engine = tiny_engine(1024, enable_prefix_caching=False)
    first = record(engine, requests(), tmp_path)
    assert next(first) == 3
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert list(record(tiny_engine(1024, enable_prefix_caching=False), requests(), tmp_path)) == [3, 6, 7]
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}.items()


def test_slots_pair_a_state_with_the_next_token_and_aim_at_the_one_after(tmp_path):
    first, second = recorded(tmp_path, requests(2)[:2])
    batch = pack([first, second])
    n = len(first.hidden_PD)
    ids = first.token_ids_T.tolist()
    assert batch.inputs.token_ids_T[:n].tolist() == ids[1 : n + 1]
    assert batch.inputs.positions_T.tolist() == [*range(n), *range(len(second.hidden_PD))]
    wanted = [ids[p + 2] if p + 2 >= first.num_prompt else -100 for p in range(n)]
    assert batch.targets_T[:n].tolist() == wanted and wanted[-1] == ids[-1]
    answer = [p for p in range(n) if wanted[p] >= 0]
    assert torch.allclose(batch.weights_T[:n][answer], torch.tensor(len(answer) ** -0.5))
    assert batch.weights_T[:n].count_nonzero() == len(answer)
    assert torch.equal(batch.next_hidden_TD[: n - 1], batch.hidden_TD[1:n])
    assert batch.has_next_T[:n].tolist() == [True] * (n - 1) + [False]


def test_other_prompts_or_another_model_are_not_taken_for_the_recorded_ones(tmp_path):
    """Hidden states of one model and the head of another: the draft would learn nonsense, and nobody be told."""
    engine = tiny_engine(1024, enable_prefix_caching=False)
    list(record(engine, requests(2), tmp_path))
    with pytest.raises(ConfigError, match="other prompts"):
        next(record(engine, requests(3), tmp_path))
    with torch.no_grad():
        engine.runner.model.lm_head.weight.mul_(2)
    with pytest.raises(ConfigError, match="another model"):
        next(record(engine, requests(2), tmp_path))


@pytest.mark.skipif(not instruction_sets(), reason="no native operators")
def test_what_the_target_was_loaded_with_does_not_matter(tmp_path):
    """Native operators pass no gradients on: through them, the loss against the coming token would teach nothing."""
    recorded(tmp_path / "data", requests(2))
    (path,) = (tmp_path / "data").glob("*.safetensors")
    config = DraftTrainConfig(steps=2, decay_steps=1, tokens_per_step=40, num_threads=1, regression=0.0)
    learnt = []
    for ops in (REFERENCE, native_operators(1)):
        target = tiny_model()
        target.ops = ops
        trainer = trainer_of(config, target, [path, path], tmp_path / ops.name)
        trainer.train(lambda record: None)
        learnt.append(trainer.draft.eagle_linear.weight.detach())
    untouched = trainer_of(config, tiny_model(), [path, path], tmp_path / "none").draft.eagle_linear.weight
    assert torch.equal(*learnt) and not torch.allclose(learnt[0], untouched)


def test_a_target_in_bf16_teaches_as_well(tmp_path):
    """Machines with bf16 instructions load it so."""
    recorded(tmp_path / "data", requests(2))
    (path,) = (tmp_path / "data").glob("*.safetensors")
    config = DraftTrainConfig(steps=2, decay_steps=1, tokens_per_step=40, num_threads=1)
    trainer = trainer_of(config, tiny_model().bfloat16(), [path, path], tmp_path)
    before = trainer.draft.eagle_linear.weight.detach().clone()
    trainer.train(lambda record: None)
    after = trainer.draft.eagle_linear.weight.detach()
    assert after.isfinite().all() and not torch.equal(after, before)


def test_training_exporting_and_guessing(tmp_path):
    """A draft that has learned a handful of answers by heart guesses them in the engine; one without training not."""
    asked = requests(8)
    recorded(tmp_path / "data", asked)
    (path,) = (tmp_path / "data").glob("*.safetensors")
    config = DraftTrainConfig(
        steps=60, decay_steps=30, warmup_steps=5, tokens_per_step=150, learning_rate=1e-2, num_threads=1
    )
    trainer = trainer_of(config, tiny_model(), [path, path], tmp_path)
    before = trainer.judge()["held_out"][0]
    records = []
    trainer.train(records.append)
    assert records[-1]["held_out"][0] > max(0.8, before + 0.3)
    own = draft_config(tiny_config())
    write_checkpoint(tmp_path / "eagle", own, "native", model_rows(trainer.draft, own), dtype=torch.float32)
    draft = load_draft(open_checkpoint(tmp_path / "eagle"), REFERENCE, dtype=torch.float32)
    always = Speculation("eagle", 3, StoredWeights(0), own.text.cached_values, adaptive=False)
    engine = tiny_engine(1024, make_drafter=lambda runner, plan: EagleDrafter(draft, runner, plan), speculation=always)
    assert generate(engine, *asked) == generate(tiny_engine(), *requests(8))
    stats = engine.stats()
    assert stats.spec_decode_num_accepted_tokens > 0.5 * stats.spec_decode_num_draft_tokens


def test_an_interrupted_training_goes_on(tmp_path):
    recorded(tmp_path / "data", requests(2))
    (path,) = (tmp_path / "data").glob("*.safetensors")
    short = DraftTrainConfig(steps=3, decay_steps=2, tokens_per_step=40, num_threads=1)
    trainer_of(short, tiny_model(), [path, path], tmp_path).train(lambda record: None)
    again = trainer_of(DraftTrainConfig(steps=5, decay_steps=2, num_threads=1), tiny_model(), [path, path], tmp_path)
    assert again.run.resume() and again.run.step == 3
    steps = []
    again.train(lambda record: steps.append(record["step"]))
    assert steps == [4, 5]


def test_a_training_starts_with_another_draft(tmp_path):
    """Catches a start that keeps its own weights."""
    write_tiny(tmp_path / "eagle", config=tiny_draft_config(), seed=5)
    draft = first_draft(tiny_model().config, 0, open_checkpoint(tmp_path / "eagle"))
    for got, want in zip(draft.parameters(), tiny_draft(seed=5).parameters(), strict=True):
        assert torch.equal(got, want) and got.requires_grad


def test_the_draft_of_a_model_has_its_widths_and_dense_layers():
    target = tiny_model().config
    own = draft_config(target)
    assert own.is_draft and own.text.hidden_size == target.text.hidden_size
    assert all(own.text.is_dense(layer) for layer in range(own.text.num_hidden_layers))
