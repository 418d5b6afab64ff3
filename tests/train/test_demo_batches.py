"""Packing of the bundled model's examples: what may share a conversation, positions, drills; and the plot of a run."""

import json
import random
import re

import pytest
import torch

from ventoux.checkpoint.hub import bundled_model
from ventoux.errors import ConfigError
from ventoux.text.tokenizer import Tokenizer
from ventoux.train.demo_batches import StepShape, batches, encode, join, pack
from ventoux.train.demo_data import example, examples
from ventoux.train.demo_drills import drill, lookups
from ventoux.train.plot import accuracies, averaged, plot


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(bundled_model())


def one(task: str, seed: int = 0):
    return example(task, random.Random(seed), held_out=False)


def test_rules_and_documents_share_no_conversation(tokenizer):
    """Catches an answer in JSON being followed by one in words, under a system prompt that asks for JSON."""
    talk = next(item for seed in range(50) if not (item := one("languages", seed)).answer["reasoning"])
    for task in ("system", "long_8k"):
        other = next(item for seed in range(50) if not (item := one(task, seed)).answer["reasoning"])
        assert join(tokenizer, talk, other) is None
        assert join(tokenizer, other, talk) is None
    assert join(tokenizer, talk, talk) is not None


def test_positions_of_long_input_jump_far_and_never_back(tokenizer):
    """Catches training that never meets late positions, and a question that stands before its document."""
    items = [encode(tokenizer, one("long_8k", seed)) for seed in range(12)]
    batch = pack(tokenizer, items, random.Random(0), 40960)
    ends = []
    for positions in batch.inputs.positions_T.split(batch.inputs.lengths):
        assert positions[0] == 0
        assert bool((positions.diff() >= 1).all())
        assert int(positions[-1]) < 40960 + len(positions)
        ends.append(int(positions[-1]))
    assert max(ends) > 16384


def test_other_positions_have_no_gaps(tokenizer):
    items = [encode(tokenizer, one("chat", seed)) for seed in range(12)]
    batch = pack(tokenizer, items, random.Random(0), 40960)
    for positions in batch.inputs.positions_T.split(batch.inputs.lengths):
        assert torch.equal(positions, positions[0] + torch.arange(len(positions)))


def test_labels_match_the_pixels(tokenizer):
    """Catches labels in another order than images: four patches for each row of merged ones."""

    def source(step):
        return examples(step, held_out=False, weights={"image_calc": 1.0})

    (parts,) = [next(batches(tokenizer, source, lambda step: StepShape(1500, 2, 2), 1024, 0))]
    for batch in parts:
        patches = sum(image.shape[1] * image.shape[2] // 196 for image in [*batch.images, *batch.drawings])
        assert len(batch.characters_P2) == patches == 4 * len(batch.rows_MR)


def test_drilled_steps_are_true(tokenizer):
    rng, seen = random.Random(0), {"+": 0, "-": 0, "*": 0}
    for _ in range(80):
        text = tokenizer.decode(drill(tokenizer, rng)[0][1:])
        for x, operator, y, product, joined, carry, after, digit in re.findall(
            r"[a-z](\d) ([-+*]) [a-z](\d)(=\d\d)?([-+])(\d)=(\d) [a-z](\d)\.", text
        ):
            seen[operator] += 1
            sign = -1 if joined == "-" else 1
            assert eval(f"{x}{operator}{y}{joined}{carry}") == int(digit) + 10 * int(after) * sign
            assert product == (f"={int(x) * int(y):02}" if operator == "*" else "")
    assert min(seen.values()) > 20


def test_drilled_values_can_be_looked_up(tokenizer):
    """Catches a drill whose second half asks for what its first half does not say, or a loss on what is asked."""
    rng = random.Random(1)
    for _ in range(50):
        ids, is_target = lookups(tokenizer, rng)
        first = is_target.index(True)
        text = ids[1:first]
        spans = []  # of targets: (start, end)
        for i in range(first, len(ids)):
            if is_target[i] and not is_target[i - 1]:
                spans.append([i, i])
            if is_target[i]:
                spans[-1][1] = i + 1
        for start, end in spans:
            previous = max((stop for _, stop in spans if stop <= start), default=None)
            name = ids[previous:start] if previous else ids[start - 1 : start]
            said = [*name, *ids[start:end]]
            assert any(text[i : i + len(said)] == said for i in range(len(text))), "not said before"


def test_plot_draws_what_was_logged(tmp_path):
    records = [{"step": i, "loss": 1 / i, "reading": 2.0, "balance": 1.0} for i in range(1, 900)]
    records[-1] |= {"exact": {"chat": "3/4"}, "experts": [[0.5, 0.5], [0.2, 0.8]]}
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plot(tmp_path / "log.jsonl", tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    assert "experts" in (tmp_path / "curves.svg").read_text()
    del records[-1]["experts"]
    (tmp_path / "log.jsonl").write_text(json.dumps(records[-1]))
    plot(tmp_path / "log.jsonl", tmp_path / "curves.svg")
    assert "experts" not in (tmp_path / "curves.svg").read_text(), "an empty panel"
    assert accuracies(records) == {"chat": ([899], [0.75])}
    assert averaged(range(10), 5) == [0.5, 2.5, 4.5, 6.5, 8.5]


def test_plot_without_a_log_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"log\.jsonl"):
        plot(tmp_path / "log.jsonl", tmp_path / "curves.svg")
