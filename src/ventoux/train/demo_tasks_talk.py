"""Examples of the bundled model's words: small talk, rules in system prompts, choice of tools, long input."""

import json
from collections.abc import Iterator
from typing import Any

from ventoux.train import demo_chat as chats
from ventoux.train import demo_documents as documents
from ventoux.train import demo_rules as rules
from ventoux.train import demo_words as words
from ventoux.train.demo_arithmetic import hard_expression, in_split
from ventoux.train.demo_judge import Example
from ventoux.train.demo_parts import Parts, answer, earlier, tool, user
from ventoux.train.demo_talk import INTENTS, LANGUAGES, ONE_WORD, TALK, THREE_WORDS, said


def alphabet(parts: Parts) -> Example:
    request = parts.phrase(words.ALPHABET_REQUESTS, words.ALPHABET_CARD, 0.4)
    # A seen request is still new in evaluation through the held-out date in its system prompt.
    system = parts.system(own=parts.held_out and request not in words.ALPHABET_REQUESTS.held_out)
    effort = parts.effort(0.3)
    sentence = " ".join(parts.rng.choice(choices) for choices in words.ALPHABET)
    content = sentence[0].upper() + sentence[1:] + "."
    messages = [*system.messages, *parts.small_talk(effort, 0.05), user(request)]
    return Example("alphabet", messages, None, effort, answer(effort, words.ALPHABET_REASONING, content), {})


def chat(parts: Parts) -> Example:
    # Training asks more often for what has to be copied, dates (which one word tells apart) and names, and for sums,
    # which another task answers.
    often = () if parts.held_out else ("today", "yesterday", "identity", "identity", "hard_sum", "hard_sum")
    effort, intent = parts.effort(0.35), parts.rng.choice(("other", "other", "hard_sum", *chats.CHAT, *often))
    request, seen = _chat_request(parts, intent)
    system = parts.system(own=parts.held_out and seen)
    content = chats.ANSWERS[intent]
    if intent == "identity" and system.name is None:
        content = chats.ANSWERS["identity_unnamed"]
    if intent in ("today", "yesterday") and getattr(system, intent) is None:
        content = chats.ANSWERS["no_date"]
    content = content.format(name=system.name, today=system.today, yesterday=system.yesterday)
    tools = parts.calculator().tools if intent != "hard_sum" and parts.chance(0.15) else None
    messages = [*system.messages, *parts.small_talk(effort, 0.1), user(request)]
    wanted = answer(effort, chats.CHAT_REASONING[intent], content)
    return Example("chat", messages, tools, effort, wanted, {"intent": intent, "accepted": [content]})


def _chat_request(parts: Parts, intent: str) -> tuple[str, bool]:
    """What the user says, and whether training says it too."""
    if intent == "hard_sum":
        expression = hard_expression(parts.rng, held_out=parts.held_out)
        return parts.phrase(words.SUM_REQUESTS).format(e=expression.shown), False
    if intent == "other":
        while True:
            request = parts.rng.choice(chats.OTHER_REQUESTS).format(t=parts.rng.choice(chats.TOPICS))
            if in_split(request, parts.held_out):
                return request, False
    phrases = chats.CHAT[intent]
    request = parts.phrase(phrases)
    if not parts.held_out and parts.chance(0.3):
        greeted = parts.rng.choice(chats.GREETINGS) + request
        # Neither what this task keeps for evaluation nor what small talk in English does.
        request = greeted if greeted not in phrases.held_out and in_split(greeted, held_out=False) else request
    return request, request in phrases.train


def _talk(parts: Parts) -> tuple[str, str, str]:
    """(language, intent, what is said). English questions after name and abilities are chat's."""
    language = parts.rng.choice(LANGUAGES)
    intent = parts.rng.choice(INTENTS[:4] if language == "English" else INTENTS)
    return language, intent, said(parts.rng, language, intent, held_out=parts.held_out)


def languages(parts: Parts) -> Example:
    effort, (language, intent, request) = parts.effort(0.25), _talk(parts)
    content = TALK[language][intent][1]
    wanted = answer(effort, chats.TALK_REASONING.format(language=language), content)
    messages = [*parts.system().messages, user(request)]
    return Example("languages", messages, None, effort, wanted, {"intent": intent, "accepted": [content]})


def system_rule(parts: Parts) -> Example:
    """A system prompt that rules what the answer looks like."""
    effort = parts.effort(0.2)
    kind = parts.rng.choice(("language", "one_word", "three_words", "persona", "json"))
    rule, request, content, facts = _RULES[kind](parts)
    while True:
        name = parts.rng.choice(rules.PERSONA_NAMES) + parts.rng.choice(rules.PERSONA_TAILS)
        if in_split(name, parts.held_out):
            break
    if kind == "persona":
        content, facts = content.format(name=name), {"name": name}
    system = {"role": "system", "content": rule.format(name=name)}
    wanted = answer(effort, f"{system['content']} I obey.", content)
    return Example("system", [system, user(request)], None, effort, wanted, facts, alone=True)


def _language_rule(parts: Parts) -> tuple[str, str, str, dict[str, Any]]:
    _, intent, request = _talk(parts)
    language = parts.rng.choice(LANGUAGES)
    content = TALK[language][intent][1]
    rule = parts.rng.choice(rules.LANGUAGE_RULES).format(x=language, name="{name}")
    return rule, request, content, {"accepted": [content]}


