"""How fast a run gets on, by its last rounds."""

from datetime import datetime

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Round, Run
from fedcybgd.coordinator.domain import run_pace
from fedcybgd.shared.contract.views import PaceView

ROUNDS = (
    select(Round.opened_at, Round.closed_at)
    .where(Round.run_id == bindparam("run"))
    .order_by(Round.number.desc())
    .limit(run_pace.LOOKED_AT + 1)
)
"""Made once: that costs more than asking."""


def of_run(session: Session, run: Run, now: datetime) -> PaceView:
    opened = [(row.opened_at, row.closed_at) for row in session.execute(ROUNDS, {"run": run.id})]
    return run_pace.pace(run.state, run.reason, opened, run.rounds_total - run.rounds_done, now)
