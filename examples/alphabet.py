"""Asks for a sentence whose words go through the alphabet, three times with other seeds.

python examples/alphabet.py [MODEL]
"""

from __future__ import annotations

import sys

from ventoux import LLM, SamplingParams

QUESTION = (
    "Write me a sentence where every word starts with the next letter in the alphabet - "
    "start with 'a' and end with 'z'."
)


def main(model: str | None = None) -> None:
    with LLM(model) as llm:
        for seed in range(3):
            params = SamplingParams(temperature=0.1, seed=seed, max_tokens=150)
            print(llm.chat([{"role": "user", "content": QUESTION}], params).outputs[0].text)


if __name__ == "__main__":
    main(*sys.argv[1:])
