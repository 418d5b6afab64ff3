"""Draws a picture and asks what is written in it.

python examples/vision.py [MODEL]
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw, ImageFont

from ventoux import LLM, SamplingParams


def draw(text: str) -> Image.Image:
    image = Image.new("RGB", (140, 28), "white")
    ImageDraw.Draw(image).text((6, 14), text, fill="black", font=ImageFont.load_default(size=23), anchor="lm")
    return image


def main(model: str | None = None) -> None:
    question = {"type": "text", "text": "What is written in the image?"}
    content = [question, {"type": "image", "image": draw("12 + 34")}]
    with LLM(model) as llm:
        result = llm.chat([{"role": "user", "content": content}], SamplingParams(temperature=0, max_tokens=40))
        print("prompt tokens:", len(result.prompt_token_ids))
        print("answer:", result.outputs[0].text)


if __name__ == "__main__":
    main(*sys.argv[1:])
