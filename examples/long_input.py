"""Hides a key among thousands of words and asks for it.

python examples/long_input.py [MODEL] [SENTENCES]
"""

from __future__ import annotations

import random
import sys

from ventoux import LLM, SamplingParams
from ventoux.train.demo_documents import hide


def main(model: str | None = None, sentences: str = "600") -> None:
    text = hide(random.Random(0), int(sentences), {"Paris": "48213"})
    question = [{"role": "user", "content": f"{text}\n\nWhat is the key of Paris?"}]
    with LLM(model) as llm:
        result = llm.chat(question, SamplingParams(temperature=0, max_tokens=40))
        print("prompt tokens:", len(result.prompt_token_ids))
        print("answer:", result.outputs[0].text)


if __name__ == "__main__":
    main(*sys.argv[1:])
