"""The ledgers of what was sent to whom: exposure before the first byte, traffic after the last."""

from datetime import datetime

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import counts
from fedcybgd.coordinator.db.models import Exposure, Run, Traffic, TrafficTotal
from fedcybgd.coordinator.db.upsert import upsert
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.views import BytesView

TOTALS = select(TrafficTotal.kind, func.sum(TrafficTotal.bytes)).group_by(TrafficTotal.kind)
TOTALS_OF_RUN = TOTALS.where(TrafficTotal.run_id == bindparam("run"))
"""Made once: that costs more than asking."""


def expose(session: Session, agent_id: str, run_id: str, ref: ShardRef, now: datetime) -> None:
    """Write down that an agent gets a block, before it does."""
    values = upsert(session, Exposure).values(
        agent_id=agent_id, run_id=run_id, block=ref.block, version=ref.version, codec=ref.codec, first_at=now
    )
    session.execute(values.on_conflict_do_nothing())


def count(session: Session, run_id: str, round: int, agent_id: str, kind: str, amount: int) -> None:
    """Add bytes that crossed the wire."""
    if amount <= 0:
        return
    counts.count(session, "fedcoord_bytes_total", amount, kind)
    if session.scalar(select(Run.id).where(Run.id == run_id)) is None:
        return  # it was deleted while they crossed
    sent = upsert(session, Traffic).values(run_id=run_id, round=round, agent_id=agent_id, kind=kind, bytes=amount)
    keys = ["run_id", "round", "agent_id", "kind"]
    session.execute(sent.on_conflict_do_update(index_elements=keys, set_={"bytes": Traffic.bytes + amount}))
    total = upsert(session, TrafficTotal).values(run_id=run_id, kind=kind, bytes=amount)
    session.execute(total.on_conflict_do_update(index_elements=["run_id", "kind"], set_={"bytes": TrafficTotal.bytes + amount}))


def totals(session: Session, run_id: str | None = None) -> dict[str, int]:
    """Bytes per kind, of a run or of all."""
    rows = session.execute(TOTALS) if run_id is None else session.execute(TOTALS_OF_RUN, {"run": run_id})
    return {kind: int(total) for kind, total in rows}


def bytes_of(by_kind: dict[str, int]) -> BytesView:
    """Those that went down to agents, and those that came up."""
    return BytesView(down=sum(by_kind.get(kind, 0) for kind in ("shard", "patch", "file")), up=by_kind.get("delta", 0))
