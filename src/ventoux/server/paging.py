"""Lists page by page, as OpenAI's clients ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ventoux.errors import InvalidRequestError


@dataclass(frozen=True)
class Paging:
    """Items on a page: if not told, and at most."""

    default: int
    most: int


def page(newest_first: Sequence[dict[str, Any]], query: Mapping[str, str], paging: Paging) -> dict[str, Any]:
    """The page that `order`, `after` and `limit` ask for. Raises InvalidRequestError naming one of them."""
    order, after, limit = query.get("order", "desc"), query.get("after"), query.get("limit", str(paging.default))
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order must be asc or desc.", param="order", code="invalid_value")
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 6 and 1 <= int(limit) <= paging.most):
        raise InvalidRequestError(f"limit must be from 1 to {paging.most}.", param="limit", code="invalid_value")
    ordered = newest_first if order == "desc" else newest_first[::-1]
    ids = [item["id"] for item in ordered]
    if after is not None and after not in ids:
        raise InvalidRequestError("after is the id of nothing in this list.", param="after", code="invalid_value")
    start = 0 if after is None else ids.index(after) + 1
    items = list(ordered[start : start + int(limit)])
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": start + len(items) < len(ordered),
    }
