import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ventoux.text.stream_parser import (
    Content,
    Message,
    Reasoning,
    StreamParser,
    ToolCall,
    ToolCallArguments,
    ToolCallStart,
    fold,
    new_tool_call_id,
)

NAMES = {"[THINK]": 34, "[/THINK]": 35, "[TOOL_CALLS]": 9, "[ARGS]": 32, "[INST]": 3, "[IMG]": 10, "</s>": 2}


def to_ids(tokenizer, text):
    """Control tokens by their names, everything else as plain text."""
    parts = re.split("(" + "|".join(map(re.escape, NAMES)) + ")", text)
    return [i for part in parts for i in ([NAMES[part]] if part in NAMES else tokenizer.encode_text(part))]


def parse(tokenizer, text, **options):
    parser = StreamParser(tokenizer, **options)
    return fold([*parser.push(to_ids(tokenizer, text)), *parser.finish()])


def message(reasoning="", content="", *calls):
    return Message(reasoning, content, [ToolCall(*call) for call in calls])


CASES = {
    "plain": ("Hello.\n", message("", "Hello.\n")),
    "only whitespace": (" \n", message("", " \n")),
    "reasoning": ("[THINK]hm \n[/THINK]\nyes ", message("hm", "\nyes ")),
    "reasoning cut off": ("[THINK]hm, ", message("hm,", "")),
    "second think, stray end": ("[THINK]a[THINK]b[/THINK]c[/THINK]d", message("ab", "cd")),
    "two think blocks": ("[THINK]a[/THINK]b[THINK]c[/THINK]d", message("ac", "bd")),
    "empty reasoning": ("[THINK][/THINK]yes", message("", "yes")),
    "call": ('[TOOL_CALLS]add[ARGS]{"a": 1}', message("", "", ("add", '{"a": 1}'))),
    "call ends reasoning": ("[THINK]hm\n[TOOL_CALLS]f[ARGS]{}", message("hm", "", ("f", "{}"))),
    "brace ends the name": ('[TOOL_CALLS]add{"a": 1}', message("", "", ("add", '{"a": 1}'))),
    "two calls": (
        '\n[TOOL_CALLS]f[ARGS]{"a": 1}\n[TOOL_CALLS]g[ARGS]{}\n',
        message("", "", ("f", '{"a": 1}'), ("g", "{}")),
    ),
    "content before a call": ("ok \n[TOOL_CALLS]f[ARGS]{}", message("", "ok \n", ("f", "{}"))),
    "content after a call": ("[TOOL_CALLS]f[ARGS]{} then x", message("", " then x", ("f", "{}"))),
    "no arguments": ("[TOOL_CALLS]f[ARGS][TOOL_CALLS]g[ARGS] ", message("", "", ("f", "{}"), ("g", "{}"))),
    "spaces around": ('[TOOL_CALLS] f [ARGS] {"a": 1}', message("", "", ("f", '{"a": 1}'))),
    "braces in strings": (
        '[TOOL_CALLS]f[ARGS]{"a": "}{\\"]\\\\", "b": [{}]}x',
        message("", "x", ("f", '{"a": "}{\\"]\\\\", "b": [{}]}')),
    ),
    "arguments cut off": ('[TOOL_CALLS]f[ARGS]{"a": "x', message("", "", ("f", '{"a": "x'))),
    "other control tokens": ("[INST]a[IMG]b</s>[ARGS]c", message("", "abc")),
    # What is no call comes out as content, whole.
    "no name": ('[TOOL_CALLS][ARGS]{"a": 1}', message("", '{"a": 1}')),
    "no name, brace": ('[TOOL_CALLS]{"a": 1}', message("", '{"a": 1}')),
    "no name at all": ("a[TOOL_CALLS]", message("", "a")),
    "impossible name": ('[TOOL_CALLS]add two[ARGS]{"a": 1}', message("", 'add two{"a": 1}')),
    "long name": ("[TOOL_CALLS]" + 65 * "f" + "[ARGS]{}", message("", 65 * "f" + "{}")),
    "name cut off": ("[TOOL_CALLS]ad", message("", "ad")),
    "arguments are no object": ("[TOOL_CALLS]f[ARGS] [1]", message("", "f [1]")),
    "arguments are text": ("[TOOL_CALLS]f[ARGS]please[TOOL_CALLS]g[ARGS]{}", message("", "fplease", ("g", "{}"))),
}


@pytest.mark.parametrize("name", CASES)
def test_case(tokenizer, name):
    text, expected = CASES[name]
    assert parse(tokenizer, text) == expected


