"""What a transaction counts for the metrics of this process. It counts once it is committed, and a rollback throws it away."""

from sqlalchemy.orm import Session, object_session

Count = tuple[str, float, tuple[str, ...]]
"""A metric, how much to add to it (of a histogram: how many seconds something took), and its labels"""
_KEY = "counted"


def of(session: Session) -> list[Count]:
    """What the transaction of a session has counted so far."""
    found: list[Count] = session.info.setdefault(_KEY, [])
    return found


def count(session: Session, metric: str, value: float = 1.0, *labels: str) -> None:
    of(session).append((metric, value, labels))


def count_of(row: object, metric: str, value: float = 1.0, *labels: str) -> None:
    """What happens to a row; one that is in no session is nobody's."""
    if (session := object_session(row)) is not None:
        count(session, metric, value, *labels)
