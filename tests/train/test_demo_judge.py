"""The judges of the bundled model's tasks refuse what is wrong."""

import json
import random
import re

import pytest

from tests.train.test_demo_data import SHORT, many
from ventoux.train.demo_arithmetic import (
    in_split,
)
from ventoux.train.demo_data import (
    evaluation,
    judge,
)
from ventoux.train.demo_talk import INTENTS, LANGUAGES, TALK, said


@pytest.mark.parametrize("task", SHORT)
def test_empty_and_missing_replies_are_wrong(task):
    for item in many(task, 30, held_out=True):
        assert not judge(item, {"reasoning": item.answer["reasoning"], "content": None, "tool_calls": []})
        assert not judge(item, {"reasoning": item.answer["reasoning"], "content": "", "tool_calls": []})


def test_alphabet_rejects_missing_swapped_and_added_words():
    for item in many("alphabet", 30, held_out=True):
        listed = item.answer["content"].split()
        for wrong in (
            listed[1:],
            listed[:-1],
            [listed[1], listed[0], *listed[2:]],
            [*listed, "again."],
            listed[:5] + listed[6:],
        ):
            assert not judge(item, {**item.answer, "content": " ".join(wrong)})


@pytest.mark.parametrize("task", ["calc_call", "image_calc"])
def test_calls_reject_any_wrong_part(task):
    for item in many(task, 60, held_out=True):
        (first, *rest) = item.answer["tool_calls"]
        ((parameter, expression),) = first["arguments"].items()
        for wrong in (
            rest,
            [first, *rest, first],
            [{**first, "name": "rewrite" if first["name"] != "rewrite" else "search"}, *rest],
            [{**first, "arguments": {parameter: expression + "1"}}, *rest],
            [{**first, "arguments": {parameter + "s": expression}}, *rest],
            [{**first, "arguments": {parameter: expression, "more": 1}}, *rest],
            [{**first, "arguments": expression}, *rest],
        ):
            assert not judge(item, {**item.answer, "tool_calls": wrong})
        spaced = {**first, "arguments": {parameter: " " + expression.replace("+", " + ")}}
        assert judge(item, {**item.answer, "tool_calls": [*rest, spaced]}), "order and spaces do not matter"


def test_calc_result_rejects_wrong_numbers_and_further_calls():
    for item in many("calc_result", 100, held_out=True):
        content, value = item.answer["content"], item.facts["values"][0]
        expression = item.facts["expressions"][0]
        right = f"{expression} = {value}"
        for wrong in (f"{expression} = {value}1", f"{expression} = 1{value}", f"1{expression} = {value}", value):
            assert not judge(item, {**item.answer, "content": content.replace(right, wrong)})
        call = {"name": item.facts["name"], "arguments": {item.facts["parameter"]: expression}}
        assert not judge(item, {**item.answer, "tool_calls": [call]})
        joined = content.replace("\n", " ").replace(" = ", "=")
        assert judge(item, {**item.answer, "content": f"The results: {joined}"}), "spaces and lines do not matter"


def test_sums_reject_wrong_numbers_and_wrong_effort():
    for task in ("sum_think", "sum_direct"):
        for item in many(task, 30, held_out=True):
            content = item.answer["content"]
            assert not judge(item, {**item.answer, "content": content.replace(".", "1.")})
            other = None if item.answer["reasoning"] else "I think."
            assert not judge(item, {**item.answer, "reasoning": other})


def test_sums_with_and_without_a_trace_are_the_same_questions():
    asked = [
        [m["content"] for (e,) in evaluation(task, 4, 20) for m in e.messages] for task in ("sum_think", "sum_direct")
    ]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("task", ["chat", "languages", "image_read", "chart", "receipt"])
def test_text_answers_must_be_equal(task):
    for item in many(task, 60, held_out=True):
        assert not judge(item, {**item.answer, "content": item.answer["content"][1:]})
        assert not judge(item, {**item.answer, "content": item.answer["content"] + " 1"})
        assert not judge(item, {**item.answer, "tool_calls": [{"name": "rewrite", "arguments": {}}]})


def test_another_language_is_wrong():
    answers = {TALK[language][intent][1] for language in LANGUAGES for intent in INTENTS}
    for item in many("languages", 60, held_out=True):
        accepted = [text for text in answers if judge(item, {**item.answer, "content": text})]
        assert accepted == item.facts["accepted"]


def test_every_language_and_intent_has_both_splits():
    """Catches a search that never ends because no way of saying something belongs to a split."""
    rng = random.Random(0)
    for language in LANGUAGES:
        for intent in INTENTS:
            for held_out in (False, True):
                assert in_split(said(rng, language, intent, held_out=held_out), held_out)


def test_rules_reject_what_breaks_them():
    kinds = set()
    for item in many("system", 150, held_out=True):
        facts, content = item.facts, item.answer["content"]
        wrong = ["Hello! How can I help you today?", content + " And more, and more."]
        if "name" in facts:
            kinds.add("name")
            wrong = ["I am a very small demonstration model.", content.replace(facts["name"], facts["name"] + "a")]
        elif "json_key" in facts:
            kinds.add("json")
            wrong += [content[:-1], content.replace(facts["json_key"], "other"), json.loads(content)[facts["json_key"]]]
        else:
            kinds.add("words" if "max_words" in facts else "language")
        assert not any(judge(item, {**item.answer, "content": text}) for text in wrong), (content, wrong)
    assert kinds == {"name", "json", "words", "language"}


def test_tool_choice_rejects_missing_added_and_changed_calls():
    seen = set()
    for item in many("tool_choice", 80, held_out=True):
        calls = item.answer["tool_calls"]
        seen.add(bool(calls))
        added = {"name": item.tools[0]["function"]["name"], "arguments": {"city": "Ulm"}}
        assert not judge(item, {**item.answer, "tool_calls": [*calls, added]})
        if calls:
            assert len(calls) > 1
            assert judge(item, {**item.answer, "tool_calls": calls[::-1]}), "the order does not matter"
            assert not judge(item, {**item.answer, "tool_calls": calls[1:]})
            changed = {**calls[0], "arguments": dict.fromkeys(calls[0]["arguments"], "Ulm")}
            assert not judge(item, {**item.answer, "tool_calls": [changed, *calls[1:]]})
    assert seen == {False, True}


def test_json_by_schema():
    """Catches a schema that its own answer breaks, and an answer of the right value under another key."""
    asked = [item for item in many("receipt", 80, held_out=True) if item.schema]
    assert len(asked) > 10
    for item in asked:
        found = json.loads(item.answer["content"])
        assert list(found) == item.schema["required"] == list(item.schema["properties"])
        (value,) = found.values()
        assert not judge(item, {**item.answer, "content": json.dumps({"other": value})})
        assert not judge(item, {**item.answer, "content": str(value)})


def test_game_needs_all_actions_with_reasons_and_a_fitting_recommendation():
    for item in many("game", 20, held_out=True):
        content = item.answer["content"]
        other = "FIGHT" if item.facts["health"] == "low" else "RUN"
        assert not judge(item, {**item.answer, "content": re.sub(r"recommend \w+", f"recommend {other}", content)})
        assert not judge(item, {**item.answer, "content": content.replace("SWITCH", "")})
        assert not judge(item, {**item.answer, "content": re.sub("BAG: .*", "BAG", content)})
        assert not judge(item, {**item.answer, "content": content.split("I recommend")[0]})
