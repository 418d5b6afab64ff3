"""Drawings for the bundled model's image tasks: lines of text, and a small battle screen."""

import math
import random
import string
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from ventoux.train.demo_arithmetic import in_split
from ventoux.train.demo_words import GAME_ACTIONS

MERGED_PATCH = 28  # pixels; sides that are multiples of it reach the vision tower without being resized
PATCH = 14
MAX_WIDTH, MAX_HEIGHT = 280, 168
ARITHMETIC = "0123456789+-*/()x=."
_SIZES = (20, 21, 22, 23, 24, 25)  # Pillow's built-in font: capital letters are 0.7 of this, 14 to 18 px
_INKS = ((0, 0, 0), (30, 30, 30), (20, 20, 110), (110, 15, 15), (10, 80, 20), (70, 20, 90))
_PAPERS = ((255, 255, 255), (245, 245, 245), (255, 250, 225), (230, 240, 255), (232, 250, 232))


@dataclass(frozen=True)
class Style:
    size: int
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]


@dataclass(frozen=True)
class Glyph:
    """A character as drawn: its left and right edge and the middle of its height, in pixels."""

    character: str
    left: float
    right: float
    middle: float


@cache
def _font(size: int) -> FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, FreeTypeFont), "Pillow was built without FreeType"
    return font


def random_style(rng: random.Random, *, held_out: bool) -> Style:
    """Size and colours; a tenth of the combinations is never seen in training."""
    while True:
        style = Style(rng.choice(_SIZES), rng.choice(_INKS), rng.choice(_PAPERS))
        if in_split(repr(style), held_out):
            return style


def draw_lines(rng: random.Random, lines: list[str], *, held_out: bool) -> Image.Image:
    """Each line in a row of 28 px; RGB, height 28 x lines, width a multiple of 28, at most 280 px for short lines."""
    style = random_style(rng, held_out=held_out)
    font = _font(style.size)
    needed = max(round(font.getlength(line)) for line in lines) + 6
    width = max(84, -(-needed // MERGED_PATCH) * MERGED_PATCH)
    if rng.random() < 0.25:
        width = max(width, min(MAX_WIDTH, width + MERGED_PATCH))
    image = Image.new("RGB", (width, MERGED_PATCH * len(lines)), style.paper)
    draw = ImageDraw.Draw(image)
    left = 3 + rng.randrange(min(24, width - needed) + 1)
    for row, line in enumerate(lines):
        middle = MERGED_PATCH * row + MERGED_PATCH // 2 + rng.randint(-1, 1)
        _write(image, draw, (left, middle), line, style.ink, font)
    return image


def _write(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    start: tuple[int, int],
    text: str,
    ink: tuple[int, int, int],
    font: FreeTypeFont,
) -> None:
    """Draws text from `start` (left, middle) on, and notes in `image.info` where each character came to stand."""
    left, middle = start
    draw.text(start, text, fill=ink, font=font, anchor="lm")
    edges = [left + font.getlength(text[:i]) for i in range(len(text) + 1)]
    noted = [Glyph(c, a, b, middle) for c, a, b in zip(text, edges, edges[1:], strict=False) if c != " "]
    image.info.setdefault("glyphs", []).extend(noted)


def character_labels(image: Image.Image) -> np.ndarray:
    """What stands under both halves of every 14-pixel patch [rows * cols, 2]: 0 for nothing, else its ASCII code - 32.

    Halves, since a character of 20 pixels height is about 11 wide: a whole patch may hold parts of three.
    """
    rows, cols = image.height // PATCH, image.width // PATCH
    labels = np.zeros((rows, cols, 2), dtype=np.int64)
    for glyph in image.info.get("glyphs", ()):
        for half in range(math.ceil(glyph.left / 7 - 0.5), math.ceil(glyph.right / 7 - 0.5)):
            for row in range(rows):
                if abs(PATCH * row + PATCH / 2 - glyph.middle) < 10 and half < 2 * cols:
                    labels[row, half // 2, half % 2] = ord(glyph.character) - 32
    return labels.reshape(-1, 2)


def random_text_image(rng: random.Random) -> Image.Image:
    """One to three lines of random characters, mostly those of arithmetic: for learning characters alone."""
    lines = []
    for _ in range(rng.randint(1, 3)):
        characters = ARITHMETIC if rng.random() < 0.6 else string.ascii_letters + string.digits
        line = "".join(rng.choice(characters) for _ in range(rng.randint(3, 16)))
        lines.append(" ".join(line[i : i + 3] for i in range(0, len(line), 3)) if rng.random() < 0.5 else line)
    return draw_lines(rng, lines, held_out=False)


@dataclass(frozen=True)
class Fighter:
    name: str
    level: int
    health: float  # 0 to 1


def draw_battle(rng: random.Random, ours: Fighter, foe: Fighter) -> Image.Image:
    """A 280 x 168 screen: the foe's box above left, ours below right, and the menu of actions at the bottom."""
    tint = rng.choice(((225, 240, 225), (225, 232, 245), (245, 238, 220)))
    image = Image.new("RGB", (MAX_WIDTH, MAX_HEIGHT), tint)
    draw = ImageDraw.Draw(image)
    for fighter, (x, y) in ((foe, (4, 3)), (ours, (126, 59))):
        _draw_box(image, draw, fighter, x + rng.randint(-2, 2), y + rng.randint(-1, 1))
    draw.rectangle((0, 112, MAX_WIDTH - 1, MAX_HEIGHT - 1), fill=(250, 250, 250), outline=(40, 40, 40))
    for place, action in enumerate(GAME_ACTIONS):
        position = (14 + 140 * (place % 2), 126 + MERGED_PATCH * (place // 2))
        _write(image, draw, position, action, (20, 20, 20), _font(20))
    return image


def _draw_box(image: Image.Image, draw: ImageDraw.ImageDraw, fighter: Fighter, x: int, y: int) -> None:
    draw.rectangle((x, y, x + 150, y + 49), fill=(255, 255, 250), outline=(40, 40, 40))
    level, font = f"Lv {fighter.level}", _font(20)
    _write(image, draw, (x + 6, y + 14), fighter.name, (20, 20, 20), font)
    _write(image, draw, (x + 144 - round(font.getlength(level)), y + 14), level, (20, 20, 20), font)
    draw.rectangle((x + 6, y + 30, x + 144, y + 43), fill=(205, 205, 205), outline=(40, 40, 40))
    color = (40, 170, 60) if fighter.health > 0.5 else (210, 40, 40)
    draw.rectangle((x + 8, y + 32, x + 8 + round(134 * fighter.health), y + 41), fill=color)
