import itertools
import json
import random

import numpy as np
import pytest
from mistral_common.guidance.grammar_factory import GrammarFactory
from mistral_common.protocol.instruct.tool_calls import ToolChoiceEnum

from ventoux.errors import InvalidRequestError
from ventoux.text import grammar as grammar_module
from ventoux.text.grammar import GrammarCompiler, Thinking
from ventoux.text.grammar_forms import ChoiceForm, JsonForm, LarkForm, RegexForm
from ventoux.text.messages import to_tools
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


def walk(tokenizer, matcher, seed, limit=400, eager=()):
    """Samples under the mask like an untrained model; after 30 tokens it prefers to close what is open.

    `eager`: tokens that it takes wherever they are allowed, in the first 30.
    """
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
        candidates = [i for i in eager if mask[i]] or list(allowed)
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
    grammar = compiler.grammar(
        tools=tools, calls="required", names=name and [name], thinking=Thinking() if think else None
    )
    for seed in range(6):
        message = answer(tokenizer, walk(tokenizer, compiler.compile(grammar), seed))
        assert message.tool_calls and message.content == ""
        assert think or message.reasoning == ""
        for call in message.tool_calls:
            assert call.name in ((name,) if name else ("add", "get_weather"))
            assert isinstance(json.loads(call.arguments), dict)


def test_strict_arguments_follow_their_schema(tokenizer, compiler):
    grammar = compiler.grammar(tools=STRICT, calls="required", names=["add"], parallel_tool_calls=False)
    for seed in range(6):
        (call,) = answer(tokenizer, walk(tokenizer, compiler.compile(grammar), seed)).tool_calls
        arguments = json.loads(call.arguments)
        assert list(arguments) == ["a", "b"] and all(isinstance(value, int) for value in arguments.values())


def test_one_call_without_parallel_calls(tokenizer, compiler):
    matcher = compiler.compile(compiler.grammar(tools=TOOLS, calls="required", parallel_tool_calls=False))
    for token_id in (9, *tokenizer.encode_text("add"), 32, *tokenizer.encode_text("{}")):
        assert matcher.accept(token_id)
    assert not matcher.accept(9)


def test_copies_go_their_own_ways(tokenizer, compiler):
    """The answers to a request share a compiled grammar; what one writes must not move the others."""
    first = compiler.compile(compiler.grammar(tools=TOOLS, calls="required", parallel_tool_calls=False))
    second = first.clone()
    for token_id in (9, *tokenizer.encode_text("add")):
        assert first.accept(token_id)
    third = first.clone()
    for matcher, ids in ((second, (9, *tokenizer.encode_text("get_weather"), 32)), (third, (32,)), (first, (32,))):
        assert all(matcher.accept(token_id) for token_id in ids)


def test_a_refused_token_is_reported(tokenizer, compiler):
    matcher = compiler.compile(compiler.grammar(tools=TOOLS, calls="required"))
    assert not matcher.is_stopped()
    assert not matcher.accept(tokenizer.encode_text("Sure")[0])


def test_json_answers(tokenizer, compiler):
    for schema in (None, NUMBERS):
        grammar = compiler.grammar(JsonForm(schema), thinking=Thinking())
        for seed in range(4):
            message = answer(tokenizer, walk(tokenizer, compiler.compile(grammar), seed))
            value = json.loads(message.content)
            assert isinstance(value, dict) and (schema is None or {"a", "b"} <= set(value))


def test_json_or_calls(tokenizer, compiler):
    grammar = compiler.grammar(JsonForm(NUMBERS), tools=TOOLS, calls="auto")
    mask = np.zeros(tokenizer.vocab_size, dtype=bool)
    compiler.compile(grammar).fill(mask)
    assert mask[9] and mask[tokenizer.encode_text("{")[0]]
    assert not mask[tokenizer.encode_text("a")[0]] and not mask[34]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": []}, "tool_choice"),
        ({"tools": TOOLS, "names": ["subtract"]}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ],
)
def test_bad_choices(compiler, options, param):
    with pytest.raises(InvalidRequestError) as caught:
        compiler.grammar(calls="required", **options)
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
        compiler.compile(compiler.grammar(JsonForm(schema)))
    assert caught.value.code == "invalid_json_schema" and caught.value.param.startswith("response_format")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_usual_multiples_can_be_followed(compiler):
    prices = {f"p{i}": {"type": "number", "multipleOf": step} for i, step in enumerate((0.01, 0.5, 5, 1000, 1e-7))}
    assert compiler.compile(compiler.grammar(JsonForm({"type": "object", "properties": prices})))


def reads(compiler, grammar, ids):
    """How many of the tokens the grammar takes, and whether it may end behind them."""
    matcher = compiler.compile(grammar)
    mask = np.zeros(compiler._tokenizer.vocab_size, dtype=bool)
    for count, token_id in enumerate(ids):
        matcher.fill(mask)
        if not mask[token_id] or not matcher.accept(token_id):
            return count, False
    matcher.fill(mask)
    return len(ids), bool(mask[compiler._tokenizer.eos_id])


