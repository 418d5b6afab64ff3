import json
import random

import numpy as np
import pytest

from ventoux.errors import InvalidRequestError
from ventoux.text.grammar import GrammarCompiler
from ventoux.text.stream_parser import StreamParser, fold

NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": NUMBERS | {"additionalProperties": False}}},
    {"type": "function", "function": {"name": "get_weather"}},
]
STRICT = [{"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}, TOOLS[1]]


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return GrammarCompiler(tokenizer)


def walk(tokenizer, matcher, seed, limit=400):
    """Samples under the mask like an untrained model; after 30 tokens it prefers to close what is open."""
    chance = random.Random(seed)
    closing = [35, 32, *(1000 + byte for byte in b'}]",:')]
    one = 1000 + ord("1")  # where only a number or free text can go on
    mask = np.zeros(tokenizer.vocab_size, dtype=bool)
    ids = []
    while len(ids) < limit:
        matcher.fill(mask)
        allowed = np.flatnonzero(mask)
        assert len(allowed), "the grammar has a dead end"
        if mask[tokenizer.eos_id] and (chance.random() < 0.3 or len(ids) > 30):
            assert matcher.accept(tokenizer.eos_id) and matcher.is_stopped()
            return ids
        candidates = list(allowed)
        if len(ids) > 30:
            candidates = [i for i in closing if mask[i]] or ([one] if mask[one] else candidates)
        ids.append(int(chance.choice(candidates)))
        assert matcher.accept(ids[-1])
    raise AssertionError(f"no end after {limit} tokens: {tokenizer.decode(ids)!r}")


def answer(tokenizer, ids):
    parser = StreamParser(tokenizer)
    return fold([*parser.push(ids), *parser.finish()])


@pytest.mark.parametrize("tools", [TOOLS, STRICT])
@pytest.mark.parametrize("name", [None, "get_weather"])
@pytest.mark.parametrize("think", [False, True])
def test_a_required_call_is_made_whatever_the_model_wants(tokenizer, compiler, tools, name, think):
    grammar = compiler.tool_grammar(tools, name=name, think=think)
    for seed in range(6):
        message = answer(tokenizer, walk(tokenizer, compiler.compile(grammar), seed))
        assert message.tool_calls and message.content == ""
        assert think or message.reasoning == ""
        for call in message.tool_calls:
            assert call.name in ((name,) if name else ("add", "get_weather"))
            assert isinstance(json.loads(call.arguments), dict)


def test_strict_arguments_follow_their_schema(tokenizer, compiler):
    grammar = compiler.tool_grammar(STRICT, name="add", parallel_tool_calls=False)
    for seed in range(6):
        (call,) = answer(tokenizer, walk(tokenizer, compiler.compile(grammar), seed)).tool_calls
        arguments = json.loads(call.arguments)
        assert list(arguments) == ["a", "b"] and all(isinstance(value, int) for value in arguments.values())


def test_one_call_without_parallel_calls(tokenizer, compiler):
    matcher = compiler.compile(compiler.tool_grammar(TOOLS, parallel_tool_calls=False))
    for token_id in (9, *tokenizer.encode_text("add"), 32, *tokenizer.encode_text("{}")):
        assert matcher.accept(token_id)
    assert not matcher.accept(9)


def test_copies_go_their_own_ways(tokenizer, compiler):
    """The answers to a request share a compiled grammar; what one writes must not move the others."""
    first = compiler.compile(compiler.tool_grammar(TOOLS, parallel_tool_calls=False))
    second = first.clone()
    for token_id in (9, *tokenizer.encode_text("add")):
        assert first.accept(token_id)
    third = first.clone()
    for matcher, ids in ((second, (9, *tokenizer.encode_text("get_weather"), 32)), (third, (32,)), (first, (32,))):
        assert all(matcher.accept(token_id) for token_id in ids)


def test_a_refused_token_is_reported(tokenizer, compiler):
    matcher = compiler.compile(compiler.tool_grammar(TOOLS))
    assert not matcher.is_stopped()
    assert not matcher.accept(tokenizer.encode_text("Sure")[0])


def test_json_answers(tokenizer, compiler):
    for schema in (None, NUMBERS):
        grammar = compiler.json_grammar(schema, think=True)
        for seed in range(4):
            message = answer(tokenizer, walk(tokenizer, compiler.compile(grammar), seed))
            value = json.loads(message.content)
            assert isinstance(value, dict) and (schema is None or {"a", "b"} <= set(value))


def test_json_or_calls(tokenizer, compiler):
    grammar = compiler.json_grammar(NUMBERS, tools=TOOLS)
    mask = np.zeros(tokenizer.vocab_size, dtype=bool)
    compiler.compile(grammar).fill(mask)
    assert mask[9] and mask[tokenizer.encode_text("{")[0]]
    assert not mask[tokenizer.encode_text("a")[0]] and not mask[34]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": []}, "tool_choice"),
        ({"tools": TOOLS, "name": "subtract"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ],
)
def test_bad_choices(compiler, options, param):
    with pytest.raises(InvalidRequestError) as caught:
        compiler.tool_grammar(**options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "banana"},
        {"type": "string", "pattern": "(("},
        {"$ref": "#/nowhere"},
        {"$ref": "http://example.com/schema.json"},
        {"if": {"type": "string"}},
        {"type": "array", "minItems": 10**9},
        {"type": "array", "items": {"type": "array", "maxItems": 10**7}},
        {"type": "object", "properties": {f"p{i}": {} for i in range(10_000)}},
        {"type": "integer", "multipleOf": 123456789},
        {"type": "number", "multipleOf": 0.0099991},
        {"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 101)]},
    ],
)
def test_schemas_that_cannot_be_followed(compiler, schema):
    """The last six take llguidance from seconds to minutes, in which the engine would stand still."""
    with pytest.raises(InvalidRequestError) as caught:
        compiler.compile(compiler.json_grammar(schema))
    assert caught.value.code == "invalid_json_schema" and caught.value.param.startswith("response_format")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_usual_multiples_can_be_followed(compiler):
    prices = {f"p{i}": {"type": "number", "multipleOf": step} for i, step in enumerate((0.01, 0.5, 5, 1000, 1e-7))}
    assert compiler.compile(compiler.json_grammar({"type": "object", "properties": prices}))
