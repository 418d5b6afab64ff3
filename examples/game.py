"""Draws a game screen and asks what to do.

python examples/game.py [MODEL]
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw, ImageFont

from ventoux import LLM, SamplingParams

QUESTION = (
    "What action do you think I should take in this situation? "
    "List all the possible actions and explain why you think they are good or bad."
)


def screen(health: float) -> Image.Image:
    """The foe above, our creature below with its bar of health (0 to 1), and the menu."""
    image = Image.new("RGB", (308, 196), (230, 240, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=23)
    for (x, y), name, level, share in (((4, 3), "Owl", "Lv 12", 0.7), ((130, 62), "Wolf", "Lv 33", health)):
        draw.rectangle((x, y, x + 168, y + 54), fill=(255, 255, 250), outline=(40, 40, 40))
        draw.text((x + 6, y + 16), name, fill="black", font=font, anchor="lm")
        draw.text((x + 162, y + 16), level, fill="black", font=font, anchor="rm")
        draw.rectangle((x + 6, y + 33, x + 162, y + 47), fill=(205, 205, 205), outline=(40, 40, 40))
        color = (40, 170, 60) if share > 0.5 else (210, 40, 40)
        draw.rectangle((x + 8, y + 35, x + 8 + round(152 * share), y + 45), fill=color)
    draw.rectangle((0, 126, 307, 195), fill=(250, 250, 250), outline=(40, 40, 40))
    for place, action in enumerate(("FIGHT", "BAG", "SWITCH", "RUN")):
        draw.text((14 + 140 * (place % 2), 144 + 32 * (place // 2)), action, fill="black", font=font, anchor="lm")
    return image


def main(model: str | None = None) -> None:
    with LLM(model) as llm:
        for health in (0.9, 0.2):
            content = [{"type": "text", "text": QUESTION}, {"type": "image", "image": screen(health)}]
            params = SamplingParams(temperature=0, max_tokens=200)
            print(f"health {health}:")
            print(llm.chat([{"role": "user", "content": content}], params).outputs[0].text)


if __name__ == "__main__":
    main(*sys.argv[1:])
