"""The bundled model's pictures: lines of text, bar charts, receipts, and a small battle screen."""

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from ventoux.train import demo_images as images
from ventoux.train.demo_images import Canvas, font_at, random_style, whole_patches
from ventoux.train.demo_rules import GAME_ACTIONS

ARITHMETIC = "0123456789+-*/()x=."
BAR_LENGTH = 112  # pixels, of the longest bar
BAR_COLORS = ((70, 110, 180), (200, 120, 50), (90, 150, 90), (150, 90, 150))
HELD_OUT_BAR_COLORS = ((60, 140, 150), (190, 90, 90))


@dataclass(frozen=True)
class Fighter:
    name: str
    level: int
    health: float  # 0 to 1


def draw_lines(rng: random.Random, lines: Sequence[str], *, held_out: bool) -> Image.Image:
    """Lines of text somewhere on a page just large enough; RGB, both sides multiples of 28 px."""
    style = random_style(rng, held_out=held_out)
    font = font_at(style.font, style.cap)
    needed = max(font.getlength(line) for line in lines) + 6
    room = max(whole_patches(needed) - needed, 0) + (images.MERGED_PATCH if rng.random() < 0.2 else 0)
    height = style.pitch * (len(lines) - 1) + images.MERGED_PATCH
    canvas = Canvas(style, max(needed + room, 56), height + (rng.randrange(14) if rng.random() < 0.5 else 0))
    left, top = 3 + rng.uniform(0, room), rng.uniform(0, canvas.image.height - height)
    for number, line in enumerate(lines):
        canvas.text(left, top + images.MERGED_PATCH / 2 + style.pitch * number, line)
    return canvas.finished(rng)


def random_text_image(rng: random.Random) -> Image.Image:
    """One to three lines of random characters, mostly those of arithmetic: for learning characters alone."""
    lines = []
    for _ in range(rng.randint(1, 3)):
        characters = ARITHMETIC if rng.random() < 0.6 else string.ascii_letters + string.digits
        line = "".join(rng.choice(characters) for _ in range(rng.randint(3, 14)))
        lines.append(" ".join(line[i : i + 3] for i in range(0, len(line), 3)) if rng.random() < 0.5 else line)
    return draw_lines(rng, lines, held_out=False)


def draw_chart(rng: random.Random, values: Mapping[str, int], *, held_out: bool) -> Image.Image:
    """A bar per name from left to right, its name before it and its value behind it."""
    style = random_style(rng, held_out=held_out)
    font = font_at(style.font, style.cap)
    color = rng.choice(HELD_OUT_BAR_COLORS if held_out else BAR_COLORS)
    start = round(max(font.getlength(name) for name in values)) + 14 + rng.randrange(8)
    pitch = style.pitch
    canvas = Canvas(style, start + BAR_LENGTH + font.getlength("99") + 12, pitch * len(values) + rng.randrange(10))
    top = rng.uniform(0, canvas.image.height - pitch * len(values))
    largest = max(values.values())
    for number, (name, value) in enumerate(values.items()):
        middle = top + pitch * (number + 0.5)
        end = start + max(4, round(BAR_LENGTH * value / largest))
        canvas.row([(5, name), (end + 6, str(value))], middle)
        box = (start, round(middle) - 8, end, round(middle) + 8)
        canvas.bar(box, color, images.LARGEST if value == largest else images.BAR)
    return canvas.finished(rng)


def draw_receipt(rng: random.Random, shop: str, rows: Sequence[tuple[str, str]], *, held_out: bool) -> Image.Image:
    """The shop's name, then a line per name and amount, amounts flush right."""
    style = random_style(rng, held_out=held_out)
    font = font_at(style.font, style.cap)
    needed = max([font.getlength(f"{name} {amount}") for name, amount in rows] + [font.getlength(shop)])
    width = whole_patches(needed + 24 + rng.randrange(28))
    height = style.pitch * (len(rows) + 1)
    canvas = Canvas(style, width, height + rng.randrange(10))
    top, right = rng.uniform(0, canvas.image.height - height), width - 5 - rng.randrange(8)
    canvas.text(rng.uniform(5, width - font.getlength(shop) - 5), top + style.pitch / 2, shop)
    for number, (name, amount) in enumerate(rows, 1):
        middle = top + style.pitch * (number + 0.5)
        canvas.row([(6, name), (right - font.getlength(amount), amount)], middle)
    return canvas.finished(rng)


def draw_battle(rng: random.Random, ours: Fighter, foe: Fighter, *, held_out: bool) -> Image.Image:
    """The foe's box above left, ours below right, and the menu of actions at the bottom."""
    canvas = Canvas(random_style(rng, held_out=held_out), 308, 196)
    for fighter, (x, y), labels in (
        (foe, (4, 3), (images.FOE, images.FOE)),
        (ours, (130, 62), (images.OUR_HIGH, images.OUR_LOW)),
    ):
        _draw_box(canvas, fighter, x + rng.randint(-3, 4), y + rng.randint(-2, 2), labels)
    canvas.draw.rectangle((0, 126, 307, 195), fill=(250, 250, 250), outline=(40, 40, 40))
    step = rng.randint(134, 150)
    for place, action in enumerate(GAME_ACTIONS):
        canvas.text(14 + step * (place % 2), 144 + 32 * (place // 2), action)
    return canvas.finished(rng)


def _draw_box(canvas: Canvas, fighter: Fighter, x: int, y: int, labels: tuple[int, int]) -> None:
    """A name, a level and a bar of health, green above one half and red below."""
    canvas.draw.rectangle((x, y, x + 168, y + 54), fill=(255, 255, 250), outline=(40, 40, 40))
    level = f"Lv {fighter.level}"
    canvas.row([(x + 6, fighter.name), (x + 162 - canvas.font.getlength(level), level)], y + 16)
    canvas.draw.rectangle((x + 6, y + 33, x + 162, y + 47), fill=(205, 205, 205), outline=(40, 40, 40))
    low = fighter.health <= 0.5
    box = (x + 8, y + 35, x + 8 + round(152 * fighter.health), y + 45)
    canvas.bar(box, (210, 40, 40) if low else (40, 170, 60), labels[low])