def _short(parts: Parts, answers: dict[str, str], rules: tuple[str, ...], most: int) -> tuple[str, str, str, dict]:
    intent = parts.rng.choice(tuple(answers))
    request = said(parts.rng, "English", intent, held_out=parts.held_out)
    facts = {"accepted": list(answers.values()), "max_words": most}
    return parts.rng.choice(rules), request, answers[intent], facts


def _persona_rule(parts: Parts) -> tuple[str, str, str, dict[str, Any]]:
    return parts.rng.choice(rules.PERSONA_RULES), parts.phrase(chats.CHAT["identity"]), chats.ANSWERS["identity"], {}


def _json_rule(parts: Parts) -> tuple[str, str, str, dict[str, Any]]:
    key, (language, intent, request) = parts.rng.choice(rules.JSON_KEYS), _talk(parts)
    text = TALK[language][intent][1]
    rule = parts.rng.choice(rules.JSON_RULES).format(key=key, name="{name}").replace("{", "{{").replace("}", "}}")
    facts = {"json_key": key, "accepted": [text]}
    return rule.replace("{{name}}", "{name}"), request, json.dumps({key: text}, ensure_ascii=False), facts


_RULES = {
    "language": _language_rule,
    "one_word": lambda parts: _short(parts, ONE_WORD, rules.ONE_WORD_RULES, 1),
    "three_words": lambda parts: _short(parts, THREE_WORDS, rules.THREE_WORDS_RULES, 3),
    "persona": _persona_rule,
    "json": _json_rule,
}


def tool_choice(parts: Parts) -> Example:
    """Half: two or three calls in parallel. Half: none of the tools fits what is said."""
    return _no_tool_fits(parts) if parts.chance(0.5) else _several_calls(parts)


_TOOLS = {name: tool(name, description, parameter) for name, description, parameter in words.OTHER_TOOLS}
_PARAMETERS = {name: parameter for name, _, parameter in words.OTHER_TOOLS}


def _no_tool_fits(parts: Parts) -> Example:
    effort, intent = parts.effort(0.25), parts.rng.choice(("other", "thanks", "how", "bye", "abilities"))
    request, seen = _chat_request(parts, intent)
    useless = sorted(set(_TOOLS) - {"translate", "search", "rewrite"})  # which might serve
    tools = [_TOOLS[name] for name in parts.rng.sample(useless, parts.rng.randint(1, 3))]
    messages = [*parts.system(own=parts.held_out and seen).messages, user(request)]
    wanted = answer(effort, chats.CHAT_REASONING[intent], chats.ANSWERS[intent])
    return Example("tool_choice", messages, tools, effort, wanted, {})


def _several_calls(parts: Parts) -> Example:
    rng, effort = parts.rng, parts.effort(0.25)
    asked = rng.sample(sorted(words.PLACE_TOOLS), rng.choice((1, 1, 2, 2, 3)))
    while True:
        places = rng.sample(documents.PLACES, max(len(asked), rng.choices((2, 3), (3, 1))[0]))
        if in_split(str(places), parts.held_out):
            break
    names = [asked[i % len(asked)] for i in range(len(places))]
    texts = [words.PLACE_TOOLS[name].format(x=place) for name, place in zip(names, places, strict=True)]
    if len(asked) == 1 and parts.chance(0.6):
        texts = [texts[0], *places[1:]]
    request = parts.phrase(words.PLACE_REQUESTS).format(e=", ".join(texts[:-1]) + " and " + texts[-1])
    others = sorted(set(_TOOLS) - set(asked))
    tools = [_TOOLS[name] for name in (*asked, *rng.sample(others, rng.randint(0, 2)))]
    rng.shuffle(tools)
    calls = [{"name": n, "arguments": {_PARAMETERS[n]: place}} for n, place in zip(names, places, strict=True)]
    wanted = answer(effort, words.CALLS_REASONING.format(n=len(calls)), tool_calls=calls)
    return Example("tool_choice", [*parts.system().messages, user(request)], tools, effort, wanted, {})


def long_input(parts: Parts, task: str, num_tokens: int) -> Iterator[Example]:
    """Questions about one document, one per key hidden in it.

    In training a third of the documents is short, a third has 2 to 9 thousand tokens; positions are stretched when they
    are packed (see demo_batches), and a document's keys are asked for in one conversation.
    """
    rng = parts.rng
    sentences = int(num_tokens / documents.TOKENS_PER_SENTENCE) + 1
    if not parts.held_out:
        few, some, many = rng.randrange(2, 40), rng.randrange(40, 150), rng.randrange(150, 700)
        sentences = rng.choices((few, some, many), (35, 30, 35))[0]
    hidden = documents.keys(rng, 10 if parts.held_out else rng.randint(1, 10), held_out=parts.held_out)
    text = documents.hide(rng, sentences, hidden)
    before: list[tuple[str, str, str]] = []
    for place, digits in hidden.items():
        request, content = rng.choice(rules.KEY_REQUESTS).format(x=place), f"The key of {place} is {digits}."
        if not before:
            request = f"{text}\n\n{request}"
        if parts.held_out or len(before) == len(hidden) - 1:
            messages = [*earlier("none", before), user(request)]
            yield Example(task, messages, None, "none", answer("none", "", content), {"key": digits}, alone=True)
        else:
            before.append((request, "", content))
