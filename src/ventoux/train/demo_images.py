"""Drawings for the bundled model's image tasks: lines of text, and a small battle screen."""

import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from ventoux.train.demo_arithmetic import in_split
from ventoux.train.demo_words import GAME_ACTIONS

MERGED_PATCH = 28  # pixels; sides that are multiples of it reach the vision tower without being resized
MAX_WIDTH, MAX_HEIGHT = 280, 168
_SIZES = (20, 21, 22, 23, 24, 25)  # Pillow's built-in font: capital letters are 0.7 of this, 14 to 18 px
_INKS = ((0, 0, 0), (30, 30, 30), (20, 20, 110), (110, 15, 15), (10, 80, 20), (70, 20, 90))
_PAPERS = ((255, 255, 255), (245, 245, 245), (255, 250, 225), (230, 240, 255), (232, 250, 232))


@dataclass(frozen=True)
class Style:
    size: int
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]


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
        draw.text((left, middle), line, fill=style.ink, font=font, anchor="lm")
    return image


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
        _draw_box(draw, fighter, x + rng.randint(-2, 2), y + rng.randint(-1, 1))
    draw.rectangle((0, 112, MAX_WIDTH - 1, MAX_HEIGHT - 1), fill=(250, 250, 250), outline=(40, 40, 40))
    for place, action in enumerate(GAME_ACTIONS):
        position = (14 + 140 * (place % 2), 126 + MERGED_PATCH * (place // 2))
        draw.text(position, action, fill=(20, 20, 20), font=_font(20), anchor="lm")
    return image


def _draw_box(draw: ImageDraw.ImageDraw, fighter: Fighter, x: int, y: int) -> None:
    draw.rectangle((x, y, x + 150, y + 49), fill=(255, 255, 250), outline=(40, 40, 40))
    draw.text((x + 6, y + 14), fighter.name, fill=(20, 20, 20), font=_font(20), anchor="lm")
    draw.text((x + 144, y + 14), f"Lv {fighter.level}", fill=(20, 20, 20), font=_font(20), anchor="rm")
    draw.rectangle((x + 6, y + 30, x + 144, y + 43), fill=(205, 205, 205), outline=(40, 40, 40))
    color = (40, 170, 60) if fighter.health > 0.5 else (210, 40, 40)
    draw.rectangle((x + 8, y + 32, x + 8 + round(134 * fighter.health), y + 41), fill=color)
