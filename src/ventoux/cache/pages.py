"""Which page of the latent cache belongs to whom: a pool with reference counts and a prefix index. No tensors here.

A page is in one of three states, and `check()` holds the sum to the total:

    used     at least one sequence holds it
    cached   nobody holds it, its contents are indexed by hash and may be found again
    free     nobody holds it, its contents mean nothing

Full pages are named by a hash chain: the hash of a page covers its own tokens (and images) and the hash of the page
before it, so equal hashes mean equal prefixes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


def page_hash(parent: bytes, token_ids: Sequence[int], extra: bytes = b"") -> bytes:
    """SHA-256 over the parent's hash, the page's token ids and `extra` (the images that lie in the page)."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes() + extra).digest()


class PagePool:
    """Pages 0 .. num_pages - 1. Never used ones are handed out first, then those that were let go longest ago."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._holders = [0] * num_pages
        self._hash: list[bytes | None] = [None] * num_pages
        self._by_hash: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        # Pages from here on were never used: half a million of them cost nothing, neither here nor as memory.
        self._first_unused = 0

    @property
    def num_idle(self) -> int:
        """Pages that can be taken now: free and cached ones."""
        return len(self._idle) + self.num_pages - self._first_unused

    def take(self, count: int) -> list[int] | None:
        """`count` pages for one holder, or None (and nothing taken) if there are not as many."""
        if count > self.num_idle:
            return None
        unused = min(count, self.num_pages - self._first_unused)
        pages = list(range(self._first_unused, self._first_unused + unused))
        self._first_unused += unused
        pages += [self._idle.popitem(last=False)[0] for _ in range(count - unused)]
        for page in pages:
            self._forget(page)
            self._holders[page] = 1
        return pages

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """The pages of the longest indexed prefix of `hashes`, each now held once more."""
        found: list[int] = []
        for name in hashes:
            page = self._by_hash.get(name)
            if page is None:
                break
            if self._holders[page] == 0:
                del self._idle[page]
            self._holders[page] += 1
            found.append(page)
        return found

    def publish(self, page: int, name: bytes) -> None:
        """Makes a held, fully written page findable. If another page has the name already, that one keeps it."""
        if name not in self._by_hash:
            self._forget(page)
            self._hash[page] = name
            self._by_hash[name] = page

    def release(self, pages: Sequence[int]) -> None:
        """Lets pages go, the last one first, so that the beginning of a prefix outlives its end."""
        for page in reversed(pages):
            self._holders[page] -= 1
            assert self._holders[page] >= 0, f"page {page} was released more often than it was taken"
            if self._holders[page] == 0:
                self._idle[page] = None

    def check(self) -> None:
        """Asserts that every page is accounted for exactly once."""
        idle = set(self._idle) | set(range(self._first_unused, self.num_pages))
        assert all((page in idle) == (holders == 0) for page, holders in enumerate(self._holders))
        assert all(self._hash[page] == name for name, page in self._by_hash.items())
        assert sum(name is not None for name in self._hash) == len(self._by_hash)

    def _forget(self, page: int) -> None:
        name = self._hash[page]
        if name is not None:
            del self._by_hash[name]
            self._hash[page] = None
