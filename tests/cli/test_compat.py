"""Flags of the model card's command line: accepted with their meaning, or with a line that says why they have none."""

from __future__ import annotations

import argparse

import pytest

from ventoux.cli import main
from ventoux.cli.compat import add_compatible_flags, check_speculative, images_per_prompt, notices
from ventoux.cli.flags import add_flags, normalise
from ventoux.cli.serve import add_arguments
from ventoux.config import EngineConfig
from ventoux.errors import ConfigError

CARD = (
    "mistralai/Mistral-Small-4 --max-model-len 262144 --tensor-parallel-size 2 --attention-backend FLASH_ATTN_MLA"
    " --tool-call-parser mistral --enable-auto-tool-choice --reasoning-parser mistral --max_num_batched_tokens 16384"
    " --max_num_seqs 128 --gpu_memory_utilization 0.8"
)


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, EngineConfig, "engine")
    add_compatible_flags(parser)
    return parser.parse_args(normalise(words))


def test_the_cards_command_line():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    args = parser.parse_args(normalise(CARD.split()))
    assert (args.max_model_len, args.max_num_batched_tokens, args.memory_utilization) == (262144, 16384, 0.8)
    told = "\n".join(notices(args))
    for flag in ("--attention-backend", "--tool-call-parser", "--enable-auto-tool-choice", "--reasoning-parser"):
        assert f"{flag} has no effect here" in told
    assert "--tensor-parallel-size" in told


def test_nothing_is_told_unasked():
    assert notices(parse("--max-model-len", "4k")) == []


def test_every_notice_is_one_line_about_its_flag():
    lines = notices(parse("--trust-remote-code", "--load-format", "auto"))
    assert [line.split()[0] for line in lines] == ["--load-format", "--trust-remote-code"]


def test_several_gpus_are_no_matter_for_a_notice_on_cuda():
    assert notices(parse("-tp", "2", "--device", "cuda")) == []


@pytest.mark.parametrize("text", ['{"image": 4}', "image=4"])
def test_image_limit(text):
    assert images_per_prompt(text) == 4


@pytest.mark.parametrize("text", ['{"video": 1, "image": 2}', "{}", "image=-1", "image=many", '{"image": [1]}', "{"])
def test_image_limits_that_are_no_good(text):
    with pytest.raises(ConfigError, match="--limit-mm-per-prompt"):
        images_per_prompt(text)


@pytest.mark.parametrize(
    "words",
    [
        ["--speculative-config", '{"method": "none"}'],
        ['--speculative-config={"method": "none"}'],
        ["-sc", '{"method": "none"}'],
        ["--speculative-config.method", "none"],
        ["--speculative-config.method=none"],
    ],
)
def test_no_drafting_is_accepted(words):
    assert check_speculative(["serve", *words, "--port", "1"]) == ["serve", "--port", "1"]


@pytest.mark.parametrize(
    "words",
    [
        ["--speculative-config", '{"method": "eagle", "model": "x", "num_speculative_tokens": 3}'],
        ["--speculative-config.method", "eagle", "--speculative-config.num_speculative_tokens", "3"],
        ["--speculative-config.model", "x"],
    ],
)
def test_drafting_is_refused_with_advice(words):
    with pytest.raises(ConfigError, match="Leave the flag out"):
        check_speculative(["serve", *words])


@pytest.mark.parametrize("value", ["eagle", "[1]", ""])
def test_speculative_config_must_be_an_object(value):
    with pytest.raises(ConfigError, match="must be a JSON object"):
        check_speculative(["serve", "--speculative-config", value])


def test_refused_on_the_command_line(capsys):
    """With underscores too: they are made dashes before anything looks at the flag."""
    assert main(["serve", "--speculative_config", '{"method": "eagle"}']) == 2
    assert "drafting is not built yet" in capsys.readouterr().err
