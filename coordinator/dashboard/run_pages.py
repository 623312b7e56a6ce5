"""`/admin/runs`: a run from near: where it stands and why, its block map, curves, timeline, and its files."""

from typing import Annotated

import yaml
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from fedcybgd.coordinator.api.deps import StoreDep, WaitingDep, now
from fedcybgd.coordinator.api.files import blob_response
from fedcybgd.coordinator.api.paging import PageDep
from fedcybgd.coordinator.api.route import ReadDep, WriteDep
from fedcybgd.coordinator.dashboard.browser import PATH, ABrowser, PageRoute, show
from fedcybgd.coordinator.dashboard.scored import X, pictures
from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.paging import Page
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.coordinator.domain.run import RUN
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.coordinator.pictures.gantt import gantt
from fedcybgd.coordinator.services.operate import exports
from fedcybgd.coordinator.services.read import block_map, cards, events, explanation, labels, lists, series, timeline
from fedcybgd.coordinator.services.read.events import Wanted
from fedcybgd.shared.contract.words import ID

router = APIRouter(route_class=PageRoute, prefix=f"{PATH}/runs", include_in_schema=False)
viewer, operator = [Depends(ABrowser())], [Depends(ABrowser(Role.OPERATOR))]
BLOCKS, POINTS, VISITS, ROUNDS, EVENTS, FAILURES, EXPORTS, VERSIONS = 400, 100, 60, 12, 10, 50, 3, 25
After = Annotated[str | None, Query(max_length=1000)]


@router.get("", dependencies=viewer)
def runs(request: Request, session: ReadDep, page: PageDep, ended: bool | None = None) -> Response:
    """All runs, in pages; some of them can be chosen to be compared."""
    return show(request, "runs.html", here="runs", found=lists.runs(session, Page(page.after, 50), ended), ended=ended)


@router.get("/{run}", dependencies=viewer)
def one(run: str, request: Request, session: ReadDep, waiting: WaitingDep, x: X = "rounds", visits: After = None) -> Response:
    """`x`: what the curves are drawn against; `visits`: the place in the timeline that is shown."""
    found, at = queries.run_by_name(session, run), now()
    trained = timeline.of_run(session, found.id, Page(visits, VISITS))
    failures = [
        event
        for level in ("warning", "error")
        for event in events.listed(session, Wanted(run=found.id, level=level), Page(limit=FAILURES)).items
    ]
    card = cards.of_run(session, found, at)
    measured = series.of_run(session, found, POINTS)
    return show(
        request, "run.html", here="runs", run=found, card=card, ended=RUN.is_final(found.state),
        why=explanation.explain(session, found.id, waiting.claimants(), at), series=measured, pictures=pictures([(found.name, measured)], x, card.anchor),
        x=x, worst_labels=labels.worst(session, found),
        blocks=block_map.of_run(session, found, Page(limit=BLOCKS)), visits=trained, timeline=gantt(trained.items, failures, at),
        older=visits is not None, rounds=lists.rounds_of(session, found.id, Page(limit=ROUNDS)).items,
        failures=sorted(failures, key=lambda event: -event.id)[:EVENTS],
        exports=exports.listed(session, found.id, Page(limit=EXPORTS)).items, file=run_file(found.spec),
    )  # fmt: skip


@router.get("/{run}/blocks/{block}", dependencies=viewer)
def block(run: str, block: str, request: Request, session: ReadDep, page: PageDep) -> Response:
    """The versions of a block."""
    found = queries.run_by_name(session, run)
    versions = block_map.versions_of(session, found, block, Page(page.after, VERSIONS))
    return show(request, "block.html", here="runs", run=found, block=block, versions=versions)


@router.get("/{run}/run.yaml", dependencies=viewer)
def file(run: str, session: ReadDep) -> Response:
    """The run file as it counts, without what is the default anyway."""
    found = queries.run_by_name(session, run)
    headings = {"Content-Disposition": f'attachment; filename="{found.name}.yaml"'}
    return Response(run_file(found.spec), media_type="application/yaml", headers=headings)


@router.get("/{run}/exports/{export_id}/{name}", dependencies=operator)
def export_file(
    request: Request, run: str, export_id: Annotated[str, Path(pattern=ID)], name: str, session: WriteDep, store: StoreDep
) -> Response:
    """One file of an export. Who took a model away stands in the audit log."""
    made = exports.export_of(session, run, export_id)
    for one in made.files if made else []:
        if one.name == name:
            answer = blob_response(request, store, one.digest)
            answer.headers["Content-Disposition"] = f'attachment; filename="{one.name}"'
            return answer
    raise NotFound(f"the export has no file {name!r} (yet)")


def run_file(spec: RunFile) -> str:
    return yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
