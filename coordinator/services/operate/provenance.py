"""The provenance file of a run: what its database knows of how the model came to be, signed."""

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment, BlockVersion, Job, Model, Run
from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.domain.jobs.registry import EXPORT
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.coordinator.services.operate.exports import RunNotPrepared, export_of
from fedcybgd.coordinator.services.records import instance, signing, versions
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.provenance import (
    FORMAT,
    WITH_ADAPTERS,
    WITH_AVERAGES,
    WITH_CALIBRATION,
    WITH_CORRECTIONS,
    Provenance,
    ProvenanceAdapters,
    ProvenanceAverageTerm,
    ProvenanceBlock,
    ProvenanceCalibration,
    ProvenanceExport,
    ProvenanceFormat,
    ProvenanceModel,
    ProvenanceOuter,
    ProvenanceRun,
    ProvenanceTerm,
    ProvenanceVersion,
    text_of,
)

UNKNOWN = "unknown"


def of_run(session: Session, name: str, export_id: str | None, names: bool, secret: bytes | None, now: datetime) -> Provenance:
    """With the digests of an export, where one is named. Agents have pseudonyms unless `names` is given.

    Raises `SigningKeyLost`, `RunNotPrepared`, `NotFound`.
    """
    run = queries.run_by_name(session, name)
    if not run.prepared:
        raise RunNotPrepared(f"run {run.name} has no model yet")
    key = signing.newest(session)
    if key is None:
        raise signing.SigningKeyLost("this coordinator has no signing key: `fedcoord key renew` makes one")
    blocks, model = queries.blocks_of(session, run.id), session.get_one(Model, run.model_id)
    called = _agents(session, run.id, names)
    rows = versions.of_run(session, run.id)
    unsigned = Provenance(
        format=_format(rows),
        coordinator=instance.identity(session, now), made_at=now.isoformat(timespec="seconds"),
        model=ProvenanceModel(
            name=model.name, files=model.files, blocks=[ProvenanceBlock(name=b.name, digest=b.digest) for b in model.blocks]
        ),
        run=ProvenanceRun(
            id=run.id, name=run.name, run_file=text_of(run.spec if names else _without_names(session, run)), rounds_done=run.rounds_done, blocks=[b.name for b in blocks]
        ),
        versions=[_version(row, called) for row in rows],
        present={b.name: b.version for b in blocks}, export=_export(session, run, export_id), key=key.public, signature="",
    )  # fmt: skip
    return unsigned.model_copy(update={"signature": signing.sign(key, secret, unsigned.signed())})


def _format(rows: Sequence[BlockVersion]) -> ProvenanceFormat:
    """The first in which all can be said: so an earlier checker reads what it can."""
    if any(row.calibration for row in rows):
        return WITH_CALIBRATION
    changes = [row.change for row in rows if row.change is not None]
    if any(term.scale is not None for change in changes for term in change.terms):
        return WITH_CORRECTIONS
    if any(change.beside for change in changes):
        return WITH_ADAPTERS
    return WITH_AVERAGES if any(row.average for row in rows) else FORMAT


def _agents(session: Session, run_id: str, names: bool) -> Callable[[str], str]:
    """Visit → how its agent is called in the file."""
    rows = session.execute(
        select(Assignment.id, Agent.id, Agent.name).join(Agent, Agent.id == Assignment.agent_id).where(Assignment.run_id == run_id)
    )
    known = {visit: name if names else pseudonym(run_id, agent) for visit, agent, name in rows}
    return lambda visit: known.get(visit, UNKNOWN)


def pseudonym(run_id: str, agent_id: str) -> str:
    """The same in all files of a run; who does not know the id, which is random, learns nothing of it."""
    return f"agent-{digest_of(f'{run_id}:{agent_id}'.encode())[:16]}"


def _without_names(session: Session, run: Run) -> RunFile:
    """A run file may say by name who takes part."""
    if run.spec.agents == "all":
        return run.spec
    rows = session.execute(select(Agent.name, Agent.id).where(Agent.name.in_(run.spec.agents))).all()
    ids = {row.name: row.id for row in rows}
    return run.spec.model_copy(update={"agents": [pseudonym(run.id, ids.get(name, name)) for name in run.spec.agents]})


def _version(row: BlockVersion, called: Callable[[str], str]) -> ProvenanceVersion:
    terms = row.change.terms if row.change is not None else []
    return ProvenanceVersion(
        block=row.block, version=row.version, origin=row.origin, digest=row.digest, size=row.size, parent=row.parent, round=row.round,
        aggregate=row.change.aggregate if row.change is not None else None,
        terms=[
            ProvenanceTerm(
                delta=term.digest, weight=repr(term.weight), agent=called(term.visit), visit=term.visit, rows=[repr(weight) for weight in term.rows],
                scale=None if term.scale is None else repr(term.scale),
            )
            for term in terms
        ],
        average=[ProvenanceAverageTerm(version=term.version, rounds=term.rounds) for term in row.average] if row.average else None,
        outer=_outer(row), beside=_beside(row), calibration=_calibration(row),
    )  # fmt: skip


def _outer(row: BlockVersion) -> ProvenanceOuter | None:
    made = row.change.outer if row.change is not None else None
    if made is None or row.velocity is None:
        return None
    return ProvenanceOuter(
        learning_rate=repr(made.learning_rate), momentum=repr(made.momentum), nesterov=made.nesterov, velocity=row.velocity
    )


def _beside(row: BlockVersion) -> ProvenanceAdapters | None:
    said = row.change.beside if row.change is not None else None
    return None if said is None else ProvenanceAdapters(version=said.block.version, scale=repr(said.scale))


def _calibration(row: BlockVersion) -> ProvenanceCalibration | None:
    if (how := row.calibration) is None:
        return None
    return ProvenanceCalibration(weight=how.weight, bias=how.bias, scale=repr(how.scale), shift=[repr(one) for one in how.shift])


def _export(session: Session, run: Run, export_id: str | None) -> ProvenanceExport | None:
    if export_id is None:
        return None
    result, job = export_of(session, run.id, export_id), session.get(Job, export_id)
    if result is None or job is None or job.kind != JobKind.EXPORT or job.payload_json is None:
        raise NotFound(f"export {export_id!r} is not ready, or too old to say what it was made of; make another")
    payload = EXPORT.payload_of(job.payload)
    return ProvenanceExport(
        after_rounds=result.after_rounds, files=result.files, versions={block.block: block.version for block in payload.blocks}
    )
