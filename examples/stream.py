"""Prints an answer as it comes, reasoning and content apart.

python examples/stream.py [MODEL]
"""

from __future__ import annotations

import sys

from ventoux import LLM, SamplingParams
from ventoux.text.stream_parser import Content, Reasoning


def main(model: str | None = None) -> None:
    question = [{"role": "user", "content": "What is 12 + 34?"}]
    params = SamplingParams(temperature=0, max_tokens=120)
    with LLM(model) as llm:
        kind = None
        for event in llm.stream(question, params, reasoning_effort="high"):
            if not isinstance(event, (Reasoning, Content)):
                continue
            if type(event) is not kind:
                kind = type(event)
                print(f"\n[{kind.__name__.lower()}]")
            print(event.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