def test_events_come_as_early_as_they_are_certain(tokenizer):
    """A call's name must reach the client before its arguments are complete, and arguments as they are written."""
    parser = StreamParser(tokenizer)
    assert parser.push(to_ids(tokenizer, "[THINK]hm")) == [Reasoning("hm")]
    assert parser.push(to_ids(tokenizer, "[/THINK]ok[TOOL_CALLS]add")) == [Content("ok")]
    assert parser.push(to_ids(tokenizer, '[ARGS]{"a":')) == [ToolCallStart(0, "add"), ToolCallArguments(0, '{"a":')]
    assert parser.push(to_ids(tokenizer, " 1}")) == [ToolCallArguments(0, " 1}")]
    assert parser.push(to_ids(tokenizer, "[TOOL_CALLS]f{")) == [ToolCallStart(1, "f"), ToolCallArguments(1, "{")]
    assert parser.finish() == []
    assert parser.num_tool_calls == 2


def test_reasoning_tokens_are_counted(tokenizer):
    parser = StreamParser(tokenizer)
    thought = tokenizer.encode_text("one two three")
    parser.push([34, *thought, 35, *tokenizer.encode_text("four")])
    assert parser.num_reasoning_tokens == len(thought)


def test_continued_reasoning(tokenizer):
    assert parse(tokenizer, "hm[/THINK]yes", start_in_reasoning=True) == message("hm", "yes")


def test_without_tools_the_text_of_calls_is_content(tokenizer):
    text = '[THINK]hm[TOOL_CALLS]add[ARGS]{"a": 1}'
    assert parse(tokenizer, text, parse_tools=False) == message("hm", 'add{"a": 1}')


def test_without_reasoning_thoughts_are_content(tokenizer):
    assert parse(tokenizer, "[THINK]hm[/THINK]yes", parse_reasoning=False) == message("", "hmyes")


def test_spelled_control_tokens_are_text(tokenizer):
    text = '[THINK]a[/THINK][TOOL_CALLS]f[ARGS]{"a": 1}'
    parser = StreamParser(tokenizer)
    events = [*parser.push(tokenizer.encode_text(text)), *parser.finish()]
    assert fold(events) == message("", text)


TOKEN_IDS = st.one_of(
    st.sampled_from([34, 35, 9, 32, 2, 10, 999]),
    st.sampled_from([1000 + byte for byte in b'{}[]"\\ \nab1:,']),
    st.integers(1000, 3047),
)


@given(
    ids=st.lists(TOKEN_IDS, max_size=40), sizes=st.lists(st.integers(1, 7), min_size=40, max_size=40), data=st.data()
)
def test_any_split_gives_the_same_answer(tokenizer, ids, sizes, data):
    """Chunk borders come from timing and drafting; an answer that depended on them would not be reproducible."""
    options = {key: data.draw(st.booleans()) for key in ("parse_tools", "parse_reasoning", "start_in_reasoning")}
    whole = StreamParser(tokenizer, **options)
    expected = [*whole.push(ids), *whole.finish()]
    pieces = StreamParser(tokenizer, **options)
    events = []
    for size in sizes:
        events += pieces.push(ids[:size])
        ids = ids[size:]
    events += pieces.finish()
    assert fold(events) == fold(expected)
    assert pieces.num_reasoning_tokens == whole.num_reasoning_tokens
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    assert [start.index for start in starts] == list(range(len(starts))) and pieces.num_tool_calls == len(starts)
    assert all(getattr(event, "text", "x") for event in events)


@given(ids=st.lists(TOKEN_IDS, max_size=40))
def test_nothing_is_lost_and_no_control_token_shows(tokenizer, ids):
    """Everything that the model wrote, whitespace aside, is in the answer exactly once; names of controls never."""
    parser = StreamParser(tokenizer)
    answer = fold([*parser.push(ids), *parser.finish()])
    texts = [answer.reasoning, answer.content, *(call.name + call.arguments for call in answer.tool_calls)]
    num_default_arguments = sum(call.arguments == "{}" for call in answer.tool_calls)
    written = sorted("".join(tokenizer.decode(ids).split()))
    shown = sorted("".join("".join(texts).split()))
    for _ in range(num_default_arguments):
        if len(shown) == len(written):
            break
        shown.remove("{")
        shown.remove("}")
    assert shown == written


def test_complete_arguments_are_json(tokenizer):
    arguments = {"a": 'x"\\}', "b": [1, {"c": None}], "ü": "😀"}
    answer = parse(tokenizer, f"[TOOL_CALLS]f[ARGS]{json.dumps(arguments, ensure_ascii=False)}{{}}")
    assert json.loads(answer.tool_calls[0].arguments) == arguments
    assert answer.content == "{}"


def test_call_ids():
    ids = {new_tool_call_id() for _ in range(100)}
    assert len(ids) == 100 and all(re.fullmatch("[a-zA-Z0-9]{9}", call_id) for call_id in ids)
