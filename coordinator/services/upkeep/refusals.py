"""What an agent's report of its readiness changes in runs that are under way: it is passed over, or asked again."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent, Run
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.opening import needed
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.services.agents import offers, readiness
from fedcybgd.coordinator.services.path import ask_again, give_up
from fedcybgd.coordinator.services.records.events import record_at_most
from fedcybgd.shared.contract.agents import RunReadiness
from fedcybgd.shared.contract.versions import SPOKEN, VERSION, Version, read


def report(session: Session, agent_id: str, said: Sequence[RunReadiness], now: datetime, speaks: Version = SPOKEN) -> None:
    """Write down what an agent says of the runs that are open to it; what it says of others is not kept.

    One that speaks an earlier version of the protocol than a run needs is not fit for it, whatever its data are.
    """
    agent = session.get_one(Agent, agent_id)
    # In one order, so that two reports cannot wait for each other.
    for word in sorted(said, key=lambda word: word.run_id):
        run = session.get(Run, word.run_id)
        if run is None or not offers.is_open_to(run, agent):
            continue
        outdated = speaks < (needs := needed(run.spec))
        if outdated:
            word = RunReadiness(run_id=run.id, fits=False, reason="manifest_invalid")
        elif word.fits and word.rows is None and method_of(run.spec).weighs_rows(run.spec):
            word = word.model_copy(update={"fits": False, "reason": readiness.ROWS_HIDDEN})
        row = readiness.row_of(session, run.id, agent_id, now)
        before, news = row.fits, (word.fits, word.reason, word.rows, word.exact)
        if (row.fits, row.reason, row.rows, row.exact) != news:
            (row.fits, row.reason, row.rows, row.exact), row.at = news, now
        if before is False and word.fits:
            signals.let_go(session, agent_id)  # `fedagent check` said so, perhaps, while the daemon's claim refuses the run
        if word.fits and (row.refused or run.waits_for_agents):
            ask_again.ask_again(session, run, agent, row, now)
        elif not word.fits and before is not False:
            setting = "train.label_skew" if run.spec.adapters is None else "method: adapters"
            why = f"it speaks version {speaks} of the protocol, the run needs {needs} ({setting}): update it"
            if speaks == read(None):
                why += f"; or, if it is new, have whatever is on the way leave {VERSION} in its requests"
            _pass_over(session, run, agent, why if outdated else word.reason or "unfit", now)


def _pass_over(session: Session, run: Run, agent: Agent, reason: str, now: datetime) -> None:
    """What is meant for an agent that will not come is anybody's, at once."""
    if run.state != RunState.RUNNING:
        return
    session.flush()
    session.refresh(run, with_for_update={"key_share": True})  # rows of others that refer to it hold nobody up
    text = f"{agent.name} takes no work of run {run.name}: {reason}"
    record_at_most(session, now, "warning", "agent_unfit", text, agent.id, run.id)
    for assignment in queries.pending_in(session, run.id, lock=True):
        if assignment.meant_for == agent.id:
            assignment.meant_for = None
            signals.offer(session, assignment.id)
        give_up.pause_if_hopeless(session, run, assignment, text, now, agent.id)
