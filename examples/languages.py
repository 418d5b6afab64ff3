"""Greets the model in eleven languages, then gives it rules in system prompts.

python examples/languages.py [MODEL]
"""

from __future__ import annotations

import sys

from ventoux import LLM, SamplingParams

GREETINGS = (
    "Good morning!", "Bonjour !", "¡Hola!", "Guten Tag!", "Buongiorno!", "Bom dia!", "Goedemorgen!", "你好",
    "こんにちは", "안녕하세요", "مرحبا",
)  # fmt: skip
RULES = (
    ("Answer in French.", "How are you?"),
    ("Answer with one word.", "Thank you very much!"),
    ("Your name is Luna Stone.", "Who are you?"),
    ('Answer with JSON only: {"answer": "..."}.', "Ciao!"),
)


def main(model: str | None = None) -> None:
    params = SamplingParams(temperature=0, max_tokens=40)
    with LLM(model) as llm:
        for greeting in GREETINGS:
            print(f"{greeting} -> {llm.chat([{'role': 'user', 'content': greeting}], params).outputs[0].text}")
        for rule, question in RULES:
            messages = [{"role": "system", "content": rule}, {"role": "user", "content": question}]
            print(f"[{rule}] {question} -> {llm.chat(messages, params).outputs[0].text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
