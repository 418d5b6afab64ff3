from hypothesis import given
from hypothesis import strategies as st

from ventoux.text.detokenizer import Detokenizer, StopStrings

# Control tokens, single bytes (so that characters break anywhere) and longer tokens.
TOKEN_IDS = st.one_of(st.integers(0, 40), st.integers(1000, 1255), st.integers(1256, 3047))


@given(ids=st.lists(TOKEN_IDS, max_size=60))
def test_pieces_make_up_decode(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(i) for i in ids]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids)


@given(text=st.text(max_size=30))
def test_no_half_characters(tokenizer, text):
    """Text without U+FFFD must never show one on the way, as it does when tokens are decoded one by one."""
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(i) for i in tokenizer.encode_text(text.replace("\0", " "))]
    assert text.count("\ufffd") == "".join(pieces).count("\ufffd")
    assert "".join(pieces) == text.replace("\0", " ") and detokenizer.flush() == ""


def test_broken_end_is_shown(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(1000 + byte) for byte in "😀".encode()[:3]] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push(1000 + 65) == "A"


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


@given(stops=STOPS, pieces=st.lists(st.text("abc", max_size=5), max_size=8), include=st.booleans())
def test_any_split_stops_at_the_same_place(stops, pieces, include):
    """Compared with the plain definition: the shortest beginning of the text that ends with a stop string."""
    text = "".join(pieces)
    ends = [n for n in range(len(text) + 1) if text[:n].endswith(tuple(stops))]
    expected = text
    if ends:
        stop = max((s for s in stops if text[: ends[0]].endswith(s)), key=len)
        expected = text[: ends[0]] if include else text[: ends[0] - len(stop)]
    matcher = StopStrings(stops, include)
    sent = ""
    for n, piece in enumerate(pieces):
        safe, stopped = matcher.feed(piece)
        sent += safe
        assert expected.startswith(sent)
        assert stopped == bool(ends and ends[0] <= len("".join(pieces[: n + 1])))
    assert sent + matcher.flush() == expected


def test_holds_back_no_more_than_needed():
    """Holding back the length of the longest stop would delay every stream by that much."""
    matcher = StopStrings(["</answer>"])
    assert matcher.feed("one < two") == ("one < two", False)
    assert matcher.feed("x</ans") == ("x", False)
    assert matcher.feed("!") == ("</ans!", False)
    assert matcher.feed("</answer> more") == ("", True)
    assert matcher.feed("more") == ("", True) and matcher.stopped_by == "</answer>"
