"""Flags of the model card's command line: accepted with their meaning, or with a line that says why they have none."""

from __future__ import annotations

import argparse
import json

import pytest

from ventoux.cli import main
from ventoux.cli.compat import add_compatible_flags, images_per_prompt, join_speculative, notices
from ventoux.cli.flags import add_flags, normalise
from ventoux.cli.serve import add_arguments
from ventoux.config import EngineConfig
from ventoux.errors import ConfigError
from ventoux.speculative import SpeculativeConfig, parse_speculative

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


EAGLE = {"method": "eagle", "model": "mistralai/draft", "num_speculative_tokens": 3}


@pytest.mark.parametrize(
    "words",
    [
        ["--speculative-config", json.dumps(EAGLE)],
        [f"--speculative-config={json.dumps(EAGLE)}"],
        ["-sc", json.dumps(EAGLE)],
        [
            *("--speculative-config.method", "eagle", "--speculative-config.model=mistralai/draft"),
            "-sc",
            '{"num_speculative_tokens": 3}',
        ],
    ],
)
def test_all_forms_of_the_speculative_config_become_one(words):
    flag, equals, value = join_speculative(["serve", *words, "--port", "1"])[1].partition("=")
    assert (flag, equals, json.loads(value)) == ("--speculative-config", "=", EAGLE)
    assert join_speculative(["serve", *words, "--port", "1"])[2:] == ["--port", "1"]


def test_the_card_s_speculative_config():
    """Underscores, a line break inside, numbers as strings, and a key that has no effect here."""
    text = """{
    "model": "mistralai/Mistral-Small-4-119B-2603-eagle",
    "num_speculative_tokens": 3,
    "method": "eagle",
    "max_model_len": "16384"
  }"""
    words = join_speculative(normalise(["serve", "--speculative_config", text, "model"]))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    config = parse_speculative(parser.parse_args(words[1:]).speculative_config)
    assert config == SpeculativeConfig("eagle", "mistralai/Mistral-Small-4-119B-2603-eagle", 3, 16384)


@pytest.mark.parametrize("value", ["eagle", "[1]", ""])
def test_speculative_config_must_be_an_object(value):
    with pytest.raises(ConfigError, match="must be a JSON object"):
        join_speculative(["serve", "--speculative-config", value])


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"method": "medusa"}, "method must be one of"),
        ({"method": "eagle", "num_speculative_tokens": 0}, "whole number from 1"),
        ({"num_speculative_tokens": 99}, "at most 16"),
        ({"num_speculative_tokens": "many"}, "whole number"),
        ({"max_model_len": -1}, "max_model_len must be"),
        ({"num_tokens": 3}, "unknown key 'num_tokens'"),
        ({"model": 7}, "a folder or a Hub id"),
        ({"method": "ngram", "model": "x"}, "takes no model"),
        ({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 3}, "must not exceed"),
        ({"adaptive": "no"}, "adaptive must be true or false"),
        ({"draft_sample_method": "probabilistic"}, "can only be greedy"),
    ],
)
def test_what_is_wrong_with_a_speculative_config(config, problem):
    with pytest.raises(ConfigError, match=problem):
        parse_speculative(config)


def test_all_problems_of_a_speculative_config_at_once():
    with pytest.raises(ConfigError, match=r"method.*; num_speculative_tokens"):
        parse_speculative({"method": "x", "num_speculative_tokens": 0})


def test_refused_on_the_command_line(capsys):
    """With underscores too: they are made dashes before anything looks at the flag."""
    assert main(["serve", "--speculative_config", '{"method": "medusa"}']) == 2
    assert "method must be one of" in capsys.readouterr().err
