"""Lists in pages, as all routes have them: `after` and `limit` in the query, the place of the next page in a heading."""

from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Response

from fedcybgd.coordinator.db.paging import Listed, Page
from fedcybgd.shared.contract.words import NEXT

T = TypeVar("T")
MOST = 1000
PAGED: dict[str, Any] = {
    "description": "A page of the list",
    "headers": {NEXT: {"description": "`after` for the next page; missing on the last one", "schema": {"type": "string"}}},
}
"""What an answer's description says of it."""


async def _page(
    after: Annotated[str | None, Query(max_length=1000, description=f"where the page begins: {NEXT} of the one before")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST, description="how long it is")] = 100,
) -> Page:
    return Page(after, limit)


PageDep = Annotated[Page, Depends(_page)]


def paged(response: Response, found: Listed[T]) -> list[T]:
    """The rows of a page; the response says where the next one begins."""
    if found.next is not None:
        response.headers[NEXT] = found.next
    return list(found.items)
