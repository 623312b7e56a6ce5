"""One word, one thing: the glossary against the names of tables and classes.

A name is made of words: `DeltaReceipt` of *delta* and *receipt*. All words of a table are in the glossary. A public class of ROOMS has at
least one word from there (or a kind of job, or a section of the run file), and its other words only say what of it the class is: FORMS.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from fedcybgd.coordinator.db.base import Base
from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.domain.run_file import RunFile
from tests.test_architecture import ROOT

GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
ROOMS = ("shared/contract", "coordinator/domain", "coordinator/db")
# What a class is of the thing that it is named after.
FORMS = {
    "accepted", "answer", "facts", "info", "kind", "made", "message", "metrics", "moved", "new", "numbers", "offer", "offset", "payload", "receipt",
    "broken", "entry",
    "ref", "report", "request", "requested", "result", "section", "self", "settings", "shape", "spec", "state", "stored", "submission", "summary",
    "type", "view", "declared", "leased", "parameter", "key", "error", "refused", "unknown", "lost", "stale", "kept", "twice", "unlike", "invalid", "low", "too", "small",
    "large",
}  # fmt: skip
# What is done with a thing of the glossary.
VERBS = {"enrol": "agent", "renew": "lease", "return": "assignment", "start": "run", "train": "block"}
# Classes that are no things of ours: what others are made of, or of what.
WITHOUT = {
    "Base": "tables", "Typed": "a column", "UtcDateTime": "a column", "Database": "itself", "OutageLog": "the database", "DatabaseAway": "the same",
    "DatabaseEncodingUnusable": "the database",
    "DataAway": "rows",
    "Page": "a list", "Listed": "a list", "Order": "a list", "CursorInvalid": "a list", "Ref": "references", "Message": "messages",
    "ErrorBody": "errors", "FedError": "errors", "HeaderError": "a safetensors file", "TensorShape": "a tensor", "Section": "the run file",
    "Machine": "states", "InvalidTransition": "states", "Moment": "two clocks", "Health": "the web process", "StatusView": "everything",
    "BytesMoved": "traffic", "BytesView": "traffic", "Costs": "a plan", "DoesNotFit": "instead of a plan", "Failure": "a measurement",
    "OnFailure": "a job", "Done": "a job", "Failed": "a job", "Hold": "a lease", "Delivered": "a delta", "Claimant": "a claim",
    "Ready": "a coordinator that was started", "TakenBack": "an assignment",
}  # fmt: skip
# One name in two modules, with the reason.
TWICE: dict[str, str] = {}


def words_of(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]


def known_words() -> set[str]:
    """The words of all entries, in the singular."""
    entries = re.findall(r"^\| \*\*(.+?)\*\* \|", GLOSSARY, re.MULTILINE)
    words = [word for entry in entries for word in re.findall(r"[a-z]+", entry.lower())]
    return {singular(word) for word in (*words, *VERBS, *JobKind, *RunFile.model_fields)}


def singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def classes(*rooms: str) -> Iterator[tuple[str, str]]:
    """Name and file of every public class."""
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    yield node.name, str(path.relative_to(ROOT))


def test_every_table_is_in_the_glossary() -> None:
    known = known_words()
    assert len(Base.metadata.tables) > 15
    lacking = {table: [w for w in words_of(table) if singular(w) not in known] for table in Base.metadata.tables}
    assert {table: missing for table, missing in lacking.items() if missing} == {}


def test_every_class_is_named_after_something_in_the_glossary() -> None:
    known = known_words()
    found = dict(classes(*ROOMS))
    assert len(found) > 100
    odd = {}
    for name, file in found.items():
        words = [singular(word) for word in words_of(name)]
        strange = [w for w in words if w not in known and w not in {singular(f) for f in FORMS}]
        if name not in WITHOUT and (strange or not any(w in known for w in words)):
            odd[name] = (file, strange)
    assert odd == {}, "name it after a word of the glossary, or explain the new word there first"
    assert WITHOUT.keys() <= found.keys(), "these are gone"


def test_no_class_has_the_name_of_another() -> None:
    places = defaultdict(list)
    for name, file in classes("agent", "coordinator", "shared"):
        places[name].append(file)
    assert {name: files for name, files in places.items() if len(files) > 1 and name not in TWICE} == {}
    assert {name for name in TWICE if len(places[name]) < 2} == set(), "these are not needed any more"


def test_an_entry_stands_once() -> None:
    entries = re.findall(r"^\| \*\*(.+?)\*\* \|", GLOSSARY, re.MULTILINE)
    assert [entry for entry in entries if entries.count(entry) > 1] == []
