"""Prompts that are too long: refused exactly when they are, and long before they are tokenized whole."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ventoux.errors import ContextLengthError
from ventoux.text.limit import TEKKEN_PATTERN, LimitedTekkenizer, PromptLimit, pieces

# Everything that the pattern tells apart, and what Python and Unicode see differently.
ODD = "aZß'é\u0301日本ーㅏ。、,!12²Ⅷ٣ \t\n\r\v\x1c\x85\u00a0\u3000\u2028/.-_(“😀\u200d\u0902Aǅʰ"


@settings(max_examples=400)
@given(st.text(st.sampled_from(ODD), max_size=40), st.integers(1, 5))
@example("a  1 \n\n /b  \n c", 1)
@example("!\n/\n a", 1)
@example("1 \n2   3", 1)
def test_pieces_give_the_tokens_of_the_whole(tokenizer, text, length):
    """A cut where the pattern would not have cut: between "!" and the newline, or inside a run of blanks."""
    whole = tokenizer.encode_text(text)
    cut = list(pieces(text, length))
    assert "".join(cut) == text
    assert [i for piece in cut for i in tokenizer.encode_text(piece)] == whole


@pytest.mark.parametrize("text", ["word " * 50, "12345" * 50, "日本語、" * 50, "a,b\n" * 50, "{}\n x" * 50])
def test_usual_text_can_be_cut(text):
    """Without cuts the count would come too late."""
    assert max(map(len, pieces(text, 10))) < 20


def test_the_pattern_is_the_one_that_the_cuts_are_proven_for(tokenizer):
    assert tokenizer._tekken._model._pat_str == TEKKEN_PATTERN


def test_another_pattern_is_not_cut(tokenizer, monkeypatch):
    """A checkpoint may bring a pattern of its own, for which nothing is proven."""
    limited = LimitedTekkenizer(tokenizer._tekken, PromptLimit(10**6, 10**6), 100, "prompt")
    calls = []
    monkeypatch.setattr(tokenizer._tekken, "encode", lambda s, bos, eos: calls.append(len(s)) or [])
    limited.encode("word " * 50_000, bos=False, eos=False)
    assert len(calls) > 1
    calls.clear()
    monkeypatch.setattr(tokenizer._tekken._model, "_pat_str", r"\w+|\W+")
    limited.encode("word " * 50_000, bos=False, eos=False)
    assert calls == [250_000]


def test_the_limit_is_exact(tokenizer):
    """One token more than fits is refused, one less is not; the tokens are those of an unlimited call."""
    text = "Some words, 123, and more.\n" * 30
    ids = tokenizer.encode_text(text, bos=True)
    assert tokenizer.encode_text(text, bos=True, limit=PromptLimit(len(ids), len(ids))) == ids
    with pytest.raises(ContextLengthError) as caught:
        tokenizer.encode_text(text, bos=True, limit=PromptLimit.for_answer(len(ids)))
    assert caught.value.param == "prompt" and caught.value.code == "context_length_exceeded"


TOOL = {"type": "function", "function": {"name": "add", "description": "Adds numbers", "parameters": {}}}
CALL = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a":   1}'}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]},
    {"role": "assistant", "content": "Let me see.", "reasoning": "hm", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "x", "content": "3"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "And?"},
]


def test_the_limit_of_a_chat_is_exact(tokenizer):
    """Counted are texts that mistral-common may reformat, merge or leave out: nothing may count that is not sent."""
    whole = tokenizer.encode_chat(CHAT, tools=[TOOL])
    size = len(whole.token_ids)
    assert tokenizer.encode_chat(CHAT, tools=[TOOL], limit=PromptLimit(size, size)) == whole
    with pytest.raises(ContextLengthError) as caught:
        tokenizer.encode_chat(CHAT, tools=[TOOL], limit=PromptLimit.for_answer(size))
    assert caught.value.param == "messages"
    # The limit was this call's alone.
    assert tokenizer.encode_chat(CHAT, tools=[TOOL]) == whole


@pytest.mark.parametrize("text", ["word " * 2_000_000, "x" * 10_000_000])
@pytest.mark.parametrize("num_messages", [1, 100])
def test_ten_megabytes_are_not_tokenized(tokenizer, text, num_messages):
    """They took 3 to 25 seconds each, in one message or in a hundred."""
    part = text[: len(text) // num_messages]
    messages = [{"role": "user", "content": part}] * num_messages
    start = time.process_time()
    with pytest.raises(ContextLengthError, match="at least"):
        tokenizer.encode_chat(messages, limit=PromptLimit.for_answer(16384))
    with pytest.raises(ContextLengthError, match="at least"):
        tokenizer.encode_text(text, limit=PromptLimit.for_answer(16384))
    assert time.process_time() - start < 1.5
