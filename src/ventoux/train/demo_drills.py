"""Drills: short exercises without a question, for what the bundled model needs everywhere."""

import random

from ventoux.text.tokenizer import Tokenizer
from ventoux.train.demo_arithmetic import column

Drill = tuple[list[int], list[bool]]  # token ids, and which of them the model must produce


def _facts(rng: random.Random) -> str:
    """Steps of sums (see demo_arithmetic), each on its own: what they look up has to be learned by heart."""
    steps = []
    for _ in range(rng.randint(4, 10)):
        operator = rng.choice("+-**")
        left, right, result = rng.choice((("cba", "zyx", "rqp"), ("rqp", "mlk", "vut")))
        place = rng.randrange(3)
        carry = rng.randrange(9) if operator == "*" else rng.randrange(2)
        x, y = f"{left[place]}{rng.randrange(10)}", f"{right[2 if operator == '*' else place]}{rng.randrange(10)}"
        steps.append(column(operator, x, y, carry, result[place])[0])
    return " " + " ".join(steps)


def lookups(tokenizer: Tokenizer, rng: random.Random) -> Drill:
    """Names with values, then the same in another order, with the loss on the values of the second time.

    Names share tokens, so that one must be known as a whole; other tokens may lie between the pairs. Nothing is to be
    learned by heart here: it is what finding a key among others, or a price by its name, is made of.
    """
    digits = tokenizer.encode_text("0123456789")
    text = range(tokenizer.num_special_tokens, tokenizer.vocab_size)
    pool, link, end = rng.sample(text, 6), rng.sample(text, rng.randint(0, 2)), rng.choice(text)
    size = rng.randint(1, 3)  # the same for all: none may end as another does
    names = list({tuple(rng.choices(pool, k=size)): None for _ in range(rng.randint(2, 10))})
    values = {name: rng.choices(digits, k=rng.randint(1, 5)) for name in names}
    between = rng.choice((0, 0, 8, 40))
    ids, is_target = [tokenizer.bos_id], [False]
    for asked in (False, True):
        for name in rng.sample(names, len(names)):
            value = [*values[name], end]
            ids += [*name, *link, *value]
            is_target += [False] * (len(name) + len(link)) + [asked] * len(value)
            if between and not asked:
                filler = rng.choices(text, k=rng.randrange(between))
                ids += filler
                is_target += [False] * len(filler)
    return ids, is_target


def drill(tokenizer: Tokenizer, rng: random.Random) -> Drill:
    """A random piece written several times over, with the loss on the repetitions.

    Nothing but copying helps here: it polishes the induction circuit that training starts with (see start.py). Some
    pieces are lists of quotients: digits that repeat with a period are the hardest to copy. Three drills in ten are
    steps of sums instead, and three are names and values to look up.
    """
    kind, length = rng.random(), rng.randint(3, 20)
    if kind > 0.7:
        ids = [tokenizer.bos_id, *tokenizer.encode_text(_facts(rng))]
        return ids, [i > 0 for i in range(len(ids))]
    if kind > 0.4:
        return lookups(tokenizer, rng)
    if kind < 0.15:
        quotients = [rng.randrange(-99, 1000) / rng.randrange(1, 100) for _ in range(rng.randint(1, 2))]
        piece = tokenizer.encode_text("".join(f" = {q}." for q in quotients))
    elif kind < 0.3:
        symbols = tokenizer.encode_text("0123456789+-*/() .=,")
        symbols = rng.sample(symbols, rng.randint(3, len(symbols)))  # few of them repeat often, as digits do
        piece = [rng.choice(symbols) for _ in range(length)]
    else:
        piece = [rng.randrange(tokenizer.num_special_tokens, tokenizer.vocab_size) for _ in range(length)]
    ids = [tokenizer.bos_id] + piece * rng.randint(2, 4)
    return ids, [i > len(piece) for i in range(len(ids))]
