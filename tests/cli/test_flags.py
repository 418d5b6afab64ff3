"""Flags: units, spellings, aliases, configuration files, and what is refused."""

from __future__ import annotations

import argparse
from dataclasses import fields

import pytest

from ventoux.cli import main
from ventoux.cli.flags import add_flags, config_model, from_args, normalise, parse_count, with_config_file
from ventoux.config import EngineConfig, ServerConfig
from ventoux.errors import ConfigError


def parse(*words: str, config: type = EngineConfig):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, config, "flags")
    return from_args(config, parser.parse_args(normalise(words)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16384", 16384),
        ("256k", 262144),
        ("256K", 262144),
        ("4GiB", 4 * 2**30),
        ("4GB", 4 * 10**9),
        ("4g", 4 * 2**30),
        ("1.5KiB", 1536),
        ("20MiB", 20 * 2**20),
        ("1 MB", 10**6),
        ("-1", -1),
    ],
)
def test_units(text, value):
    """A context of 256k is 262144 tokens, not 256000; GB and GiB differ."""
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["", "k", "4x", "1e3", "4GiBs", "0x10", "4 4", "8000.9", "1.00001k"])
def test_no_numbers(text):
    """8000.9 was port 8000."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no (whole )?number"):
        parse_count(text)


@pytest.mark.parametrize(
    "words",
    [("--max-num-seqs", "7"), ("--max_num_seqs", "7"), ("--max-num-seqs=7",), ("--max_num_seqs=7",)],
)
def test_spellings(words):
    assert parse(*words).max_num_seqs == 7


def test_only_names_change_their_underscores():
    """A value with underscores must arrive as it is, and so must the field of a dotted flag."""
    words = ["serve", "my_model", "--served_model_name=my_name", "--speculative_config.max_model_len", "3", "-p", "a_b"]
    assert normalise(words) == [
        *("serve", "my_model", "--served-model-name=my_name"),
        *("--speculative-config.max_model_len", "3", "-p", "a_b"),
    ]


def test_aliases():
    config = parse("-tp", "2", "--gpu-memory-utilization", "0.5", "--block-size", "32")
    assert (config.tensor_parallel_size, config.memory_utilization, config.page_size) == (2, 0.5, 32)


def test_switches_go_both_ways():
    assert parse("--enable-prefix-caching").enable_prefix_caching is True
    assert parse("--no-enable-prefix-caching").enable_prefix_caching is False


def test_flags_that_are_not_given_leave_the_defaults():
    assert parse() == EngineConfig()
    assert parse(config=ServerConfig) == ServerConfig()


def test_lists_become_tuples():
    config = parse("--served-model-name", "a", "b", "--api-key", "k", config=ServerConfig)
    assert config.served_model_name == ("a", "b") and config.api_key == ("k",)


@pytest.mark.parametrize("config", [EngineConfig, ServerConfig])
def test_every_field_is_a_flag(config):
    parser = argparse.ArgumentParser()
    add_flags(parser, config, "flags")
    shown = parser.format_help()
    for field in fields(config):
        assert "--" + field.name.replace("_", "-") in shown


def test_fields_can_be_left_out():
    """`generate --seed` is the request's seed: the engine's own must not collide with it."""
    parser = argparse.ArgumentParser()
    add_flags(parser, EngineConfig, "flags", without=("seed",))
    assert "--seed" not in parser.format_help()


def test_config_file_comes_before_the_command_line(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text(
        "model: folder\nmax_model_len: 256k\nport: 1\nserved-model-name: [a, b]\nenable_prefix_caching: false\n"
    )
    words = with_config_file(["serve", "--config", str(path), "--port", "2"])
    assert words == [
        *("serve", "--max-model-len=256k", "--served-model-name=a", "--served-model-name=b"),
        *("--no-enable-prefix-caching", "--config", str(path), "--port", "2"),
    ]
    assert config_model(str(path)) == "folder" and config_model(None) is None


def serve_arguments(monkeypatch, *words: str) -> argparse.Namespace:
    """What `serve` would run with."""
    seen = []
    monkeypatch.setattr("ventoux.server.run.serve", lambda config, start, on_ready: seen.append(config))
    monkeypatch.setattr("ventoux.cli.serve.notices", lambda args: seen.append(args) or [])
    assert main(["serve", *words]) == 0
    args, config = seen
    args.config_record = config
    return args


@pytest.mark.parametrize(
    ("words", "model"),
    [
        (["--config", "FILE"], "from-file"),
        (["--config=FILE", "--port", "1"], "from-file"),
        (["from-line", "--config", "FILE"], "from-line"),
        (["--config", "FILE", "from-line"], "from-line"),
        (["--port", "1", "--config", "FILE", "from-line"], "from-line"),
        (["--config", "FILE", "--port", "1", "from-line", "--host", "::1"], "from-line"),
        (["from-line", "--served-model-name", "x", "y", "--config", "FILE"], "from-line"),
    ],
)
def test_a_model_may_stand_in_the_file_and_anywhere_on_the_line(words, model, tmp_path, monkeypatch):
    """After flags it was one argument too many, or the name of something else."""
    path = tmp_path / "serve.yaml"
    path.write_text("model: from-file\nserved_model_name: [a, b]\nport: 3\napi-key: [-dash]\n")
    args = serve_arguments(monkeypatch, *(word.replace("FILE", str(path)) for word in words))
    assert args.model == model
    # The line's names take the place of the file's; they do not come on top.
    assert args.config_record.served_model_name == (("x", "y") if "x" in words else ("a", "b"))
    assert args.config_record.port == (1 if "1" in words else 3)
    assert args.config_record.api_key == ("-dash",)


@pytest.mark.parametrize(
    ("words", "model", "names"),
    [
        (["M", "--served-model-name", "a", "b"], "M", ("a", "b")),
        (["--served-model-name", "a", "--served-model-name", "b"], None, ("a", "b")),
        (["--served-model-name=a", "M"], "M", ("a",)),
        (["--served-model-name", "a", "--port", "1", "M"], "M", ("a",)),
        (["--served-model-name", "a", "b", "--", "M"], "M", ("a", "b")),
        (["--served_model_name", "a"], None, ("a",)),
    ],
)
def test_names_and_the_model(words, model, names, monkeypatch):
    args = serve_arguments(monkeypatch, *words)
    assert args.model == model and args.config_record.served_model_name == names


@pytest.mark.parametrize("flag", ["--served-model-name", "--api-key", "--allowed-origins", "--allowed-media-domains"])
def test_a_flag_does_not_swallow_the_model(flag, tmp_path, capsys):
    """`--api-key K MODEL` made MODEL a second key, and served the bundled model without a word."""
    path = tmp_path / "serve.yaml"
    path.write_text("model: another\n")
    for config in ([], ["--config", str(path)]):
        assert main(["serve", *config, flag, "one", "org/model"]) == 2
        assert f"{flag} takes every word after it, perhaps MODEL too" in capsys.readouterr().err


def test_auto_is_the_default():
    """As other engines spell it: derive the length from what fits."""
    assert parse("--max-model-len", "auto") == EngineConfig() == parse("--kv-cache-memory", "auto")
    with pytest.raises(SystemExit):
        parse("--max-num-seqs", "auto")


def test_nested_values_of_a_config_file_are_json(tmp_path):
    """str() of a mapping has single quotes, which is no JSON."""
    path = tmp_path / "serve.yaml"
    path.write_text("speculative_config: {method: none}\n")
    assert with_config_file(["serve", "--config", str(path)])[1] == '--speculative-config={"method": "none"}'


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "port:\n"])
def test_config_files_that_are_no_good(tmp_path, content):
    path = tmp_path / "serve.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="--config"):
        with_config_file(["serve", "--config", str(path)])


def test_missing_config_file():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        with_config_file(["serve", "--config", "nowhere.yaml"])


def test_config_file_reaches_the_plan(tmp_path, capsys):
    """From file to parser: an unusable value in the file is refused like one on the command line."""
    path = tmp_path / "serve.yaml"
    path.write_text("max-num-seqs: many\n")
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "--config", str(path)])
    assert exit_.value.code == 2
    assert "'many' is no number" in capsys.readouterr().err


def test_unknown_flag(capsys):
    assert main(["serve", "--max-model-length", "5"]) == 2
    message = capsys.readouterr().err
    assert "serve has no flag --max-model-length" in message and "Did you mean --max-model-len?" in message


def test_abbreviations_are_unknown(capsys):
    """--max-num would be --max-num-seqs or --max-num-batched-tokens; --hos would silently be --host."""
    assert main(["serve", "--hos", "::"]) == 2
    assert "no flag --hos" in capsys.readouterr().err


def test_one_argument_too_many(capsys):
    assert main(["serve", "a", "b"]) == 2
    assert "'b' is one argument too many" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-model-len", "long"), "'long' is no number"),
        (("--dtype", "float16"), "invalid choice: 'float16'"),
        (("--tool-call-parser", "hermes"), "invalid choice: 'hermes'"),
        (("--port",), "expected one argument"),
    ],
)
def test_values_that_cannot_be_read(words, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["serve", *words])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bake"])
    assert exit_.value.code == 2
    assert "bake" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--api-key", ""], "--api-key"),
        (["--api-key", "good", "--api-key", "two words"], "--api-key"),
        (["--api-key", "schlüssel"], "--api-key"),
        (["--max-queued-requests", "0"], "--max-queued-requests"),
        (["--limit-images", "-1"], "--limit-images"),
        (["--media-timeout", "nan"], "--media-timeout"),
        (["--drain-timeout", "-1"], "--drain-timeout"),
        (["--max-request-bytes", "0"], "--max-request-bytes"),
        (["--root-path", "prefix"], "--root-path"),
        (["--root-path", "/prefix/"], "--root-path"),
        (["--port", "99999"], "--port"),
        (["--port", "-1"], "--port"),
        (["--host", ""], "--host"),
        (["--host", "a b"], "--host"),
        (["--host", "[::1]"], "--host"),
        (["--host", "http://localhost"], "--host"),
    ],
)
def test_server_choices_that_cannot_work(words, flag, capsys):
    """An empty key, from a variable that was never set, would let everybody in who sends an empty one."""
    assert main(["serve", *words]) == 2
    said = capsys.readouterr().err
    assert flag in said and "two words" not in said


@pytest.mark.parametrize("content", [b"\xff\xfe", b"config: other.yaml\n"])
def test_configuration_files_that_cannot_be_used(content, tmp_path, capsys):
    file = tmp_path / "serve.yaml"
    file.write_bytes(content)
    assert main(["serve", "--config", str(file)]) == 2
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--reading-steps", -1),
        ("--drill-steps", -1),
        ("--drawings-per-step", -2),
        ("--tokens-per-step", 0),
        ("--learning-rate", -0.1),
        ("--steps", 0),
        ("--num-threads", 0),
    ],
)
def test_training_refuses_counts_that_are_none(ventoux, tmp_path, flag, value):
    """Catches a run that goes wrong hours later, or a traceback from the middle of it."""
    status, _, told = ventoux("train", "demo", "--out", tmp_path / "run", f"{flag}={value}")
    assert status == 2 and flag in told and "at least" in told
    assert not (tmp_path / "run").exists()
