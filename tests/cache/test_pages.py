"""The books of the page pool: nothing lost, nothing held twice, whatever the order of events."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ventoux.cache.pages import PagePool, page_hash


def test_taking_more_than_there_is_takes_nothing():
    pool = PagePool(3)
    assert pool.take(4) is None
    assert pool.num_idle == 3


def test_a_released_page_is_found_until_it_is_reused():
    pool = PagePool(2)
    (page,) = pool.take(1)
    name = page_hash(b"", [1, 2, 3])
    pool.publish(page, name)
    pool.release([page])
    assert pool.find([name]) == [page]
    pool.release([page])
    taken = pool.take(2)
    assert set(taken) == {0, 1}
    assert pool.find([name]) == []


def test_a_page_held_by_two_is_idle_only_after_both_let_go():
    pool = PagePool(1)
    pages = pool.take(1)
    pool.publish(pages[0], b"n")
    assert pool.find([b"n"]) == pages
    pool.release(pages)
    assert pool.num_idle == 0
    pool.release(pages)
    assert pool.num_idle == 1


def test_the_end_of_a_prefix_is_reused_before_its_beginning():
    pool = PagePool(3)
    pages = pool.take(3)
    for i, page in enumerate(pages):
        pool.publish(page, bytes([i]))
    pool.release(pages)
    assert pool.take(1) == [pages[2]]
    assert pool.find([bytes([0]), bytes([1]), bytes([2])]) == pages[:2]


def test_find_stops_at_the_first_gap():
    pool = PagePool(3)
    pages = pool.take(3)
    pool.publish(pages[0], b"a")
    pool.publish(pages[2], b"c")
    assert pool.find([b"a", b"b", b"c"]) == [pages[0]]


def test_hashes_differ_by_parent_tokens_and_images():
    names = {page_hash(b"", [1, 2]), page_hash(b"p", [1, 2]), page_hash(b"", [2, 1]), page_hash(b"", [1, 2], b"image")}
    assert len(names) == 4


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "find", "release", "publish"]), st.integers(0, 9)), max_size=60))
def test_books_balance_after_any_sequence_of_events(events):
    pool = PagePool(6)
    held: list[list[int]] = []
    for action, number in events:
        if action == "take":
            pages = pool.take(number % 4)
            held += [pages] if pages else []
        elif action == "find":
            pages = pool.find([bytes([number % 5])])
            held += [pages] if pages else []
        elif action == "release" and held:
            pool.release(held.pop(number % len(held)))
        elif action == "publish" and held:
            pool.publish(held[number % len(held)][0], bytes([number % 5]))
        pool.check()
    assert pool.num_pages - pool.num_idle == len({page for pages in held for page in pages})
