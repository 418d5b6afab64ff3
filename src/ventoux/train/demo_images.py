"""Paper, ink, fonts and noise for the bundled model's drawings, and labels of what stands where in them.

Every choice of style belongs to one split: fonts, heights, colours, noise and line spacing of the evaluation are never
drawn in training. Text stands anywhere on the page.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from ventoux.errors import ConfigError

MERGED_PATCH = 28  # pixels; sides that are multiples of it reach the vision tower without being resized
PATCH = 14
MAX_WIDTH = 308
Color = tuple[int, int, int]
# Labels below 96 are printable ASCII less 32; 0 is nothing. The rest is what else there is to see.
SIGNS = {"×": 96, "÷": 97}
OUR_HIGH, OUR_LOW, FOE, LARGEST, BAR = 98, 99, 100, 101, 102
NUM_LABELS = 103
MAX_IN_ROW, MAX_PLACE = 4, 31  # characters labelled per merged patch, highest place in a line that is told apart
NUM_NAMING = 3  # characters that tell the lines of charts and receipts apart
# Per merged patch: the characters in it, those before and after them in their line, the line, the place in it, and the
# line's first characters, so that an amount is found by its name in one step of attention.
ROW_LABELS = MAX_IN_ROW + 4 + NUM_NAMING


@dataclass(frozen=True)
class Choices:
    """What one split draws styles from. `cap`: height of a digit in pixels; `noise`: standard deviation in 255ths."""

    fonts: tuple[str, ...]  # "" is Pillow's own, the others lie in matplotlib
    cap: tuple[int, ...]
    ink: tuple[Color, ...]
    paper: tuple[Color, ...]
    noise: tuple[int, ...]
    pitch: tuple[int, ...]  # from line to line; at least a merged patch, so that none holds two lines


TRAIN = Choices(
    ("", "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneralBol"),
    (14, 15, 17, 18),
    ((0, 0, 0), (30, 30, 30), (20, 20, 110), (110, 15, 15), (10, 80, 20), (70, 20, 90)),
    ((255, 255, 255), (255, 250, 225), (230, 240, 255), (232, 250, 232), (215, 215, 215)),
    (0, 0, 4, 8),
    (28, 30, 33, 36),
)
HELD_OUT = Choices(
    ("DejaVuSerif-Bold", "DejaVuSansMono-Bold"),
    (16,),
    ((15, 15, 60), (60, 10, 50), (0, 60, 60)),
    ((245, 245, 245), (250, 240, 240), (240, 255, 250)),
    (2, 6),
    (29, 32),
)


@dataclass(frozen=True)
class Style:
    font: str
    cap: int
    ink: Color
    paper: Color
    noise: int
    pitch: int


@dataclass(frozen=True)
class Glyph:
    """A character as drawn: its left and right edge and the middle of its height, in pixels."""

    character: str
    left: float
    right: float
    middle: float

    @property
    def label(self) -> int:
        return SIGNS.get(self.character) or ord(self.character) - 32


@dataclass
class Noted:
    """What was drawn where; `bars` are (left, top, right, bottom, label)."""

    lines: list[list[Glyph]] = field(default_factory=list)
    bars: list[tuple[int, int, int, int, int]] = field(default_factory=list)


@cache
def font_at(name: str, cap: int) -> FreeTypeFont:
    """The font at the size that makes its zero `cap` pixels high. Raises ConfigError without matplotlib."""
    _, top, _, bottom = _sized(name, 200).getbbox("0")
    return _sized(name, round(200 * cap / (bottom - top)))


def _sized(name: str, size: int) -> FreeTypeFont:
    if name:
        try:
            from matplotlib import get_data_path
        except ImportError as error:
            raise ConfigError("The drawings need the fonts of matplotlib: pip install 'ventoux[demo]'.") from error
        return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)
    font = ImageFont.load_default(size)
    assert isinstance(font, FreeTypeFont), "Pillow was built without FreeType"
    return font


def random_style(rng: random.Random, *, held_out: bool) -> Style:
    c = HELD_OUT if held_out else TRAIN
    return Style(
        font=rng.choice(c.fonts),
        cap=rng.choice(c.cap),
        ink=rng.choice(c.ink),
        paper=rng.choice(c.paper),
        noise=rng.choice(c.noise),
        pitch=rng.choice(c.pitch),
    )


def whole_patches(pixels: float) -> int:
    """The next multiple of a merged patch."""
    return math.ceil(pixels / MERGED_PATCH) * MERGED_PATCH


class Canvas:
    """A page in one style that notes what is drawn on it."""

    def __init__(self, style: Style, width: float, height: float) -> None:
        self.style = style
        self.font = font_at(style.font, style.cap)
        self.image = Image.new("RGB", (whole_patches(width), whole_patches(height)), style.paper)
        self.draw = ImageDraw.Draw(self.image)
        self.noted = Noted()

    def text(self, left: float, middle: float, text: str) -> float:
        """Draws text from `left` on around `middle`; returns where it ends."""
        start = (left, middle + self.style.cap / 2)
        self.draw.text(start, text, fill=self.style.ink, font=self.font, anchor="ls")
        edges = [left + self.font.getlength(text[:i]) for i in range(len(text) + 1)]
        glyphs = [Glyph(c, a, b, middle) for c, a, b in zip(text, edges, edges[1:], strict=False) if c != " "]
        self.noted.lines.append(glyphs)
        return edges[-1]

    def row(self, pieces: Sequence[tuple[float, str]], middle: float) -> None:
        """Pieces of one line, each from its own left edge on."""
        first = len(self.noted.lines)
        for left, text in pieces:
            self.text(left, middle, text)
        self.noted.lines[first:] = [[glyph for line in self.noted.lines[first:] for glyph in line]]

    def bar(self, box: tuple[int, int, int, int], color: Color, label: int) -> None:
        self.draw.rectangle(box, fill=color)
        self.noted.bars.append((*box, label))

    def finished(self, rng: random.Random) -> Image.Image:
        """The image with its noise; `info["noted"]` says what is where."""
        image = self.image
        if self.style.noise:
            noise = np.random.default_rng(rng.getrandbits(32)).normal(0, self.style.noise, (*image.size[::-1], 1))
            image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
        image.info["noted"] = self.noted
        return image


def character_labels(image: Image.Image) -> np.ndarray:
    """What stands under both halves of every 14-pixel patch [rows * cols, 2].

    Halves, since a character of 14 to 18 pixels height is about 11 wide: a whole patch may hold parts of three.
    """
    rows, cols = image.height // PATCH, image.width // PATCH
    labels = np.zeros((rows, cols, 2), dtype=np.int64)
    noted: Noted = image.info["noted"]
    centres = np.arange(rows) * PATCH + PATCH / 2
    for left, top, right, bottom, label in noted.bars:
        inside = (centres > top - 3) & (centres < bottom + 3)
        for half in range(math.ceil(left / 7 - 0.5), min(math.ceil(right / 7 - 0.5), 2 * cols)):
            labels[inside, half // 2, half % 2] = label
    for glyph in (glyph for line in noted.lines for glyph in line):
        inside = abs(centres - glyph.middle) < 10
        for half in range(math.ceil(glyph.left / 7 - 0.5), math.ceil(glyph.right / 7 - 0.5)):
            if half < 2 * cols:
                labels[inside, half // 2, half % 2] = glyph.label
    return labels.reshape(-1, 2)


def row_labels(image: Image.Image) -> np.ndarray:
    """What each merged patch holds of the line whose middle runs through it [rows * cols, ROW_LABELS].

    That is what the decoder gets to see as one token: its characters in their order, and what it takes to find the
    next one from those that were read already.
    """
    rows, cols = image.height // MERGED_PATCH, image.width // MERGED_PATCH
    labels = np.zeros((rows, cols, ROW_LABELS), dtype=np.int64)
    noted: Noted = image.info["noted"]
    for left, top, right, bottom, label in noted.bars:
        row = min((top + bottom) // 2 // MERGED_PATCH, rows - 1)
        for col in range(left // MERGED_PATCH, min(right // MERGED_PATCH + 1, cols)):
            labels[row, col, 0] = label
    for number, line in enumerate(noted.lines):
        seen: dict[tuple[int, int], list[int]] = {}
        naming = [glyph.label for glyph in line[:NUM_NAMING]]
        naming += [0] * (NUM_NAMING - len(naming))
        for place, glyph in enumerate(line):
            cell = (int(glyph.middle) // MERGED_PATCH, int(glyph.left + glyph.right) // 2 // MERGED_PATCH)
            seen.setdefault(cell, []).append(place)
        for (row, col), places in seen.items():
            if row >= rows or col >= cols:
                continue
            first, last = places[0], places[-1]
            held = [line[place].label for place in places[:MAX_IN_ROW]]
            around = [line[first - 1].label if first else 0, line[last + 1].label if last + 1 < len(line) else 0]
            held += [0] * (MAX_IN_ROW - len(held))
            labels[row, col] = [*held, *around, min(number, MAX_PLACE) + 1, min(first, MAX_PLACE) + 1, *naming]
    return labels.reshape(-1, ROW_LABELS)
