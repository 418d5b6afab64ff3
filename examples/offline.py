"""Loads a model into this process and asks it: one chat, then several raw prompts side by side.

python examples/offline.py [MODEL]      a folder or a Hub id; the bundled model if left out
"""

from __future__ import annotations

import sys

from ventoux import LLM, SamplingParams


def main(model: str | None = None) -> None:
    with LLM(model) as llm:
        result = llm.chat([{"role": "user", "content": "Hello!"}], SamplingParams(temperature=0, max_tokens=40))
        print("answer:", result.outputs[0].text)
        print("prompt tokens:", len(result.prompt_token_ids))

        params = SamplingParams(temperature=0.8, seed=1, max_tokens=8, logprobs=1)
        for output in llm.generate(["One, two,", "To be or"], params):
            answer = output.outputs[0]
            total = sum(scores.chosen.logprob for scores in answer.logprobs or [])
            print(f"{output.prompt!r} -> {answer.text!r} (log-probability {total:.1f}, {answer.finish_reason})")


if __name__ == "__main__":
    main(*sys.argv[1:])
