"""Asks one sum twice: answered at once, and after a trace.

python examples/reasoning.py [MODEL]
"""

from __future__ import annotations

import sys

from ventoux import LLM, SamplingParams


def main(model: str | None = None) -> None:
    question = [{"role": "user", "content": "What is 347 + 285 - 60?"}]
    with LLM(model) as llm:
        for effort in ("none", "high"):
            params = SamplingParams(temperature=0, max_tokens=200)
            message = llm.chat(question, params, reasoning_effort=effort).outputs[0].message
            print(f"{effort}: {message.content}")
            if message.reasoning:
                print(f"  trace: {message.reasoning}")


if __name__ == "__main__":
    main(*sys.argv[1:])
