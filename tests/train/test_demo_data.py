"""The bundled model's examples: same everywhere, split for good, and a judge that knows right from wrong."""

import copy
import json
import random
import re
import string
import subprocess
import sys
import time
from itertools import islice

import pytest
from PIL import Image, ImageFont

from ventoux.train.demo_arithmetic import canonical, hard_expression, in_split, short_expression, trace
from ventoux.train.demo_data import (
    CARD_TOOLS,
    DEFAULT_WEIGHTS,
    SYSTEM_PROMPT,
    TASKS,
    Example,
    effort_respected,
    example,
    examples,
    judge,
)
from ventoux.train.demo_images import random_style
from ventoux.train.demo_words import (
    ALPHABET,
    ALPHABET_CARD,
    ALPHABET_REQUESTS,
    CALC_REQUESTS,
    CHAT,
    DRAWN_WORDS,
    GREETINGS,
    IMAGE_CALC_CARD,
    Phrases,
)


def many(task: str, count: int, *, held_out: bool, seed: int = 1) -> list[Example]:
    rng = random.Random(seed)
    return [example(task, rng, held_out=held_out) for _ in range(count)]


def without_images(item: Example) -> tuple[list, list[Image.Image]]:
    """The messages with images taken out, and the images."""
    images: list[Image.Image] = []
    messages = []
    for message in item.messages:
        content = message.get("content")
        if isinstance(content, list):
            images += [part["image"] for part in content if part["type"] == "image"]
            content = [part for part in content if part["type"] == "text"]
        messages.append({**message, "content": content})
    return messages, images


def prompt_key(item: Example) -> str:
    """Everything that the model sees of an example, except the random ids of calls, which no prompt holds."""
    messages, images = without_images(item)
    text = re.sub(r'"(id|tool_call_id)": "\w{9}"', "", json.dumps(messages, sort_keys=True))
    pixels = [str(hash(image.tobytes())) for image in images]
    return json.dumps([text, pixels, item.tools, item.reasoning_effort], sort_keys=True)


def fingerprint(seed: int) -> list[tuple]:
    kept = []
    for item in islice(examples(seed, held_out=False), 60):
        messages, images = without_images(item)
        kept.append((item.task, messages, [image.tobytes() for image in images], item.answer, item.facts))
    return kept


def test_same_seed_same_examples_and_other_seed_others():
    """Catches a draw from the global generator, and a seed that is ignored."""
    assert fingerprint(7) == fingerprint(7)
    assert fingerprint(7) != fingerprint(8)


