"""Draws a receipt and asks a running server for its total as JSON of a schema. Needs `pip install openai`.

ventoux serve &
python examples/receipt.py [URL]
"""

from __future__ import annotations

import base64
import io
import sys

from openai import OpenAI
from PIL import Image, ImageDraw, ImageFont

ROWS = (("Tea", "4.20"), ("Bread", "12.30"), ("Total", "16.50"))
SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number"}},
    "required": ["total"],
    "additionalProperties": False,
}


def receipt() -> str:
    """The receipt as a data URL."""
    image = Image.new("RGB", (168, 140), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=23)
    draw.text((84, 18), "City Store", fill="black", font=font, anchor="mm")
    for number, (name, amount) in enumerate(ROWS, 1):
        middle = 18 + 33 * number
        draw.text((6, middle), name, fill="black", font=font, anchor="lm")
        draw.text((160, middle), amount, fill="black", font=font, anchor="rm")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def main(url: str = "http://127.0.0.1:8000") -> None:
    content = [
        {"type": "text", "text": "Give the total as JSON."},
        {"type": "image_url", "image_url": {"url": receipt()}},
    ]
    with OpenAI(base_url=f"{url}/v1", api_key="EMPTY") as client:
        answer = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": content}],
            temperature=0,
            response_format={"type": "json_schema", "json_schema": {"name": "receipt", "schema": SCHEMA}},
        )
    print("as JSON:", (answer.choices[0].message.content or "").strip())


if __name__ == "__main__":
    main(*sys.argv[1:])
