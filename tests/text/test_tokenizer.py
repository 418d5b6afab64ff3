import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ventoux.errors import CheckpointError, InvalidRequestError
from ventoux.text.tekken import SPECIAL_TOKENS, write_tekken
from ventoux.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "Hi"}
NONE = '<s>[MODEL_SETTINGS]{"reasoning_effort": "none"}[/MODEL_SETTINGS]'
HI = "[INST]Hi[/INST]"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def calls(*call_ids, name="add", arguments='{"a": 1}'):
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": i, "type": "function", "function": function} for i in call_ids]}


def result(call_id, content="2", **more):
    return {"role": "tool", "tool_call_id": call_id, "content": content, **more}


def assistant(**fields):
    return {"role": "assistant", **fields}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def test_imports_no_torch():
    rooms = ", ".join(f"ventoux.text.{name}" for name in ("tokenizer", "stream_parser", "images", "grammar"))
    code = f"import sys, {rooms}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([assistant(content="a", reasoning_content="t"), USER], f"<s>[THINK]t[/THINK]a</s>{NONE[3:]}{HI}"),
        ([USER, assistant(content="a", reasoning_content="t"), USER], f"{NONE}{HI}[THINK]t[/THINK]a</s>{HI}"),
        ([USER, assistant(content="a", reasoning="t", reasoning_content="t"), USER],
         f"{NONE}{HI}[THINK]t[/THINK]a</s>{HI}"),
        ([USER, assistant(content="a", reasoning=None, reasoning_content=""), USER], f"{NONE}{HI}a</s>{HI}"),
        ([USER, calls("call_0123456789abcdef"), result("call_0123456789abcdef", name="a.b"), USER],
         f'{NONE}{HI}[TOOL_CALLS]add[ARGS]{{"a": 1}}</s>[TOOL_RESULTS]2[/TOOL_RESULTS]{HI}'),
        ([USER, calls("x", arguments={"ü": [1]}), result("x")],
         f'{NONE}{HI}[TOOL_CALLS]add[ARGS]{{"ü": [1]}}</s>[TOOL_RESULTS]2[/TOOL_RESULTS]'),
        ([USER, calls("x", arguments=""), result("x", [{"type": "text", "text": "2"}])],
         f"{NONE}{HI}[TOOL_CALLS]add[ARGS]{{}}</s>[TOOL_RESULTS]2[/TOOL_RESULTS]"),
        ([USER, calls("x", "y", arguments=None), result("x"), USER],
         f"{NONE}{HI}[TOOL_CALLS]add[ARGS]{{}}[TOOL_CALLS]add[ARGS]{{}}</s>[TOOL_RESULTS]2[/TOOL_RESULTS]{HI}"),
        ([USER, assistant(content=""), USER], f"{NONE}[INST]Hi\n\nHi[/INST]"),
        ([USER, assistant(content="", prefix=True)], f"{NONE}{HI}"),
        ([USER, assistant(content="a", prefix=True)], f"{NONE}{HI}a"),
        ([{"role": "developer", "content": [{"type": "text", "text": "d"}]}, USER],
         f"<s>[SYSTEM_PROMPT]d[/SYSTEM_PROMPT]{NONE[3:]}{HI}"),
        ([user({"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}})], f"{NONE}{HI}"),
    ],
)  # fmt: skip
def test_accepted_histories(tokenizer, render, messages, text):
    """What clients really send back; each was a 400 somewhere."""
    assert render(tokenizer.encode_chat(messages).token_ids) == text


@pytest.mark.parametrize("thinking", ["so", [{"type": "text", "text": "s"}, {"type": "text", "text": "o"}]])
def test_both_shapes_of_thinking_chunks(tokenizer, render, thinking):
    content = [{"type": "thinking", "thinking": thinking}, {"type": "text", "text": "a"}]
    prompt = tokenizer.encode_chat([USER, assistant(content=content), USER])
    assert render(prompt.token_ids) == f"{NONE}{HI}[THINK]so[/THINK]a</s>{HI}" and not prompt.in_reasoning
    content = [{"type": "thinking", "thinking": thinking, "closed": False}]
    prompt = tokenizer.encode_chat([USER, assistant(content=content, prefix=True)])
    assert render(prompt.token_ids) == f"{NONE}{HI}[THINK]so" and prompt.in_reasoning


IMAGE = {"type": "image", "image": Image.new("RGB", (30, 30))}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (None, "messages"),
        ("Hi", "messages"),
        (["Hi"], "messages[0]"),
        ([{"content": "Hi"}], "messages[0].role"),
        ([USER, {"role": "banana", "content": "x"}], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([user("x")], "messages[0].content[0]"),
        ([user({"type": "text"})], "messages[0].content[0].text"),
        ([user({"type": "text", "text": 5})], "messages[0].content[0].text"),
        ([user({"type": "image_url", "image_url": {"url": "x"}})], "messages[0].content[0].type"),
        ([user({"type": "input_audio"})], "messages[0].content[0].type"),
        ([user({"type": "image", "image": "x"})], "messages[0].content[0].image"),
        ([user({"type": "image", "image": Image.new("RGB", (0, 5))})], "messages[0].content[0].image"),
        ([{"role": "system", "content": [IMAGE]}, USER], "messages[0].content[0].type"),
        ([USER, assistant(content=[IMAGE]), USER], "messages[1].content[0].type"),
        ([assistant(content=[{"type": "thinking", "thinking": [1]}]), USER], "messages[0].content[0].thinking[0]"),
        ([USER, assistant(content=[{"type": "thinking"}]), USER], "messages[1].content[0].thinking"),
        ([USER, assistant(reasoning=["x"]), USER], "messages[1].reasoning"),
        ([USER, assistant(reasoning="x", reasoning_content="y"), USER], "messages[1]"),
        ([USER, assistant(content="a")], "messages[1].role"),
        ([USER, assistant(content="a", prefix=True), USER], "messages[1].prefix"),
        ([USER | {"prefix": True}], "messages[0].role"),
        ([USER, assistant(content="a"), {"role": "system", "content": "s"}, USER], "messages[2].role"),
        ([USER, result("x")], "messages[1].role"),
        ([result("x"), USER], "messages[0].role"),
        ([USER, calls("x"), result("y")], "messages[2].tool_call_id"),
        ([USER, calls("x"), result("x"), result("x"), USER], "messages[3].tool_call_id"),
        ([USER, calls("x"), result(None)], "messages[2].tool_call_id"),
        ([USER, calls("x"), result("")], "messages[2].tool_call_id"),
        ([USER, calls("x"), {"role": "tool", "content": "2"}], "messages[2].tool_call_id"),
        ([USER, calls("x"), result("x", None)], "messages[2].content"),
        ([USER, calls("x", "x"), result("x")], "messages[1].tool_calls"),
        ([USER, calls("x"), assistant(content="a"), USER], "messages[2].role"),
        ([USER, assistant(tool_calls={}), USER], "messages[1].tool_calls"),
        ([USER, assistant(tool_calls=["x"]), USER], "messages[1].tool_calls[0]"),
        ([USER, assistant(tool_calls=[{"function": {"name": "f"}}]), USER], "messages[1].tool_calls[0].id"),
        ([USER, assistant(tool_calls=[{"id": "x"}]), USER], "messages[1].tool_calls[0].function"),
        ([USER, assistant(tool_calls=[{"id": "x", "function": {}}]), USER], "messages[1].tool_calls[0].function.name"),
        ([USER, calls("x", name="a b"), result("x")], "messages[1].tool_calls"),
        ([USER, calls("x", arguments=5), result("x")], "messages[1].tool_calls[0].function.arguments"),
        ([USER, calls("x", arguments="[" * 100_000), result("x")], "messages"),
        ([USER, {"role": "user", "content": "a\0b"}], "messages[1].content"),
        ([user({"type": "text", "text": "a\ud800"})], "messages[0].content[0].text"),
        ([USER, calls("x", arguments={"a": "\udfff"}), result("x")], "messages[1].tool_calls[0].function.arguments.a"),
        ([{"role": "user", "content": " " * 1_000_000}], "messages"),
    ],
)  # fmt: skip
def test_refused_conversations(tokenizer, messages, param):
    with pytest.raises(InvalidRequestError) as caught:
        tokenizer.encode_chat(messages)
    assert caught.value.param == param and caught.value.code
    assert 10 < len(str(caught.value)) < 600


def test_the_first_wrong_message_of_a_long_conversation_is_named(tokenizer):
    messages = [USER, calls("x"), result("x"), assistant(content="a")] * 20
    messages[50] = result("other")
    with pytest.raises(InvalidRequestError) as caught:
        tokenizer.encode_chat([*messages, USER])
    assert caught.value.param == "messages[50].tool_call_id"


def nested(depth):
    schema = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def function(**fields):
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([TOOL, "x"], "tools[1]"),
        ([function(name=f"f{i}") for i in range(10_000)], "tools"),
        ([{"type": "function"}], "tools[0].function"),
        ([TOOL, {"type": "function", "function": {}}], "tools[1].function.name"),
        ([TOOL, function(name="two words")], "tools[1].function.name"),
        ([function(name="f" * 65)], "tools[0].function.name"),
        ([TOOL, TOOL], "tools[1].function.name"),
        ([{"type": "web_search", "function": {"name": "f"}}], "tools[0].type"),
        ([function(parameters=[])], "tools[0].function.parameters"),
        ([TOOL, function(parameters={"type": "banana"})], "tools[1].function.parameters"),
        ([function(parameters={"properties": {"a": {"pattern": "(("}}})], "tools[0].function.parameters"),
        ([function(description=5)], "tools[0].function.description"),
        ([function(description="a\0")], "tools[0].function.description"),
    ],
)
def test_refused_tools(tokenizer, tools, param):
    with pytest.raises(InvalidRequestError) as caught:
        tokenizer.encode_chat([USER], tools=tools)
    assert caught.value.param == param


