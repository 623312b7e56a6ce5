"""`/v1/runs`: everything an operator does with runs; and the small files of a run for its agents."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from fedcybgd.coordinator.api.deps import AgentDep, OperatorDep, SettingsDep, StoreDep, ViewerDep, WaitingDep, now
from fedcybgd.coordinator.api.files import blob_response
from fedcybgd.coordinator.api.paging import PAGED, PageDep, paged
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep, WriteDep
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.coordinator.home import signing_secret
from fedcybgd.coordinator.services.agents import offers
from fedcybgd.coordinator.services.operate import anchors, deletion, exports, prepare, provenance, rollback, steer
from fedcybgd.coordinator.services.read import explanation, labels, lists, status
from fedcybgd.shared.contract.explanations import ExplanationView
from fedcybgd.shared.contract.manifests import ExportView
from fedcybgd.shared.contract.operators import AgentRequest, ExportRequested, RollbackRequest, StartRequest
from fedcybgd.shared.contract.provenance import Provenance
from fedcybgd.shared.contract.views import (
    AssignmentView,
    EvaluationView,
    LabelScoresView,
    MemberView,
    RoundView,
    RunSummary,
    RunView,
    TrafficView,
)
from fedcybgd.shared.contract.words import ID, ExportForm, LabelOrder

router = APIRouter(route_class=DatabaseRoute, prefix="/runs", tags=["runs"], responses=errors(401, 403, 422))
viewer, operator = [ViewerDep], [OperatorDep]
ExportId = Annotated[str, Path(pattern=ID)]


@router.post("", summary="Create a run", status_code=201, response_model=RunView, responses=errors(404, 409, 422), dependencies=operator)
def create(body: RunFile, session: WriteDep) -> RunView:
    """A draft from the contents of a run file; its blocks are prepared at once."""
    run = prepare.create(session, body, now())
    return status.run_view(session, run, now())


@router.post(
    "/{run}/anchor",
    summary="Create the anchor of a run",
    status_code=201,
    response_model=RunView,
    responses=errors(404, 409, 422),
    dependencies=operator,
)
def create_anchor(run: str, session: WriteDep) -> RunView:
    """A draft that trains pooler and head alone, as often on as many rows: what the run has to beat. Start it as any run."""
    return status.run_view(session, anchors.create(session, run, now()), now())


@router.get("", summary="List runs", response_model=list[RunSummary], responses={200: PAGED}, dependencies=viewer)
def list_runs(
    session: ReadDep,
    page: PageDep,
    response: Response,
    ended: Annotated[bool | None, Query(description="only those that have ended, or have not; all if left out")] = None,
) -> list[RunSummary]:
    """All runs, newest first, in pages."""
    return paged(response, lists.runs(session, page, ended))


@router.get("/{run}", summary="The status of a run", response_model=RunView, responses=errors(404), dependencies=viewer)
def get(run: str, session: ReadDep) -> RunView:
    """Rounds, blocks, who trains what, held-out metrics, bytes. `run` is an id, or a name for the newest run of that name."""
    return status.run_status(session, run, now())


@router.get(
    "/{run}/explanation",
    summary="Where a run stands, and why",
    response_model=ExplanationView,
    responses=errors(404),
    dependencies=viewer,
)
def explain(run: str, session: ReadDep, waiting: WaitingDep) -> ExplanationView:
    """What it waits for, what is unusual about it, and what helps: each with its evidence. In words, and as codes for programs."""
    return explanation.explain(session, run, waiting.claimants(), now())


@router.get(
    "/{run}/assignments",
    summary="All assignments of a run",
    response_model=list[AssignmentView],
    responses={200: PAGED, **errors(404)},
    dependencies=viewer,
)
def assignments(run: str, session: ReadDep, page: PageDep, response: Response) -> list[AssignmentView]:
    """Every visit so far: who, when, which attempt, what was reported, and what became of it; the oldest first, in pages."""
    return paged(response, lists.assignments(session, run, page))


@router.post("/{run}/start", summary="Start a run", response_model=RunView, responses=errors(404, 409), dependencies=operator)
def start(run: str, session: WriteDep, body: StartRequest | None = None) -> RunView:
    """Open the first round with the agents that are there. The others join when they come; nobody there is refused, unless told."""
    return status.run_view(session, steer.start(session, run, now(), body is not None and body.anyway), now())


@router.get(
    "/{run}/readiness",
    summary="Who is there for a run",
    response_model=list[MemberView],
    responses={200: PAGED, **errors(404)},
    dependencies=viewer,
)
def readiness(run: str, session: ReadDep, page: PageDep, response: Response) -> list[MemberView]:
    """The agents that it is open to, by name, in pages: who is there, who is silent or was never seen, and whose data fit, as they say."""
    return paged(response, lists.members(session, run, page))


@router.post("/{run}/pause", summary="Pause a run", response_model=RunView, responses=errors(404, 409), dependencies=operator)
def pause(run: str, session: WriteDep) -> RunView:
    """Begin no further round; what is being trained is finished and applied."""
    return status.run_view(session, steer.pause(session, run, now()), now())


@router.get(
    "/{run}/rounds",
    summary="The rounds of a run",
    response_model=list[RoundView],
    responses={200: PAGED, **errors(404)},
    dependencies=viewer,
)
def list_rounds(run: str, session: ReadDep, page: PageDep, response: Response) -> list[RoundView]:
    """The newest first, in pages: what was trained, what it did to the real model, and how faithful its emulators were."""
    return paged(response, lists.rounds(session, run, page))


@router.get(
    "/{run}/evaluations",
    summary="The held-out scores of a run",
    response_model=list[EvaluationView],
    responses={200: PAGED, **errors(404)},
    dependencies=viewer,
)
def list_evaluations(run: str, session: ReadDep, page: PageDep, response: Response) -> list[EvaluationView]:
    """Each with its standard errors, and with the bytes, tokens and seconds that the model had cost by then; the oldest first, in pages."""
    return paged(response, lists.evaluations(session, run, page))


@router.get(
    "/{run}/evaluations/{after_rounds}/labels",
    summary="Scores of single labels",
    response_model=LabelScoresView,
    responses=errors(404),
    dependencies=viewer,
)
def label_scores(
    run: str,
    after_rounds: Annotated[int, Path(ge=0, lt=1 << 31)],
    session: ReadDep,
    order: Annotated[LabelOrder, Query(description="worst: the lowest recall first; label: by number")] = "worst",
    skip: Annotated[int, Query(ge=0, le=200_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> LabelScoresView:
    """Recall, precision and F1 of each label in one of the evaluations, a part at a time."""
    return labels.of_evaluation(session, run, after_rounds, order, skip, limit)


@router.get(
    "/{run}/traffic",
    summary="Bytes that crossed the wire",
    response_model=list[TrafficView],
    responses={200: PAGED, **errors(404)},
    dependencies=viewer,
)
def list_traffic(run: str, session: ReadDep, page: PageDep, response: Response) -> list[TrafficView]:
    """By round, agent and kind, in pages."""
    return paged(response, lists.traffic(session, run, page))


@router.post("/{run}/resume", summary="Resume a run", response_model=RunView, responses=errors(404, 409), dependencies=operator)
def resume(run: str, session: WriteDep) -> RunView:
    """Go on with a paused run; failures so far are forgotten."""
    return status.run_view(session, steer.resume(session, run, now()), now())


@router.post("/{run}/cancel", summary="Cancel a run", response_model=RunView, responses=errors(404, 409), dependencies=operator)
def cancel(run: str, session: WriteDep) -> RunView:
    """End a run for good; what was applied stays and can be exported."""
    return status.run_view(session, steer.cancel(session, run, now()), now())


@router.post(
    "/{run}/delete", summary="Delete a run", status_code=204, response_class=Response, responses=errors(404, 409), dependencies=operator,
)  # fmt: skip
def delete(run: str, session: WriteDep) -> Response:
    """All that is written of a run that has ended, and the model that it made; the audit log says that it was there."""
    deletion.delete_run(session, run, now())
    return Response(status_code=204)


@router.post(
    "/{run}/rollback",
    summary="Take rounds back",
    status_code=202,
    response_model=RunView,
    responses=errors(404, 409),
    dependencies=operator,
)
def take_back(run: str, body: RollbackRequest, session: WriteDep) -> RunView:
    """Pause the run, and have its model made again as it was after some rounds, or when it scored best; what came after is undone. Resume it then."""
    return status.run_view(session, rollback.rollback(session, run, body.after_rounds, now()), now())


@router.post(
    "/{run}/without",
    summary="Take an agent's deltas out",
    status_code=202,
    response_model=RunView,
    responses=errors(404, 409),
    dependencies=operator,
)
def without(run: str, body: AgentRequest, session: WriteDep) -> RunView:
    """Pause the run, and have its model made again without an agent's deltas: as far as those of others did not build on them."""
    return status.run_view(session, rollback.without(session, run, body.agent, now()), now())


