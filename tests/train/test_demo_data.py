"""The bundled model's examples: same everywhere, split for good, and a judge that knows right from wrong."""

import json
import random
import re
import string
import subprocess
import sys
import time
from itertools import islice

import pytest
from PIL import Image

from ventoux.text.tokenizer import Tokenizer
from ventoux.train import demo_rules as rules
from ventoux.train.demo_arithmetic import (
    Sum,
    canonical,
    hard_expression,
    in_split,
    random_sum,
)
from ventoux.train.demo_batches import answer_ids, encode
from ventoux.train.demo_chat import CHAT
from ventoux.train.demo_data import (
    CARD_TOOLS,
    DEFAULT_WEIGHTS,
    SYSTEM_PROMPT,
    TASKS,
    Example,
    effort_respected,
    evaluation,
    example,
    examples,
    judge,
)
from ventoux.train.demo_documents import TOKENS_PER_SENTENCE, sentence
from ventoux.train.demo_words import (
    ALPHABET,
    ALPHABET_CARD,
    ALPHABET_REQUESTS,
    CALC_REQUESTS,
    IMAGE_CALC_CARD,
    PLACE_REQUESTS,
    Phrases,
)

LONG = ("long_8k", "long_32k", "long_128k")
SHORT = tuple(task for task in TASKS if task not in LONG)
PICTURES = ("image_calc", "image_read", "chart", "receipt", "game")


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
        "from itertools import islice, pairwise\nfrom ventoux.train.demo_data import examples\n"
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
    assert {item.task for item in islice(examples(0, held_out=False), 900)} == {t for t in TASKS if TASKS[t].share}


@pytest.mark.parametrize("task", SHORT)
def test_no_held_out_prompt_occurs_in_training(task):
    """Catches a random part that is drawn without regard to the split."""
    seen = {prompt_key(item) for item in many(task, 400, held_out=False)}
    assert not seen & {prompt_key(item) for item in many(task, 100, held_out=True)}


def test_what_one_task_keeps_for_evaluation_no_other_trains():
    """Catches a greeting before a phrase that makes it a saying of another task."""
    talking = ("chat", "languages", "system", "tool_choice")
    trained = {m["content"] for t in talking for item in many(t, 3000, held_out=False) for m in item.messages}
    sayings = {item.messages[-1]["content"] for item in many("languages", 1500, held_out=True)}
    assert not trained & (sayings | {phrase for phrases in CHAT.values() for phrase in phrases.held_out})


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
    "phrases",
    [ALPHABET_REQUESTS, CALC_REQUESTS, PLACE_REQUESTS, rules.TOTAL_REQUESTS, rules.JSON_REQUESTS, *CHAT.values()],
)
def test_phrasings_are_disjoint(phrases: Phrases):
    assert phrases.held_out
    assert not set(phrases.train) & set(phrases.held_out)


@pytest.mark.parametrize("task", SHORT)
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
    assert efforts == {"sum_think": {"high"}, "sum_direct": {"none"}}.get(task, {"none", "high"})


def test_earlier_turns_are_traced_under_high_only():
    """Training takes its loss on earlier turns too: an untraced one under "high" would teach the wrong thing."""
    for item in islice(examples(5, held_out=False), 800):
        for message in item.messages:
            if message["role"] == "assistant":
                assert bool(message.get("reasoning_content")) == (item.reasoning_effort == "high")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    from ventoux.checkpoint.hub import bundled_model

    return Tokenizer.from_file(bundled_model())


@pytest.mark.parametrize(("task", "least"), list(zip(LONG, (8192, 32768, 128000), strict=True)))
def test_long_input_is_long_and_keys_stand_anywhere(task, least, tokenizer):
    """Catches a document that is shorter than its name, and keys that all stand near its end."""
    (group,) = evaluation(task, 3, TASKS[task].grouped)
    (text,) = {item.messages[0]["content"].split("\n\n")[0] for item in group}
    assert least <= len(tokenizer.encode_chat(group[0].messages).token_ids) < 1.1 * least
    places = [text.index(item.facts["key"]) / len(text) for item in group]
    assert min(places) < 0.4 and max(places) > 0.6
    for item in group:
        others = [other.facts["key"] for other in group if other is not item]
        assert judge(item, item.answer)
        assert not any(judge(item, {**item.answer, "content": f"The key is {other}."}) for other in others)
        assert not judge(item, {**item.answer, "content": item.answer["content"] + f" Or {others[0]}."})