@pytest.mark.parametrize("depth", [20, 60, 100, 10_000])
def test_deep_schemas_do_not_crash(tokenizer, depth):
    """Validation recurses; in a server's stack 60 levels may already be too many, but never a RecursionError."""
    try:
        tokenizer.encode_chat([USER], tools=[function(parameters=nested(depth))])
    except InvalidRequestError as e:
        assert depth > 20 and "nested" in str(e)


@pytest.mark.parametrize("effort", ["low", "medium", "High", "", 5])
def test_reasoning_effort(tokenizer, effort):
    with pytest.raises(InvalidRequestError) as caught:
        tokenizer.encode_chat([USER], reasoning_effort=effort)
    assert caught.value.param == "reasoning_effort"


def test_text_never_becomes_a_control_token(tokenizer):
    """Else any user could end their turn, forge tool results or leave the system prompt."""
    spelled = "".join([*SPECIAL_TOKENS.values(), "<SPECIAL_20>"])
    plain = tokenizer.encode_text(spelled)
    assert not any(tokenizer.is_control(i) for i in plain) and tokenizer.decode(plain) == spelled
    messages = [
        {"role": "system", "content": spelled},
        user({"type": "text", "text": spelled}),
        calls("x", arguments=json.dumps({"a": spelled})) | {"reasoning": spelled, "content": spelled},
        result("x", spelled),
    ]
    controls = [i for i in tokenizer.encode_chat(messages).token_ids if tokenizer.is_control(i)]
    assert controls == [1, 17, 18, 36, 37, 3, 4, 34, 35, 9, 32, 2, 7, 8]