def takes(compiler, form, text):
    ids = compiler._tokenizer.encode_text(text)
    return reads(compiler, compiler.grammar(form), ids) == (len(ids), True)


@pytest.mark.parametrize("tools", [TOOLS, STRICT])
@pytest.mark.parametrize("thinking", [None, Thinking(), Thinking(is_open=True)])
@pytest.mark.parametrize("parallel", [True, False])
def test_free_answers_never_leak_calls_and_their_arguments_always_parse(tokenizer, compiler, tools, thinking, parallel):
    """Whatever the model likes to write: a call is whole and of a tool that there is, or it is not begun."""
    grammar = compiler.grammar(tools=tools, calls="auto", parallel_tool_calls=parallel, thinking=thinking)
    num_calls = 0
    for seed in range(25):
        # [TOOL_CALLS] is one token of 2000: every other walk goes for it as soon as it may.
        ids = walk(tokenizer, compiler.compile(grammar), seed, eager=(9, 32, 35) if seed % 2 else ())
        parser = StreamParser(tokenizer, start_in_reasoning=bool(thinking and thinking.is_open))
        message = fold([*parser.push(ids), *parser.finish()])
        num_calls += len(message.tool_calls)
        assert parallel or len(message.tool_calls) <= 1
        # All that was written between control tokens arrived where it belongs.
        assert ids.count(9) == len(message.tool_calls) == ids.count(32)
        for call in message.tool_calls:
            assert call.name in ("add", "get_weather") and isinstance(json.loads(call.arguments), dict)
    assert num_calls


def test_without_calls_none_can_be_begun(tokenizer, compiler):
    """A model that has called before would go on calling where it has no tools, and its call would be shown as text."""
    ids = tokenizer.encode_text("Sure: ")
    assert reads(compiler, compiler.grammar(), [*ids, 9]) == (len(ids), False)
    assert reads(compiler, compiler.grammar(), ids) == (len(ids), True)
    assert reads(compiler, compiler.grammar(), []) == (0, True)


@pytest.mark.parametrize(("is_open", "before"), [(False, [34]), (True, [])])
def test_thinking_ends_with_its_budget(tokenizer, compiler, is_open, before):
    thoughts = tokenizer.encode_text("one two three four five six")[:5]
    said = tokenizer.encode_text("yes")
    for budget in (1, 3, 5):
        grammar = compiler.grammar(thinking=Thinking(is_open, max_tokens=budget))
        ids = [*before, *thoughts[:budget], 35, *said]
        assert reads(compiler, grammar, ids) == (len(ids), True)
        assert reads(compiler, grammar, [*before, *thoughts, 1200])[0] == len(before) + budget


def test_a_budget_of_nothing_is_no_thinking(tokenizer, compiler):
    said = tokenizer.encode_text("yes")
    assert reads(compiler, compiler.grammar(thinking=Thinking(max_tokens=0)), [34]) == (0, False)
    assert reads(compiler, compiler.grammar(thinking=Thinking(True, 0)), said) == (0, False)
    assert reads(compiler, compiler.grammar(thinking=Thinking(True, 0)), [35, *said]) == (1 + len(said), True)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"\d{3}/\d", "123/4", "1234"),
        (r"^a$", "a", "^a$"),
        (r"^a\$", "a$", "a"),
        (r"^a\\$", "a\\", "a\\$"),
        (r"a|b", "b", "ab"),
        ("a\nb", "a\nb", "a b"),
        ("a\\\nb", "a\nb", "a b"),
        (r"\/\w+", "/usr", "usr"),
        ("[/]", "/", "["),
        ("é+😀", "éé😀", "e"),
    ],
)
def test_regular_expressions(compiler, pattern, good, bad):
    """Anchors, slashes and line ends are what a Lark grammar and an expression write in different ways."""
    form = RegexForm(pattern, "structured_outputs.regex")
    assert takes(compiler, form, good) and not takes(compiler, form, bad)


@pytest.mark.parametrize(
    "text", ["a", "yes or no", 'say "hi"', "\\d+", "a|b", "{x}", "\n\t", "日本 é 😀", "/", "\u2028\x07\x7f", "#", "^$"]
)
def test_choices(compiler, text):
    """Texts are taken literally, whatever they mean in an expression."""
    form = ChoiceForm([text, "other"], "structured_outputs.choice")
    assert takes(compiler, form, text) and takes(compiler, form, "other")
    assert not takes(compiler, form, text + "x") and not takes(compiler, form, "x")


@pytest.mark.parametrize("grammar", ['start: "a" x\nx: "b"+', 'root ::= "a" x\nx ::= "b"+\n'])
def test_grammars_in_either_language(compiler, grammar):
    form = LarkForm(grammar, "structured_outputs.grammar")
    assert takes(compiler, form, "abb") and not takes(compiler, form, "b")
    assert reads(
        compiler, compiler.grammar(form, thinking=Thinking()), [34, 1100, 35, *compiler._tokenizer.encode_text("ab")]
    )[1]


