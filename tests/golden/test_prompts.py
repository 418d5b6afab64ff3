"""Prompts of the real tokenizer, id by id: the model was trained on exactly these, so one wrong id costs quality."""

import pytest
from PIL import Image

from ventoux.text.tekken import write_tekken
from ventoux.text.tokenizer import Tokenizer

SETTINGS = [36, 19227, 80277, 1302, 13196, 1609, 1449, 2811, 1429, 17670, 46005, 37]
SETTINGS_HIGH = [24871 if i == 17670 else i for i in SETTINGS]
HI = [3, 37133, 4]
USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_file(write_tekken(tmp_path_factory.mktemp("tekken")))


def ids(tokenizer, messages, **options):
    return tokenizer.encode_chat(messages, **options).token_ids


def call(call_id, name, arguments):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_vocabulary_is_the_real_one(tokenizer):
    assert tokenizer.vocab_size == 131072
    names = {1: "<s>", 2: "</s>", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]", 13: "[IMG_END]"}
    names |= {32: "[ARGS]", 34: "[THINK]", 35: "[/THINK]", 36: "[MODEL_SETTINGS]", 999: "<SPECIAL_999>"}
    assert {i: tokenizer.token_text(i) for i in names} == names
    assert tokenizer.token_text(37133) == "Hi"


def test_plain(tokenizer):
    assert ids(tokenizer, [USER]) == [1, *SETTINGS, *HI]
    assert ids(tokenizer, [USER], reasoning_effort="none") == [1, *SETTINGS, *HI]


def test_reasoning_effort_high(tokenizer):
    assert ids(tokenizer, [USER], reasoning_effort="high") == [1, *SETTINGS_HIGH, *HI]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system(tokenizer, role):
    messages = [{"role": role, "content": "Be brief."}, USER]
    expected = [1, 17, 5934, 13426, 1046, 18, *SETTINGS, *HI]
    assert ids(tokenizer, messages) == expected and len(expected) == 21


def test_tools_stand_before_the_settings_of_the_first_user_message_only(tokenizer):
    parameters = {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}
    tool = {"type": "function", "function": {"parameters": parameters, "name": "add", "description": "Add"}}
    text = (
        '[{"type": "function", "function": {"name": "add", "description": "Add", "parameters": {"type": "object",'
        ' "properties": {"a": {"type": "number"}}, "required": ["a"]}}}]'
    )
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "yes"}, USER]
    rendered = ids(tokenizer, messages, tools=[tool])
    begin = [1, 17, 5934, 13426, 1046, 18, 5, *tokenizer.encode_text(text), 6, *SETTINGS, *HI]
    assert rendered == [*begin, *tokenizer.encode_text("yes"), 2, *HI]


def test_calls_and_results(tokenizer):
    """No call ids, no names in results; results in the order of the calls; nothing after the last result."""
    encode = tokenizer.encode_text
    calls = [call("one", "add", '{"a":1}'), call("two", "add", '{"a":2}')]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "let me", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "two", "content": "4"},
        {"role": "tool", "tool_call_id": "one", "content": "2"},
    ]
    expected = [1, *SETTINGS, 3, *encode("q"), 4, *encode("let me")]
    for number in ("1", "2"):
        expected += [9, *encode("add"), 32, *encode('{"a": ' + number + "}")]
    expected += [2, 7, *encode("2"), 8, 7, *encode("4"), 8]
    assert ids(tokenizer, messages) == expected
    messages += [{"role": "assistant", "content": "done"}, {"role": "user", "content": "thx"}]
    assert ids(tokenizer, messages) == [*expected, *encode("done"), 2, 3, *encode("thx"), 4]


def test_thinking_is_kept_in_history(tokenizer):
    encode = tokenizer.encode_text
    answer = {"role": "assistant", "reasoning_content": "hm", "tool_calls": [call("c", "add", '{"a": 1}')]}
    result = {"role": "tool", "tool_call_id": "c", "content": "2"}
    final = {"role": "assistant", "content": "ans", "reasoning": "so"}
    prompt = [1, *SETTINGS, *HI, 34, *encode("hm"), 35, 9, *encode("add"), 32, *encode('{"a": 1}'), 2]
    prompt += [7, *encode("2"), 8, 34, *encode("so"), 35, *encode("ans"), 2, *HI]
    assert ids(tokenizer, [USER, answer, result, final, USER]) == prompt


def test_continued_answer_stays_open(tokenizer):
    messages = [USER, {"role": "assistant", "content": "ans"}]
    expected = [1, *SETTINGS, *HI, *tokenizer.encode_text("ans")]
    assert ids(tokenizer, messages, continue_final_message=True) == expected
    messages[1] |= {"prefix": True}
    assert ids(tokenizer, messages) == expected


def test_image_rows_come_before_a_single_text(tokenizer):
    image = {"type": "image", "image": Image.new("RGB", (50, 30))}
    prompt = tokenizer.encode_chat([{"role": "user", "content": [{"type": "text", "text": "what"}, image]}])
    rows = [10, 10, 12, 10, 10, 13]
    assert prompt.token_ids == [1, *SETTINGS, 3, *rows, *tokenizer.encode_text("what"), 4]
    assert [(i.height, i.width, len(i.pixels)) for i in prompt.images] == [(56, 56, 3 * 56 * 56 * 4)]


def test_order_is_kept_with_two_images(tokenizer):
    image = {"type": "image", "image": Image.new("RGB", (20, 20))}
    content = [{"type": "text", "text": "what"}, image, image]
    prompt = tokenizer.encode_chat([{"role": "user", "content": content}])
    assert prompt.token_ids == [1, *SETTINGS, 3, *tokenizer.encode_text("what"), 10, 13, 10, 13, 4]


def test_joining(tokenizer):
    """Consecutive messages of one role join with a blank line, parts of one message with nothing."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": "x"},
        {"role": "system", "content": "y"},
        {"role": "user", "content": parts},
    ]
    encode = tokenizer.encode_text
    expected = [1, 17, *encode("x"), 18, 17, *encode("y"), 18, *SETTINGS, 3, *encode("ab\n\nc"), 4]
    assert ids(tokenizer, [*messages, {"role": "user", "content": "c"}]) == expected
