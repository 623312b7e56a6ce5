"""Opens the database and runs transactions: SQLite in WAL mode by default, PostgreSQL by its URL."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import DateTime, Dialect, Double, Engine, MetaData, String, TypeDecorator, create_engine, event, make_url, text
from sqlalchemy.orm import DeclarativeBase, Session

from fedcybgd.coordinator.db import counts, lines, promises, signals
from fedcybgd.coordinator.db.signals import Signals
from fedcybgd.coordinator.db.typed import Typed
from fedcybgd.coordinator.errors import CoordinatorError

BESIDE = 10
"""Connections for what is no request: the lanes of jobs, the start, a person's command."""
LISTENING = 1
"""And the one that hears other coordinators, on PostgreSQL"""
ENCODING = {"client_encoding": "utf8"}
LOST_AFTER = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""libpq's settings for a server that says nothing any more: whoever waits for it gets an error, and his thread back."""
TOLD_APART = timedelta(seconds=1)
"""Clocks that differ by less count as the same; and a question that takes longer tells nothing."""
_correction = timedelta()
KEY = String(40)
DIGEST = String(64)
AfterCommit = Callable[[Signals], None]
BeforeCommit = Callable[[Signals, Session], None]
Counted = Callable[[str, float, tuple[str, ...]], None]


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {float: Double, list[str]: Typed(list[str])}  # noqa: RUF012


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, always with its zone: SQLite keeps none of its own."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def machine_now() -> datetime:
    return datetime.now(UTC)


def utcnow() -> datetime:
    """By the clock that counts: that of a database which others use, too, as `Database.agree_on_time` found it, else this machine's."""
    return machine_now() + _correction


def clock_differs() -> timedelta:
    """By how much this machine's clock is behind the one that counts."""
    return _correction


def _nothing() -> None:
    pass


class _OneTransaction(Session):
    """A session of one transaction: what a rollback undoes was not said either."""


@event.listens_for(_OneTransaction, "after_rollback")
def _unsaid(session: Session) -> None:
    session.info.clear()


class Database:
    """Sessions in transactions. What they say by signals is handed to `before_commit` last in the transaction, and to `after_commit` once it is true."""

    def __init__(self, url: str, threads: int = 10) -> None:
        self.url = url
        self.before_commit: BeforeCommit | None = None
        self.after_commit: AfterCommit | None = None
        self.counted: Counted | None = None
        """hears what is counted for metrics, once it is committed"""
        self.before_transaction: Callable[[], None] = _nothing
        self.after_transaction: Callable[[], None] = _nothing
        self.engine = open_engine(url, threads + BESIDE)
        # One writer at a time is SQLite's own rule; a lock hands over at once where its busy handler would sleep.
        self._writer = threading.Lock() if self.engine.dialect.name == "sqlite" else nullcontext()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A transaction that may write: commits at the end of the block, rolls back on an exception."""
        self.before_transaction()
        with self._writer, self._session() as session:
            if self.engine.dialect.name == "sqlite":
                session.connection(execution_options={"begin": "BEGIN IMMEDIATE"})
            yield session
            said, promised = signals.of(session), promises.promised(session)
            if self.before_commit is not None and said != Signals():
                self.before_commit(said, session)
            session.commit()
            counted, told = counts.of(session), lines.of(session)
        self.after_transaction()
        lines.write(told)
        if self.counted is not None:
            for count in counted:
                self.counted(*count)
        if self.after_commit is not None and said != Signals():
            self.after_commit(said)
        if promised:
            promises.keep(self.engine)  # others may write meanwhile

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with self._session() as session:
            yield session

    def ask(self) -> None:
        """Raises what keeps it from answering."""
        with self.reading() as session:
            session.execute(text("SELECT 1"))

    def agree_on_time(self) -> bool:
        """On PostgreSQL the database's clock counts, for all its coordinators: leases are compared by whoever looks. SQLite has but one machine.

        Whether it was asked, and answered at once.
        """
        global _correction
        if self.engine.dialect.name != "postgresql":
            return False
        with self.engine.connect() as connection:
            before = machine_now()
            theirs: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
            took = machine_now() - before
        differs = theirs - (before + took / 2)
        known = timedelta() <= took <= TOLD_APART
        if known and abs(differs - _correction) > TOLD_APART:
            _correction = differs if abs(differs) > TOLD_APART else timedelta()
        return known

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with _OneTransaction(self.engine, expire_on_commit=False) as session:
            try:
                yield session
            except BaseException:
                # A result that was not read to its end, kept alive by the traceback, would hold SQLite's snapshot beyond the
                # rollback, and every later write on this connection would find the database locked. So it is thrown away.
                if self.engine.dialect.name == "sqlite":
                    session.invalidate()
                raise

    def close(self) -> None:
        self.engine.dispose()


class DatabaseEncodingUnusable(CoordinatorError):
    """A database of PostgreSQL that cannot keep every text."""

    code = "database_encoding"


def _check_encoding(connection: Any, _record: Any) -> None:
    if (found := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise DatabaseEncodingUnusable(
            f"the database keeps texts as {found}, which has no place for every name and message; make one with ENCODING 'UTF8' TEMPLATE template0"
        )


def open_engine(url: str, connections: int = BESIDE) -> Engine:
    """An engine with a connection for everybody who may want one at the same time: nobody waits for one that waits for him."""
    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    if not url.startswith("sqlite"):
        given = make_url(url).query
        options = ENCODING | {name: value for name, value in LOST_AFTER.items() if name not in given}
        engine = create_engine(url, pool_size=connections, max_overflow=0, pool_pre_ping=True, connect_args=options, hide_parameters=True)
        event.listen(engine, "connect", _check_encoding)
        return engine
    connect_args = {"check_same_thread": False, "timeout": 30}
    engine = create_engine(url, pool_size=connections, max_overflow=0, connect_args=connect_args, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "invalidate")
    def _let_go(connection: Any, _record: Any, _error: Any) -> None:
        connection.rollback()  # closed with an open transaction, it would keep the write lock for as long as a result lives

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine
