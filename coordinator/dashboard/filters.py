"""What people look for among events, as a page's address says it; an empty word is whatever there is."""

from typing import Annotated, Literal

from fastapi import Depends, Query

from fedcybgd.coordinator.services.read.events import Wanted

Word = Annotated[str, Query(max_length=200)]


async def _wanted(run: Word = "", agent: Word = "", level: Literal["info", "warning", "error", ""] = "", code: Word = "") -> Wanted:
    return Wanted(run or None, agent or None, level or None, code or None)


WantedDep = Annotated[Wanted, Depends(_wanted)]
