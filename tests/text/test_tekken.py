import json

import pytest

from ventoux.text.tekken import write_tekken


def test_cut_vocabulary_keeps_ids(tokenizer, tekken_path):
    """A cut that moved ids would make a bundled model's checkpoint useless with another cut."""
    assert tokenizer.vocab_size == 1000 + 2048
    assert tokenizer.token_bytes(1000 + 65) == b"A"
    config = json.loads(tekken_path.read_text())["config"]
    assert config["num_vocab_tokens"] == 2048 and config["default_vocab_size"] == 3048 and config["version"] == "v15"
    assert tekken_path.stat().st_size < 200_000
    assert tokenizer.token_text(37) == "[/MODEL_SETTINGS]" and tokenizer.token_text(999) == "<SPECIAL_999>"


def test_any_text_can_be_written_with_the_smallest_cut(tmp_path):
    from ventoux.text.tokenizer import Tokenizer

    smallest = Tokenizer.from_file(write_tekken(tmp_path, num_ranks=256))
    text = "Grüße, 中文 😀\n\x7f"
    assert smallest.decode(smallest.encode_text(text)) == text


@pytest.mark.parametrize("num_ranks", [0, 255, 130073])
def test_impossible_cuts_are_refused(tmp_path, num_ranks):
    with pytest.raises(ValueError, match="num_ranks"):
        write_tekken(tmp_path, num_ranks=num_ranks)
