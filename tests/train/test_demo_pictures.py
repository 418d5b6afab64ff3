"""The bundled model's drawings: styles split for good, text inside the page, and labels that name what is drawn."""

import random
from itertools import pairwise

import pytest

from tests.train.test_demo_data import many, without_images
from ventoux.train import demo_rules as rules
from ventoux.train.demo_arithmetic import (
    short_expression,
)
from ventoux.train.demo_images import HELD_OUT, NUM_LABELS, TRAIN, character_labels, font_at, random_style, row_labels
from ventoux.train.demo_pictures import draw_chart, draw_lines


def test_every_part_of_a_style_is_new_in_the_evaluation():
    """Catches a font, height, colour, noise or line spacing that training has seen."""
    for part in ("fonts", "cap", "ink", "paper", "noise", "pitch"):
        assert not set(getattr(TRAIN, part)) & set(getattr(HELD_OUT, part)), part
    rng = random.Random(0)
    assert {random_style(rng, held_out=True).font for _ in range(50)} == set(HELD_OUT.fonts)
    assert {random_style(rng, held_out=False).font for _ in range(200)} == set(TRAIN.fonts)


def test_images_stay_small():
    """Catches text that does not fit: sides are whole merged patches of 28 px, so no image is resized."""
    for task, height in (("image_calc", 140), ("image_read", 140), ("chart", 168), ("receipt", 224), ("game", 196)):
        for item in many(task, 60, held_out=False):
            (image,) = without_images(item)[1]
            assert image.mode == "RGB"
            assert image.width % 28 == image.height % 28 == 0
            assert 56 <= image.width <= 364, task
            assert image.height <= height, task


def test_drawn_text_is_inside():
    """Catches lines cut off at an edge: whatever was drawn has a label in some merged patch."""
    rng = random.Random(2)
    for held_out in (False, True):
        for _ in range(60):
            lines = [short_expression(rng, held_out=held_out).shown for _ in range(rng.randint(1, 3))]
            image = draw_lines(rng, lines, held_out=held_out)
            glyphs = [glyph for line in image.info["noted"].lines for glyph in line]
            assert len(glyphs) == len("".join(lines).replace(" ", ""))
            assert all(0 <= g.left < g.right <= image.width and 8 < g.middle < image.height - 8 for g in glyphs)


def test_labels_name_what_is_drawn():
    """Read from left to right, the rows' labels spell each line; every one of its characters stands under a patch."""
    rng = random.Random(5)
    for _ in range(40):
        lines = [short_expression(rng, held_out=False).shown for _ in range(rng.randint(1, 3))]
        image = draw_lines(rng, lines, held_out=False)
        rows = row_labels(image).reshape(image.height // 28, image.width // 28, -1)
        spelled = ["".join(chr(c + 32) for c in row[:, :4].flatten() if c) for row in rows]
        assert [text for text in spelled if text] == [line.replace(" ", "") for line in lines]
        under = set(character_labels(image).flatten().tolist())
        assert {ord(c) - 32 for line in lines for c in line if c not in " ().*"} <= under
        for row in rows:
            held = [cell for cell in row if cell[0]]
            for one, after in pairwise(held):
                last = [c for c in one[:4] if c][-1]
                assert (after[4], one[5]) == (last, after[0]), "what stands before and after"
            start = [c for cell in held for c in cell[:4] if c][:3]
            assert all([*cell[-3:]] == start for cell in held), "the first characters of the line"


def test_the_largest_bar_is_labelled():
    image = draw_chart(random.Random(0), {"Tea": 20, "Jam": 90, "Oil": 40}, held_out=False)
    bars = {label: right - left for left, _, right, _, label in image.info["noted"].bars}
    assert max(bars, key=lambda label: bars[label]) == 101
    assert character_labels(image).max() < NUM_LABELS


@pytest.mark.parametrize("font", [*TRAIN.fonts, *HELD_OUT.fonts])
def test_drawn_characters_are_in_the_font(font):
    """Catches signs that a font draws as an empty box, and a height that is not what the style says."""
    sized = font_at(font, 16)
    box = bytes(sized.getmask("\uffff"))
    drawn = set("0123456789+-*/()x=." + "".join(rules.LOOKUP_WORDS + rules.SHOPS)) - {" "}
    assert [c for c in drawn if bytes(sized.getmask(c)) == box] == []
    _, top, _, bottom = sized.getbbox("0")
    assert abs(bottom - top - 16) <= 1
