"""The history of a run as it is written down: all rows of it, for whoever verifies them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Block, Round, Run
from fedcybgd.coordinator.domain.verification import History, KeptVersion, RoundFacts, VisitFacts
from fedcybgd.coordinator.services.records import versions


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
    return History(
        run=run.name, rounds_done=run.rounds_done, present={name: (version, digest) for name, version, digest in present},
        versions=found,
        rounds=[RoundFacts(row.number, row.state, len(row.seats))
                for row in session.execute(select(Round.number, Round.state, Round.seats).where(Round.run_id == run.id))],
        visits=[VisitFacts(a.id, a.round, a.seat, a.state, a.applied, frozenset(a.train.trained),
                           frozenset(home[name] for name in a.train.corrected), a.delta_digest)
                for a in session.execute(visits.where(Assignment.run_id == run.id).order_by(Assignment.round, Assignment.seat, Assignment.id))],
    )  # fmt: skip


def of_name(session: Session, name: str) -> tuple[Run, History]:
    """Of one moment: the newest run of that name, and its history."""
    one_moment(session)
    run = queries.run_by_name(session, name)
    return run, of(session, run)
