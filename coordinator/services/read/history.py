"""The history of a run as it is written down: all rows of it, for whoever verifies them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Block, Round, Run
from fedcybgd.coordinator.domain.jobs.measurements import ImportancePayload
from fedcybgd.coordinator.domain.verification import History, KeptVersion, RoundFacts, Versions, VisitFacts
from fedcybgd.coordinator.services.measure import calibration
from fedcybgd.coordinator.services.records import versions
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef


def one_moment(session: Session) -> None:
    """Have all that this transaction reads be of one moment: with SQLite it is."""
    if session.get_bind().dialect.name != "sqlite":
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})


def of(session: Session, run: Run) -> History:
    present = session.execute(select(Block.name, Block.version, Block.digest).where(Block.run_id == run.id)).all()
    found: dict[str, dict[int, KeptVersion]] = {}
    for row in versions.of_run(session, run.id):
        found.setdefault(row.block, {})[row.version] = versions.as_kept(row)
    visits = select(
        Assignment.id, Assignment.round, Assignment.seat, Assignment.state, Assignment.applied, Assignment.train, Assignment.delta_digest
    )
    home = {t.name: b.name for b in queries.blocks_of(session, run.id, tensors=True) for t in b.tensors} if run.spec.corrections else {}
    ranking, measured = _ordered(session, run, found)
    return History(
        run=run.name, rounds_done=run.rounds_done, present={name: (version, digest) for name, version, digest in present},
        versions=found,
        rounds=[RoundFacts(row.number, row.state, len(row.seats), row.cycle, row.blocks)
                for row in session.execute(select(Round.number, Round.state, Round.seats, Round.cycle, Round.blocks).where(Round.run_id == run.id))],
        visits=[VisitFacts(a.id, a.round, a.seat, a.state, a.applied, frozenset(a.train.trained),
                           frozenset(home[name] for name in a.train.corrected), a.delta_digest)
                for a in session.execute(visits.where(Assignment.run_id == run.id).order_by(Assignment.round, Assignment.seat, Assignment.id))],
        ranking=ranking, measured=measured,
    )  # fmt: skip


def _ordered(session: Session, run: Run, found: Versions) -> tuple[list[str], tuple[ImportancePayload, dict[str, float]] | None]:
    """Of a run whose cycles go by importance: how its blocks come, and what it takes to measure that again."""
    spec, blocks = run.spec, queries.blocks_of(session, run.id)
    known = {block.name: block.importance for block in blocks if block.importance is not None}
    payload = calibration.calibration_of(session, run, spec)
    if spec.schedule.order != "importance" or not known or payload is None:
        return [], None
    first = [(block.name, found[block.name][0]) for block in blocks]
    refs = [ShardRef(block=name, version=0, codec=EXACT, digest=row.digest, size=row.size) for name, row in first]
    asked = ImportancePayload(**dict(payload.model_copy(update={"blocks": refs})), visited=run.trained_blocks)
    return calibration.by_importance(blocks), (asked, known)


def of_name(session: Session, name: str) -> tuple[Run, History]:
    """Of one moment: the newest run of that name, and its history."""
    one_moment(session)
    run = queries.run_by_name(session, name)
    return run, of(session, run)