@router.post(
    "/{run}/exports",
    summary="Export the model",
    status_code=202,
    response_model=ExportRequested,
    responses=errors(404, 409),
    dependencies=operator,
)
def request_export(
    run: str,
    session: WriteDep,
    form: Annotated[ExportForm, Query(description="merged: transformers loads it; peft: adapters alone, which peft loads")] = "merged",
    after_rounds: Annotated[int | None, Query(ge=0, description="as it was after so many; default: as it is")] = None,
    best: Annotated[bool, Query(description="as it was when it scored best")] = False,
) -> ExportRequested:
    """Have the present model, or an older one, joined into the files of a directory that transformers loads, or its adapters into one for peft."""
    return ExportRequested(export_id=exports.request_export(session, run, now(), form, after_rounds, best).id)


@router.get(
    "/{run}/exports/{export_id}",
    summary="The files of an export",
    response_model=ExportView,
    responses=errors(404, 409),
    dependencies=viewer,
)
def get_export(run: str, export_id: ExportId, session: ReadDep) -> ExportView:
    """Whether it is ready, and its files with their digests."""
    found = exports.export_of(session, run, export_id)
    if found is None:
        return ExportView(export_id=export_id, ready=False)
    return ExportView(export_id=export_id, ready=True, after_rounds=found.after_rounds, files=found.files)


