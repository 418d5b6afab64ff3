"""Long input for the bundled model: pages of sentences about nothing, and keys hidden among them."""

import random

from ventoux.train.demo_arithmetic import in_split
from ventoux.train.demo_words import ALPHABET

TOKENS_PER_SENTENCE = 13.4  # measured over many sentences with the bundled tokenizer
PLACES = (
    "Paris", "London", "Berlin", "Madrid", "Rome", "Lisbon", "Vienna", "Prague", "Oslo", "Dublin", "Athens", "Cairo",
    "Tokyo", "Delhi", "Lima", "Boston", "Chicago", "Dallas", "Denver", "Miami", "Seattle", "Toronto", "Sydney", "Lyon",
    "Milan", "Geneva", "Hamburg", "Munich", "Moscow", "Warsaw",
)  # fmt: skip
_LETTERS = {choices[0][0]: choices for choices in ALPHABET}
_SENTENCES = ("e f g d e n", "t b c d t q r", "a k l i t g", "w t q p y o", "e j c h m n o", "t u v y a b g")


def sentence(rng: random.Random) -> str:
    """About a dozen tokens; never the word "key", and no digits."""
    while True:
        words = [rng.choice(_LETTERS[letter]) for letter in rng.choice(_SENTENCES).split()]
        text = " ".join(words)
        if "key" not in words:
            return text[0].upper() + text[1:] + "."


def key(rng: random.Random, *, held_out: bool) -> str:
    while True:
        digits = f"{rng.randrange(100000):05}"
        if in_split(digits, held_out):
            return digits


def hide(rng: random.Random, num_sentences: int, keys: dict[str, str]) -> str:
    """Sentences with one more for every key, anywhere among them."""
    text = [sentence(rng) for _ in range(num_sentences)]
    for place, digits in keys.items():
        text.insert(rng.randrange(len(text) + 1), f"The key of {place} is {digits}.")
    return " ".join(text)


def keys(rng: random.Random, count: int, *, held_out: bool) -> dict[str, str]:
    return {place: key(rng, held_out=held_out) for place in rng.sample(PLACES, count)}