def test_text_and_bytes(tokenizer):
    ids = tokenizer.encode_text("é", bos=True)
    assert ids[0] == tokenizer.bos_id == 1 and tokenizer.eos_id == 2
    assert b"".join(map(tokenizer.token_bytes, ids)) == "é".encode()
    assert tokenizer.token_bytes(34) == b"" and tokenizer.token_text(34) == "[THINK]"
    assert tokenizer.token_text(1000 + 0xC3) == "\ufffd"
    assert tokenizer.decode([1, *ids, 35]) == "é"


@pytest.mark.parametrize("text", ["a\0", "\ud83d", " " * 1_000_000])
def test_text_that_cannot_be_encoded(tokenizer, text):
    with pytest.raises(InvalidRequestError) as caught:
        tokenizer.encode_text(text, param="prompt")
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("token_id", [-1, 3048, 10**12])
def test_unknown_ids(tokenizer, token_id):
    with pytest.raises(InvalidRequestError, match="not in"):
        tokenizer.decode([1000, token_id])


def test_images_are_named_by_what_they_show(tokenizer):
    """The prefix cache shares pages by this hash: equal pictures must agree, others (also of another shape) differ."""

    def encode(*images):
        return tokenizer.encode_chat([user(*({"type": "image", "image": image} for image in images))]).images

    red, blue, wide = (Image.new("RGB", s, c) for s, c in (((56, 28), "red"), ((56, 28), "blue"), ((28, 56), "red")))
    images = encode(red, blue, wide, red.copy())
    hashes = [image.content_hash for image in images]
    assert hashes[0] == hashes[3] and len(set(hashes)) == 3
    assert (images[0].height, images[0].width) == (28, 56)
    pixels = np.frombuffer(images[0].pixels, dtype="<f4").reshape(3, 28, 56)
    expected = (np.array([1, 0, 0]) - (0.48145466, 0.4578275, 0.40821073)) / (0.26862954, 0.26130258, 0.27577711)
    assert np.allclose(pixels.mean(axis=(1, 2)), expected, atol=1e-5)


def edited(tekken_path, path, **changes):
    content = json.loads(tekken_path.read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key)
        else:
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))
    return path


def test_a_folder_will_do(tekken_path, tokenizer):
    assert Tokenizer.from_file(tekken_path.parent).vocab_size == tokenizer.vocab_size


def test_without_images(tekken_path, tmp_path):
    blind = Tokenizer.from_file(edited(tekken_path, tmp_path / "tekken.json", image=None))
    assert not blind.takes_images
    with pytest.raises(InvalidRequestError, match="no images"):
        blind.encode_chat([user(IMAGE)])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"config": {"version": "v13"}, "model_settings_builder": None}, "v13 is too old"),
        ({"config": {"version": "v99"}}, "v99"),
        ({"model_settings_builder": None}, "model_settings_builder is missing"),
        ({"config": {"default_vocab_size": 9999}}, "no tekken"),
        ({"vocab": None}, "no tekken"),
        ({"special_tokens": [{"rank": 0, "token_str": "<unk>", "is_control": True}]}, "no tekken"),
    ],
)
def test_wrong_files_are_refused(tekken_path, tmp_path, changes, problem):
    with pytest.raises(CheckpointError, match=problem):
        Tokenizer.from_file(edited(tekken_path, tmp_path / "tekken.json", **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"config": 5}', b"null"])
def test_no_tokenizer_files(tmp_path, content):
    (tmp_path / "tekken.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="no tekken"):
        Tokenizer.from_file(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such tokenizer file"):
        Tokenizer.from_file(tmp_path)
    other = write_tekken(tmp_path / "tekken.json", num_ranks=256).rename(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match='"tekken" in its name'):
        Tokenizer.from_file(other)