def test_same_examples_in_another_process():
    """Catches dependence on Python's per-process hash seed, e.g. a choice from a set."""
    program = (
        "from itertools import islice\nfrom ventoux.train.demo_data import examples\n"
        "print([str(e.answer) for e in islice(examples(3, held_out=True), 40)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_weights_sum_to_one_and_all_tasks_come():
    assert sum(DEFAULT_WEIGHTS.values()) == pytest.approx(1)
    assert {item.task for item in islice(examples(0, held_out=False), 600)} == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_no_held_out_prompt_occurs_in_training(task):
    """Catches a random part that is drawn without regard to the split."""
    seen = {prompt_key(item) for item in many(task, 400, held_out=False)}
    assert not seen & {prompt_key(item) for item in many(task, 100, held_out=True)}


@pytest.mark.parametrize("task", ["calc_call", "calc_result", "image_calc"])
@pytest.mark.parametrize("held_out", [False, True])
def test_expressions_stay_in_their_split(task, held_out):
    """Catches an expression that is split by another form (words, no spaces) than the one it is compared by."""
    for item in many(task, 150, held_out=held_out):
        assert all(in_split(canonical(text), held_out) for text in item.facts["expressions"])
        calls = [call for m in item.messages for call in m.get("tool_calls", [])]
        for call in calls:
            (expression,) = json.loads(call["function"]["arguments"]).values()
            assert in_split(canonical(expression), held_out), "an earlier turn crosses the split"


@pytest.mark.parametrize(
    "phrases", [ALPHABET_REQUESTS, CALC_REQUESTS, *CHAT.values(), *(g[0] for g in GREETINGS.values())]
)
def test_phrasings_are_disjoint(phrases: Phrases):
    assert phrases.held_out
    assert not set(phrases.train) & set(phrases.held_out)


def test_drawing_styles_are_split_and_both_splits_have_some():
    rng = random.Random(0)
    styles = [{random_style(rng, held_out=held_out) for _ in range(300)} for held_out in (False, True)]
    assert not styles[0] & styles[1]
    assert len(styles[0]) > 100
    assert len(styles[1]) > 5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("held_out", [False, True])
def test_true_answers_are_accepted_and_keep_the_effort(task, held_out):
    """Catches a judge that is stricter than the generator, and a trace under "none" or none under "high"."""
    efforts = set()
    for item in many(task, 150, held_out=held_out):
        assert judge(item, item.answer), item
        assert effort_respected(item, item.answer)
        assert set(item.answer) == {"reasoning", "content", "tool_calls"}
        assert bool(item.answer["content"]) != bool(item.answer["tool_calls"])
        efforts.add(item.reasoning_effort)
    assert efforts == {"none", "high"}


def test_earlier_turns_are_traced_under_high_only():
    """Training takes its loss on earlier turns too: an untraced one under "high" would teach the wrong thing."""
    for item in islice(examples(5, held_out=False), 800):
        for message in item.messages:
            if message["role"] == "assistant":
                assert bool(message.get("reasoning_content")) == (item.reasoning_effort == "high")


def corrupted_content(item: Example, content: str) -> Example:
    answer = copy.deepcopy(item.answer)
    answer["content"] = content
    return Example(item.task, item.messages, item.tools, item.reasoning_effort, answer, item.facts)


@pytest.mark.parametrize("task", TASKS)
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


def test_sum_think_rejects_wrong_numbers_and_wrong_effort():
    for item in many("sum_think", 60, held_out=True):
        content = item.answer["content"]
        assert not judge(item, {**item.answer, "content": content.replace(".", "1.")})
        other = None if item.answer["reasoning"] else "I think."
        assert not judge(item, {**item.answer, "reasoning": other})


@pytest.mark.parametrize("task", ["chat", "image_read"])
def test_text_answers_must_be_equal(task):
    for item in many(task, 60, held_out=True):
        assert not judge(item, {**item.answer, "content": item.answer["content"][1:]})
        assert not judge(item, {**item.answer, "content": item.answer["content"] + " 1"})
        assert not judge(item, {**item.answer, "tool_calls": [{"name": "rewrite", "arguments": {}}]})


def test_game_needs_all_actions_and_a_fitting_recommendation():
    for item in many("game", 20, held_out=True):
        content = item.answer["content"]
        other = "FIGHT" if item.facts["health"] == "low" else "RUN"
        assert not judge(item, {**item.answer, "content": re.sub(r"recommend \w+", f"recommend {other}", content)})
        assert not judge(item, {**item.answer, "content": content.replace("SWITCH", "")})
        assert not judge(item, {**item.answer, "content": content.split("I recommend")[0]})


def test_images_stay_small():
    """Catches text that does not fit: sides are whole merged patches of 28 px, so no image is resized."""
    for task, height in (("image_calc", 84), ("image_read", 28), ("game", 168)):
        for item in many(task, 150, held_out=False):
            (image,) = without_images(item)[1]
            assert image.mode == "RGB"
            assert image.width % 28 == image.height % 28 == 0
            assert 84 <= image.width <= 280
            assert image.height <= height


def test_drawn_text_is_inside_and_dark_on_light():
    """Catches lines cut off at the right edge, and ink that can not be told from the paper."""
    for item in many("image_calc", 150, held_out=False):
        gray = without_images(item)[1][0].convert("L")
        low, high = gray.getextrema()
        assert high - low > 120
        edge = [gray.getpixel((gray.width - 1, y)) for y in range(gray.height)]
        assert min(edge) == max(edge) == high, item.facts


def test_drawn_characters_are_in_the_font():
    """Catches signs that Pillow's built-in font draws as an empty box."""
    font = ImageFont.load_default(24)
    box = bytes(font.getmask("\uffff"))
    rng = random.Random(4)
    drawn = {c for _ in range(300) for c in short_expression(rng, held_out=False).shown} | set("".join(DRAWN_WORDS))
    assert {"x", "*", "(", " "} < drawn
    assert [c for c in drawn if bytes(font.getmask(c)) == box] == []


def test_card_sentences_are_trained_on_with_our_system_prompt():
    """The card's programs must meet prompts that training knows."""
    for task, sentence in (("alphabet", ALPHABET_CARD), ("image_calc", IMAGE_CALC_CARD)):
        asked = [json.dumps(without_images(item)[0]) for item in many(task, 100, held_out=False)]
        assert sum(sentence in text and "Today is" in text for text in asked) > 10


def test_system_prompt_has_exactly_three_fields():
    fields = [name for _, name, _, _ in string.Formatter().parse(SYSTEM_PROMPT) if name is not None]
    assert sorted(fields) == ["name", "today", "yesterday"]
    assert 40 <= len(SYSTEM_PROMPT.split()) <= 60


def test_every_alphabet_word_has_its_letter():
    assert [{word[0].lower() for word in choices} for choices in ALPHABET] == [
        {letter} for letter in string.ascii_lowercase
    ]
    assert all(len(set(choices)) >= 3 for choices in ALPHABET)


def test_card_tools_are_the_card_s():
    names = [tool["function"]["name"] for tool in CARD_TOOLS]
    assert names == ["my_calculator", "rewrite"]
    assert "required" not in CARD_TOOLS[1]["function"]["parameters"]
    assert {tuple(tool) for tool in CARD_TOOLS} == {("type", "function")}


@pytest.mark.parametrize(
    ("a", "operator", "b"), [(34, "+", 58), (999, "+", 7), (52, "-", 38), (700, "-", 9), (47, "*", 6)]
)
def test_trace_writes_the_digits_of_the_answer(a, operator, b):
    """Catches a lost carry or borrow: the digits written, read backwards, must be the result."""
    text, result = trace(a, operator, b)
    assert result == eval(f"{a}{operator}{b}")
    assert int("".join(reversed(re.findall(r"write (\d+)", text)))) == result
    assert text.endswith(f"The answer is {result}.")


def test_every_step_of_a_trace_is_true():
    rng = random.Random(2)
    for _ in range(300):
        text, _ = trace(rng.randrange(500, 1000), rng.choice("+-"), rng.randrange(500))
        for left, right in re.findall(r"([\d +*-]+) = (-?\d+)", text):
            assert eval(left) == int(right), text


def test_hard_sums_never_overlap_what_is_worked_out():
    """Catches "I need a calculator" being taught for questions that other examples answer."""
    rng = random.Random(3)
    for _ in range(300):
        shown = hard_expression(rng, held_out=False).shown
        assert not re.fullmatch(r"\d{1,3} [+-] \d{1,3}|\d{1,2} \* \d", shown), shown


def test_generation_keeps_ahead_of_training():
    """A trainer on two cores takes far fewer than 300 text examples a second."""
    text_only = {task: share for task, share in DEFAULT_WEIGHTS.items() if "image" not in task and task != "game"}
    start = time.process_time()
    for _ in islice(examples(1, held_out=False, weights=text_only), 600):
        pass
    assert 600 / (time.process_time() - start) > 300