@pytest.mark.parametrize(
    "form",
    [
        RegexForm("((", "p"),
        RegexForm("(?=a)b", "p"),
        RegexForm(r"(a)\1", "p"),
        RegexForm("", "p"),
        RegexForm("a\\", "p"),
        RegexForm("a" * 40_000, "p"),
        ChoiceForm([], "p"),
        ChoiceForm(["a", ""], "p"),
        ChoiceForm(["a\0"], "p"),
        ChoiceForm(["a"] * 2000, "p"),
        LarkForm("nonsense", "p"),
        LarkForm('foo: "a"', "p"),
        LarkForm("start: missing", "p"),
        LarkForm('root ::= "a', "p"),
        LarkForm('start: %json {"type": "array", "minItems": 1000000}', "p"),
        LarkForm("root ::= " + "(" * 20_000, "p"),
        LarkForm("start: " + "(" * 3000 + '"a"' + ")" * 3000, "p"),
    ],
)
def test_forms_that_cannot_be_followed(compiler, form):
    with pytest.raises(InvalidRequestError) as caught:
        compiler.compile(compiler.grammar(form), param=form.param, code=form.code)
    assert caught.value.param.startswith("p")
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_an_object_of_many_optional_properties_can_be_followed(tokenizer, compiler):
    """llguidance's own limits end it at the first brace, which used to end the request with 500."""
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)}}
    assert takes(compiler, JsonForm(schema), '{"p1": "x", "p40": "y", "p899": "z"}')


def test_a_grammar_that_becomes_too_complex_is_refused_where_it_does(tokenizer, compiler, monkeypatch):
    """Without this the mask would be empty: the fault would look like ours."""
    monkeypatch.setattr(grammar_module, "MAX_ROW_ITEMS", 50)
    properties = json.dumps({f"p{i}": {"type": "string"} for i in range(200)})
    matcher = compiler.compile(f'start: "go" %json {{"type": "object", "properties": {properties}}}')
    mask = np.zeros(tokenizer.vocab_size, dtype=bool)
    with pytest.raises(InvalidRequestError) as caught:
        for token_id in tokenizer.encode_text('go{"p1'):
            matcher.fill(mask)
            matcher.accept(token_id)
    assert caught.value.code == "invalid_grammar"


def test_a_terminal_that_blows_up_is_refused(compiler):
    """It took a core for five seconds, in the server and again in the engine, where other grammars wait behind it."""
    names = "ABCDEFGHIJKLM"
    rules = [f"{name}: {' '.join([following] * 4)}" for name, following in itertools.pairwise(names)]
    grammar = "\n".join(["start: A", *rules, 'M: "x"'])
    with pytest.raises(InvalidRequestError, match="too big"):
        compiler.compile(compiler.grammar(LarkForm(grammar, "grammar")), param="grammar", code="invalid_grammar")


def test_a_description_cannot_break_the_grammar(tokenizer, compiler):
    """Tool schemas are written into the grammar as text."""
    words = '%json {"type": "object"} ) " \n {{ 7 * 7 }} {% raw %}'
    properties = {"a": {"type": "integer", "description": words}}
    function = {"name": "add", "strict": True, "parameters": {"type": "object", "properties": properties}}
    grammar = compiler.grammar(tools=[{"type": "function", "function": function}], calls="auto")
    ids = [9, *tokenizer.encode_text("add"), 32, *tokenizer.encode_text('{"a": 1}')]
    assert reads(compiler, grammar, ids) == (len(ids), True)


@pytest.mark.parametrize("tools", [TOOLS[1:], STRICT, STRICT[:1]])
@pytest.mark.parametrize("parallel", [True, False])
def test_calls_are_written_as_mistral_common_has_them(tokenizer, compiler, tools, parallel):
    """Its next version may write them in another way: then ours has to follow."""
    theirs = GrammarFactory(tokenizer.mistral).get_lark_from_jinja(
        template="start: {{ fcall }}\nSAFE_WS: /[ \\t\\r\\n]{1,8}/",
        mode=ToolChoiceEnum.required,
        tools=to_tools(tools),
        json_schema=None,
        parallel_tool_calls=parallel,
        json_only=False,
        force_tool_names=True,
    )
    ours = compiler.grammar(tools=tools, calls="required", parallel_tool_calls=parallel)
    for seed in range(8):
        ids = walk(tokenizer, compiler.compile(ours), seed)
        assert reads(compiler, theirs, ids) == (len(ids), True)
    names = {tool["function"]["name"] for tool in tools}
    for name, text in (("add", ' {"a": 1, "b": 2} '), ("get_weather", "{}"), ("other", "{}")):
        ids = [9, *tokenizer.encode_text(name), 32, *tokenizer.encode_text(text)]
        assert reads(compiler, ours, ids)[1] == (name in names) == reads(compiler, theirs, ids)[1], name


def test_writing_a_grammar_reads_no_vocabulary(tokenizer):
    """With 131,072 entries that stops a process for up to three seconds, and only the engine needs it."""
    compiler = GrammarCompiler(tokenizer)
    assert compiler.grammar(tools=TOOLS, calls="auto", thinking=Thinking())
    assert "_vocabulary" not in vars(compiler)