@router.get(
    "/{run}/exports/{export_id}/{name}", summary="One file of an export", response_class=Response,
    responses={200: {"description": "The bytes", "content": {"application/octet-stream": {}}}, **errors(404, 409)}, dependencies=operator,
)  # fmt: skip
def export_file(request: Request, run: str, export_id: ExportId, name: str, session: WriteDep, store: StoreDep) -> Response:
    """The bytes of one file; `Range` resumes. Who took a model away stands in the audit log."""
    found = exports.export_of(session, run, export_id)
    for file in found.files if found else []:
        if file.name == name:
            return blob_response(request, store, file.digest)
    raise NotFound(f"the export has no file {name!r} (yet)")


@router.post(
    "/{run}/exports/{export_id}/delete", summary="Delete an export", status_code=204, response_class=Response, responses=errors(404, 409),
    dependencies=operator,
)  # fmt: skip
def delete_export(run: str, export_id: ExportId, session: WriteDep) -> Response:
    """Its files are not there any more; what was fetched of it stays where it is."""
    deletion.delete_export(session, run, export_id, now())
    return Response(status_code=204)


@router.get(
    "/{run}/provenance",
    summary="How the model came to be, signed",
    response_model=Provenance,
    responses=errors(404, 409),
    dependencies=viewer,
)
def get_provenance(
    run: str,
    session: WriteDep,
    settings: SettingsDep,
    export: Annotated[str | None, Query(pattern=ID, description="whose digests it has; made not long ago")] = None,
    names: Annotated[bool, Query(description="of agents, instead of pseudonyms")] = False,
) -> Provenance:
    """From the base model by every delta to the present versions, and to an export: a file that anybody can check."""
    return provenance.of_run(session, run, export, names, signing_secret(settings), now())


@router.get(
    "/{run}/files/{name}", summary="Configuration or tokenizer of a run", response_class=Response,
    responses={200: {"description": "The bytes", "content": {"application/octet-stream": {}}}, **errors(403, 404)},
)  # fmt: skip
def file(request: Request, run: str, name: str, agent: AgentDep, session: ReadDep, store: StoreDep) -> Response:
    """For agents that the run is open to: lets `fedagent check` count tokens before any work is claimed."""
    ref = offers.file_of(session, agent.id, run, name)
    return blob_response(request, store, ref.digest)
