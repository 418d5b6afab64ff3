"""Asks a running server with the OpenAI client: whole, streamed, and held to a schema. Needs `pip install openai`.

ventoux serve &
python examples/server_client.py [URL]
"""

from __future__ import annotations

import json
import sys

from openai import OpenAI


def main(url: str = "http://127.0.0.1:8000") -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="EMPTY") as client:
        model = client.models.list().data[0].id
        question = [{"role": "user", "content": "Hello!"}]

        answer = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=40)
        print("answer:", answer.choices[0].message.content)
        print("tokens:", answer.usage.prompt_tokens, "+", answer.usage.completion_tokens)

        print("stream: ", end="")
        chunks = client.chat.completions.create(
            model=model, messages=question, temperature=0, max_tokens=40, stream=True
        )
        for chunk in chunks:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()

        schema = {"type": "object", "properties": {"polite": {"type": "boolean"}}, "required": ["polite"]}
        schema["additionalProperties"] = False
        answer = client.chat.completions.create(
            model=model,
            messages=question,
            temperature=0,
            response_format={"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}},
        )
        print("as JSON:", json.loads(answer.choices[0].message.content))


if __name__ == "__main__":
    main(*sys.argv[1:])
