"""Verifies a run, on a home or on a backup of one: every row, the audit log, every digest, every version made again of parent and deltas."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.domain.verification import History, KeptVersion, check_rows
from fedcybgd.coordinator.home import DatabaseUnusable, existing_database, understood
from fedcybgd.coordinator.jobs import recomputing
from fedcybgd.coordinator.places import place_of
from fedcybgd.coordinator.services.operate.exports import RunNotPrepared
from fedcybgd.coordinator.services.read import history as histories
from fedcybgd.coordinator.services.records import audit
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import BlobDamaged, BlobMissing, EngineStore, Place, open_overlay, open_place
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.sizes import counted


@dataclass(frozen=True)
class Verified:
    """What was found to be as it is written."""

    versions: int
    made_again: int
    """of these, those that were made again of their parents and deltas, or of the versions that they are the average of; the others were
    taken as they are"""
    deltas: int
    rounds: int
    acts: int
    """entries of the audit log, which is the coordinator's and not of the run alone"""
    last_hash: str
    """of the audit log: to be compared with one that was kept elsewhere"""

    def __str__(self) -> str:
        blocks = f"{counted(self.versions, 'version')}, {self.made_again} of them made again of {counted(self.deltas, 'delta')} in {counted(self.rounds, 'round')}"
        acts = f"the {self.acts} acts of the audit log are as they were written, the last with hash {self.last_hash}"
        return f"the model is what the log says: {blocks}; {acts}"


def verify(settings: Settings, name: str, quick: bool = False) -> Verified:
    """Nothing is changed, and a coordinator may work on the home meanwhile. Raises the first thing that is wrong, by name.

    `quick`: no version is made again; rows and digests are looked at.
    """
    database = existing_database(settings)
    with contextlib.closing(database), _undeleted(place_of(settings)), tempfile.TemporaryDirectory(prefix="fedcoord-verify-") as aside:
        files, history = _read(settings, database, name)
        check_rows(history)
        with understood(settings), database.reading() as session:
            acts, last_hash = audit.check(session)
        store = open_overlay(Path(aside), place_of(settings))
        for file in files:
            with _named(f"{file.name} of run {history.run}"):
                store.check(file.digest)
        return Verified(*_check_bytes(store, history, quick), history.rounds_done, acts, last_hash)


def _check_bytes(store: EngineStore, history: History, quick: bool) -> tuple[int, int, int]:
    """How many versions there are, how many of them were made again, and of how many deltas."""
    rows = [row for known in history.versions.values() for row in known.values()]
    again, averages = (
        recomputing.made_of(history.versions),
        recomputing.averages_of(history.versions, lambda row: row.kept and row.facts.exact),
    )
    present = {digest for _, digest in history.present.values()}
    for row in rows:
        if row.digest in present or (row.kept and row.facts.exact):
            with _named(row.called):
                store.check(row.digest)
        is_present = history.present[row.facts.block] == (row.facts.version, row.digest)
        if row.velocity is not None and (is_present or (row.kept and row.facts.exact)):
            with _named(f"{row.called}: what its outer optimizer carries on"):
                store.check(row.velocity)
    deltas = _check_deltas(store, again)
    if not quick:
        recomputing.recompute(store, again)
        recomputing.recompute_averages(store, averages)
        if history.measured is not None:
            recomputing.remeasure(store, *history.measured)
    return len(rows), 0 if quick else len(again) + len(averages), deltas


def _check_deltas(store: EngineStore, rows: Iterable[KeptVersion]) -> int:
    seen: set[str] = set()
    for row in rows:
        for term in row.change.terms if row.change else ():
            if term.digest not in seen:
                with _named(f"{row.called}: a delta of round {row.facts.round}"):
                    store.check(term.digest)
                seen.add(term.digest)
    return len(seen)


def _read(settings: Settings, database: Database, name: str) -> tuple[list[FileRef], History]:
    with understood(settings):
        if (schema := migrate.current(database.engine)) != migrate.newest():
            raise DatabaseUnusable(
                f"the database has schema {schema}, this is for {migrate.newest()}: run `fedcoord db upgrade` on it first"
            )
        with database.reading() as session:
            run, history = histories.of_name(session, name)
            if not run.prepared:
                raise RunNotPrepared(f"run {run.name} has no model yet")
            return list(run.files), history


@contextlib.contextmanager
def _undeleted(place: Place) -> Iterator[None]:
    """Have a coordinator delete nothing meanwhile; of a copy that may not be written nobody does."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(PermissionError):
            held.enter_context(open_place(place).hold())
        yield


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except (BlobMissing, BlobDamaged) as error:
        raise type(error)(f"{what}: {error.message}", **error.detail) from error
