"""A lane does one job after another, in the order in which they came."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace

from pydantic import BaseModel

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.outage import reason
from fedcybgd.coordinator.domain.jobs.kinds import STANDS_ASIDE, JobKind
from fedcybgd.coordinator.domain.jobs.lease import Hold
from fedcybgd.coordinator.domain.jobs.mending import LOST
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.jobs.engine import HUNG_S, Engine, EngineAway, NewEngine
from fedcybgd.coordinator.jobs.patience import LaneStopped, Patience
from fedcybgd.coordinator.jobs.taking import Queue, Taken
from fedcybgd.coordinator.services.emulators import mending
from fedcybgd.coordinator.storage import NoRoomYet, StorageAway, StoreFull
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.host import logs
from fedcybgd.shared.host.exhausted import says_exhausted

log = logging.getLogger("fedcoord.jobs")
LOOK_EVERY_S = 5.0
"""Also without a wake: a job may have been written by somebody who woke nobody, or died before he did."""
SHORT_S = 5.0
"""Between two tries of a job for which its machine had nothing to give: others may need less by then"""
MORE_MEMORY = "free some there, lower FEDCOORD_ENGINES, or have jobs done on a larger machine (`fedcoord engine`)"
CANNOT_START = (OSError, EOFError, MemoryError, RuntimeError, BrokenExecutor)
"""What a process or its threads and pipes cannot be made for: no memory, no more files, no more threads, nothing left to be forked from."""


class LaneThread:
    """One thread and one engine; jobs wait in the database and survive both."""

    def __init__(self, name: str, database: Database, new_engine: NewEngine, owner: str, full: Callable[[StoreFull], None]) -> None:
        """`full` hears of a disk that is."""
        self.name, self._new_engine, self._full = name, new_engine, full
        self._work, self._patience = threading.Event(), Patience(f"lane {name}")
        self._queue = Queue(name, database, self._patience, owner)
        self._engine: Engine | None = None
        self._at: tuple[Hold, float] | None = None
        """the job that is under way, and what its engine had used before it"""
        self._under_way: Future[BaseModel] | None = None
        self._still: tuple[Hold, float] | None = None
        self._looks = 0
        self._hung: Hold | None = None
        """the job whose engine was ended because it did nothing"""
        self._thread = threading.Thread(target=self._loop, name=f"lane-{name}", daemon=True)

    def start(self) -> None:
        self._work.set()
        self._thread.start()

    def wake(self) -> None:
        self._work.set()

    def progress(self) -> tuple[Hold | None, float]:
        """The job that is under way, and the processor seconds that it has taken; to be asked by any thread."""
        at, engine = self._at, self._engine
        return (at[0], (engine.cpu_s() if engine else 0.0) - at[1]) if at else (None, 0.0)

    def end_if_it_hangs(self, hold: Hold, cpu_s: float, every_s: float) -> None:
        """To be told every so often what an engine has used: one that uses nothing is ended, and its job is begun again.

        Looks are counted, not hours: time for which this process was stopped as well is not held against the engine.
        """
        moved = self._still != (hold, cpu_s) or self._under_way is None or self._under_way.done()
        self._still, self._looks = (hold, cpu_s), 0 if moved else self._looks + 1
        if self._looks * every_s >= HUNG_S and (engine := self._engine) is not None:
            log.error("the engine of lane %s has used no processor for %.0f s at job %s: it is ended", self.name, HUNG_S, hold.job)
            self._looks, self._hung = 0, hold
            engine.close()

    def stop(self) -> None:
        """Let go at once: a job that is under way is done again."""
        self._patience.end()
        self._work.set()
        if (engine := self._engine) is not None:
            engine.close()

    def _loop(self) -> None:
        try:
            self._start_engine()  # before the first job asks for it
        except LaneStopped:
            return
        except Exception as error:  # which the first job is told
            log.warning("lane %s has no engine yet: %s", self.name, error)
        while not self._patience.ended:
            self._work.wait(LOOK_EVERY_S)
            self._work.clear()
            try:
                while not self._patience.ended and self._one():
                    pass
            except LaneStopped:
                return
            except Exception:
                log.exception("lane %s stumbled; it goes on", self.name)

    def _one(self) -> bool:
        """Take and do one job; whether there was one."""
        job = self._queue.take()
        if job is None:
            return False
        self._at = job.hold, self._engine.cpu_s() if self._engine else 0.0
        try:
            with logs.about(job=job.id, kind=str(job.kind), subject=job.subject):
                self._do(job)
        finally:
            self._at = None
        return True

    def _do(self, job: Taken) -> None:
        try:
            self._queue.complete(job, self._run(job))
        except LaneStopped:
            raise
        except Exception as error:
            self._failed(job, error)

    def _run(self, job: Taken, mended: set[str] | None = None) -> BaseModel:
        """What the engine makes of a job. Blobs that it finds lost are made again on the way, where they can be: each once."""
        mended = set() if mended is None else mended
        while True:
            try:
                return self._run_once(job)
            except CoordinatorError as error:
                digest = error.detail.get("digest")
                if error.code not in LOST or digest is None or digest in mended:
                    raise
                mended.add(digest)
                self._mend(job, error, mended)

    def _mend(self, job: Taken, error: CoordinatorError, mended: set[str]) -> None:
        """Raises the error, with the name of its blob, where that cannot be made again."""
        digest = error.detail["digest"]
        found = self._queue.ask("say that a blob is lost", lambda session: mending.say_lost(session, error, job.subject, utcnow()))
        try:
            if not found.ways:
                raise error
            self._run(replace(job, kind=JobKind.MEND, payload=found), mended)
        except FedError as failed:
            name, advice = self._queue.ask(
                "name a blob", lambda session: (mending.names_of(session, digest), mending.put_back(session, digest))
            )
            raise type(error)(f"{name}: {error.message}; {advice}", digest=digest) from failed
        self._queue.ask("say that a blob is made again", lambda session: mending.done(session, digest, job.subject, utcnow()))

    def _run_once(self, job: Taken) -> BaseModel:
        """Raises what the engine raised, `BrokenExecutor` if it died of the job. A full disk, or what is away, is waited for: that is nobody's failure."""
        what = f"write what job {job.id} ({job.kind}) makes"
        return self._patience.take(what, lambda: self._result(job), lambda error: self._passes(job, error))

    def _passes(self, job: Taken, error: Exception) -> bool:
        if isinstance(error, StoreFull):
            if not isinstance(error, NoRoomYet):
                self._full(error)
            return job.kind not in STANDS_ASIDE
        return isinstance(error, StorageAway | EngineAway)

    def _result(self, job: Taken) -> BaseModel:
        running = self._patience.take("start the engine", lambda: self._begin(job), lambda error: isinstance(error, CANNOT_START))
        self._under_way = running
        return running.result()

    def _begin(self, job: Taken) -> Future[BaseModel]:
        if self._patience.ended:
            raise LaneStopped
        engine = self._engine or self._start_engine()
        try:
            return engine.submit(job.kind, job.payload)
        except BrokenExecutor:
            self._engine = None  # died while it had nothing to do: not this job's fault
            raise

    def _start_engine(self) -> Engine:
        self._engine = engine = self._new_engine()
        if self._patience.ended:  # since it was begun
            engine.close()
            raise LaneStopped
        return engine

    def _failed(self, job: Taken, error: Exception) -> None:
        if self._patience.ended:
            raise LaneStopped
        if isinstance(error, StoreFull):
            self._queue.set_aside(job, error)
            return
        if died := isinstance(error, BrokenExecutor):
            self._engine = None
        if short := not isinstance(error, FedError) and says_exhausted(error):
            self._let_go()
        if isinstance(error, FedError):
            code, message = error.code, error.message
        else:
            hung = died and self._hung == job.hold
            code = "worker_hung" if hung else "worker_died" if died else "engine_exhausted" if short else "engine_failed"
            message = _in_words(code, error)
        log.error(
            "job %s (%s) failed: %s", job.id, job.kind, message, exc_info=None if died or short or isinstance(error, FedError) else error
        )
        self._queue.fail(job, code, message[:4000], died or short)
        if short:
            self._patience.rest(SHORT_S)

    def _let_go(self) -> None:
        """The next job has a new engine: this one may hold what it was made to take."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _in_words(code: str, error: Exception) -> str:
    match code:
        case "worker_hung":
            return f"its engine did nothing for {HUNG_S:.0f} s and was ended"
        case "worker_died":
            return f"its engine died, perhaps ended by the system because memory ran out ({reason(error)}); {MORE_MEMORY}"
        case "engine_exhausted":
            return f"its engine's machine has no memory, threads or open files left ({reason(error)}); {MORE_MEMORY}"
    return reason(error)