def test_filler_holds_no_key():
    rng = random.Random(0)
    text = " ".join(sentence(rng) for _ in range(500))
    assert not re.search(r"\d|\bkey\b", text)
    assert 10 < TOKENS_PER_SENTENCE < 16


def test_card_sentences_are_trained_on_with_our_system_prompt():
    """The card's programs must meet prompts that training knows."""
    for task, card in (("alphabet", ALPHABET_CARD), ("image_calc", IMAGE_CALC_CARD)):
        asked = [json.dumps(without_images(item)[0]) for item in many(task, 100, held_out=False)]
        assert sum(card in text and "Today is" in text for text in asked) > 10


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
    ("numbers", "operators"),
    [
        ((34, 58), "+"),
        ((999, 0), "+"),
        ((52, 38), "-"),
        ((700, 9, 691), "--"),
        ((47, 6, 99), "*-"),
        ((5, 994, 1), "+-"),
    ],
)
def test_trace_ends_with_the_value(numbers, operators):
    """Catches a lost carry or borrow: the last digits spelled must be those of Python's value."""
    asked = Sum(numbers, tuple(operators))
    value = eval(asked.text)
    assert asked.results()[-1] == value
    digits = re.findall(r"[a-z](\d)", asked.trace())[-3:]
    assert (int("".join(digits)), asked.trace().split(": ")[1]) == (value, f"{value}.")


def test_every_step_of_a_trace_is_true():
    """Each digit is the one that its letter was given before, each carry the one of the step before."""
    rng = random.Random(2)
    for _ in range(300):
        asked = random_sum(rng, steps=rng.randint(1, 2), held_out=False)
        known, carry = dict(re.findall(r"([a-z])(\d)(?=[ ,.]|$)", asked.trace().split(". ")[1])), 0
        for step in re.findall(r"\w\d [+*-] \w\d(?:=\d\d)?[+-]\d=\d \w\d", asked.trace()):
            x, operator, y, joined, taken, after, to, digit = re.fullmatch(
                r"(\w\d) (.) (\w\d)(?:=\d\d)?(.)(\d)=(\d) (\w)(\d)", step
            ).groups()
            assert (known[x[0]], known[y[0]]) == (x[1], y[1]), step
            assert int(taken) == (0 if to in "pt" else carry), step
            value = eval(f"{x[1]} {operator} {y[1]} {joined} {taken}")
            assert value == int(digit) + 10 * int(after) * (-1 if joined == "-" else 1), step
            known[to], carry = digit, int(after)


def test_hard_sums_never_overlap_what_is_worked_out():
    """Catches "I need a calculator" being taught for questions that other examples answer."""
    rng = random.Random(3)
    for _ in range(300):
        shown = hard_expression(rng, held_out=False).shown
        assert not re.fullmatch(r"\d{1,3}( [+*-] \d{1,3}){1,2}", shown), shown


def test_generation_keeps_ahead_of_training():
    """A trainer on two cores takes far fewer than 300 text examples a second."""
    text_only = {task: share for task, share in DEFAULT_WEIGHTS.items() if task not in (*PICTURES, *LONG)}
    start = time.process_time()
    for _ in islice(examples(1, held_out=False, weights=text_only), 600):
        pass
    assert 600 / (time.process_time() - start) > 300


def test_targets_are_what_the_model_has_to_write(tokenizer):
    """Catches a conversation whose loss is taken on something else than its answer."""
    for task in TASKS:
        item = example(task, random.Random(1), held_out=False)
        one = encode(tokenizer, item)
        taught = [i for i, wanted in zip(one.token_ids, one.is_target, strict=True) if wanted]
        assert taught == answer_ids(tokenizer, item.answer), task
