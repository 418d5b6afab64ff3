"""A tokenizer of the real kind, small: the first 2048 ranks, all control tokens at their real ids."""

import hypothesis
import pytest

from ventoux.text.tekken import write_tekken
from ventoux.text.tokenizer import Tokenizer

# Examples differ in cost, and a busy machine is no bug.
hypothesis.settings.register_profile("text", deadline=None)
hypothesis.settings.load_profile("text")


@pytest.fixture(scope="session")
def tekken_path(tmp_path_factory):
    return write_tekken(tmp_path_factory.mktemp("tokenizer"), num_ranks=2048)


@pytest.fixture(scope="session")
def tokenizer(tekken_path):
    return Tokenizer.from_file(tekken_path)


@pytest.fixture
def render(tokenizer):
    """A prompt as text with the names of its control tokens."""

    def render(ids):
        parts, plain = [], []
        for token_id in [*ids, None]:
            if token_id is not None and not tokenizer.is_control(token_id):
                plain.append(token_id)
                continue
            parts.append(tokenizer.decode(plain))
            plain = []
            if token_id is not None:
                parts.append(tokenizer.token_text(token_id))
        return "".join(parts)

    return render
