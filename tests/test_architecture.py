"""The import rule of docs/architecture.md, and the other house rules that a program can check."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("coordinator", "agent", "shared", "migrations")
API = ("client", "local")
"""Rooms of the Python API, in fedcybgd/ itself"""
OURS_BEGIN = "fedcybgd."
MAX_LINES = 320
MAX_LINES_OF_TESTS = 410

# What the modules of a layer may import of ours, besides their own layer. The longest prefix of a module's name decides.
# Names are those of the folders; every import says `fedcybgd.` before them.
SERVICES = "coordinator.services"
RULES = {"shared.contract", "shared.files", "coordinator.errors", "coordinator.domain"}
DATA = RULES | {"coordinator.db", "coordinator.storage"}
MAY_IMPORT: dict[str, set[str]] = {
    # contract ← files ← tensors ← models: what stands to the left of `tensors` is free of torch.
    "shared.contract": set(),
    "shared.files": {"shared.contract"},
    "shared.host": {"shared.contract"},
    "shared.tensors": {"shared.contract", "shared.files"},
    "shared.models": {"shared.contract", "shared.files", "shared.tensors"},
    # The Python API: what speaks to a coordinator, and what starts one and its agents.
    "client": {"shared.contract", "shared.files", "shared.host", "coordinator.domain"},
    "local": {"shared.contract", "shared.files", "shared.host", "client", "agent", "coordinator.settings"},
    "agent": {"shared.contract", "shared.files", "shared.host", "agent.sandbox"},
    "agent.training": {"shared", "agent.messages"},
    "agent.sandbox": set(),
    "agent.trainer": {"shared", "agent.messages", "agent.training", "agent.sandbox"},
    "migrations": {"coordinator.db"},
    "coordinator.errors": {"shared.contract"},
    "coordinator.settings": {"coordinator.domain"},
    "coordinator.beating": {"shared.host", "coordinator.db", SERVICES},
    "coordinator.common": {"shared.contract", "coordinator.db", "coordinator.errors", "coordinator.home", "coordinator.places", "coordinator.storage",
        "coordinator.settings", SERVICES},
    "coordinator.absence": {"coordinator.db", "coordinator.domain", SERVICES},
    "coordinator.attendance": {"shared.contract", "coordinator.db", "coordinator.domain", SERVICES},
    "coordinator.collecting": set(),
    "coordinator.replays": {"shared.contract", "coordinator.errors"},
    "coordinator.home": {"shared", "coordinator.db", "coordinator.errors", "coordinator.settings"},
    "coordinator.domain": {"shared.contract", "shared.files", "coordinator.errors"},
    "coordinator.planning": {"shared.contract", "shared.files", "coordinator.errors", "coordinator.domain"},
    "coordinator.storage": {"shared.contract", "shared.files", "shared.host", "coordinator.errors"},
    "coordinator.db": {"shared.contract", "shared.host", "coordinator.errors", "coordinator.domain"},
    "coordinator.wakes": {"shared.host", "coordinator.db", "coordinator.errors", "coordinator.domain"},
    # The rooms of the services, from the lowest floor to the highest: none imports what stands below it in this list.
    f"{SERVICES}.states": DATA,
    f"{SERVICES}.records": DATA | {f"{SERVICES}.states"},
    f"{SERVICES}.agents": DATA | {f"{SERVICES}.{room}" for room in ("states", "records")},
    f"{SERVICES}.measure": DATA | {f"{SERVICES}.records"},
    f"{SERVICES}.emulators": DATA | {"coordinator.planning", f"{SERVICES}.records", f"{SERVICES}.measure"},
    f"{SERVICES}.path": DATA | {f"{SERVICES}.{room}" for room in ("states", "records", "agents", "measure", "emulators")},
    f"{SERVICES}.operate": DATA | {"coordinator.planning"}
    | {f"{SERVICES}.{room}" for room in ("states", "records", "agents", "measure", "emulators", "path")},
    f"{SERVICES}.upkeep": DATA | {f"{SERVICES}.{room}" for room in ("states", "records", "agents", "measure", "emulators", "path")},
    f"{SERVICES}.read": DATA | {f"{SERVICES}.{room}" for room in ("records", "agents", "measure", "path")},
    f"{SERVICES}.outcomes": DATA | {SERVICES},
    "coordinator.engine": {"shared", "coordinator.errors", "coordinator.domain", "coordinator.storage"},
    "coordinator.jobs": {"shared.contract", "shared.host", "coordinator.errors", "coordinator.domain", "coordinator.db", "coordinator.storage",
        SERVICES, "coordinator.engine", "coordinator.places", "coordinator.settings"},
    "coordinator.walls": {"shared.contract", "shared.host", "coordinator.errors"},
    "coordinator.api": DATA | {"coordinator.home", "shared.host", "coordinator.attendance", "coordinator.replays", "coordinator.settings", "coordinator.wakes", SERVICES},
    "coordinator.pictures": {"shared.contract", "coordinator.domain"},
    "coordinator.dashboard": {"shared.contract", "coordinator.errors", "coordinator.domain", "coordinator.db", SERVICES, "coordinator.api", "coordinator.pictures"},
    "coordinator.commands": {"shared", "client", "local", "coordinator.domain", "coordinator.errors", "coordinator.settings"},
    "coordinator.places": {"coordinator.settings", "coordinator.storage"},
    "coordinator.commands.engine": {"coordinator.commands", "coordinator.elsewhere", "shared.host"},
    "coordinator.bucket_uploads": {"coordinator.db", "coordinator.storage", f"{SERVICES}.records"},
    "coordinator.parts": {"coordinator.bucket_uploads", "coordinator.db", "coordinator.jobs", "coordinator.places", "coordinator.settings", "coordinator.storage",
        "coordinator.wakes"},
    "coordinator.app": DATA | {
        "coordinator.parts", "coordinator.common", "coordinator.beating",
        "coordinator.absence", "coordinator.home", "coordinator.attendance", "coordinator.replays", "coordinator.api", "coordinator.dashboard", "coordinator.jobs",
        SERVICES, "coordinator.settings", "shared.host",
        "coordinator.sweeper", "coordinator.wakes", "coordinator.walls", "coordinator.webhook",
    },
    "coordinator.webhook": DATA | {"shared.host", "coordinator.home", SERVICES, "coordinator.settings"},
    "coordinator.sweeper": DATA
    | {"shared.host", "coordinator.absence", "coordinator.attendance", SERVICES, "coordinator.settings", "coordinator.wakes"},
    "coordinator.elsewhere": DATA | {
        "coordinator.beating", "coordinator.common", "coordinator.home", "coordinator.jobs", "coordinator.parts", "coordinator.settings",
        "coordinator.sweeper", "coordinator.wakes", SERVICES, "shared.host",
    },
    "coordinator.serve": DATA | {"shared.host", SERVICES}
    | {f"coordinator.{name}" for name in ("app", "collecting", "common", "home", "parts", "settings", "walls")},
    "coordinator.backup": DATA | {"shared.host", "coordinator.places", "coordinator.home", SERVICES, "coordinator.settings"},
    "coordinator.verify": DATA | {"coordinator.home", "coordinator.places", "coordinator.jobs", SERVICES, "coordinator.settings"},
    "coordinator.provenance": DATA | {"coordinator.jobs"},
    "coordinator.cli": DATA | {
        "coordinator.provenance",
        "coordinator.verify", "coordinator.webhook",
        "shared.host", "coordinator.backup", "coordinator.commands", "coordinator.home", "client", "coordinator.serve",
        SERVICES, "coordinator.settings",
    },
}  # fmt: skip

TORCH = {"torch", "transformers", "tokenizers", "safetensors"}
# Foreign libraries that a layer must do without, wherever in the file they are imported.
MUST_NOT_IMPORT: dict[str, set[str]] = {
    "shared": {"fastapi", "starlette", "sqlalchemy", "httpx", "typer"},
    "shared.contract": TORCH | {"numpy", "socket", "os"},
    "shared.files": TORCH | {"numpy"},
    "shared.host": TORCH | {"numpy"},
    "client": TORCH | {"numpy", "fastapi", "starlette", "sqlalchemy", "typer", "rich"},
    "local": TORCH | {"numpy", "fastapi", "starlette", "sqlalchemy", "typer", "rich"},
    "agent": {"fastapi", "starlette", "sqlalchemy", "uvicorn"},
    "agent.training": {"httpx", "socket", "urllib", "http", "requests"},
    "coordinator.planning": {"fastapi", "sqlalchemy", "torch", "transformers", "safetensors", "httpx", "time", "os"},
    "coordinator.wakes": {"fastapi", "starlette", "sqlalchemy", "torch"},
    "coordinator.domain": {
        "fastapi", "starlette", "sqlalchemy", "torch", "transformers", "safetensors", "httpx", "time", "os", "subprocess", "threading",
    },
    "coordinator.services": {"fastapi", "starlette", "torch", "transformers", "safetensors", "httpx"},
    "coordinator.api": {"torch", "transformers", "safetensors", "httpx"},
    "coordinator.pictures": {"fastapi", "starlette", "sqlalchemy", "torch", "transformers", "safetensors", "httpx"},
    "coordinator.dashboard": {"torch", "transformers", "safetensors", "httpx"},
    "coordinator.db": {"fastapi", "starlette", "torch", "transformers", "httpx"},
    "coordinator.storage": {"fastapi", "starlette", "sqlalchemy", "torch", "transformers"},
    "coordinator.engine": {"fastapi", "starlette", "sqlalchemy", "httpx"},
    "coordinator.jobs": {"fastapi", "starlette", "torch", "transformers"},
}  # fmt: skip


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(), str(self.path))

    def imports(self) -> Iterator[tuple[int, str, str]]:
        """Line, module and the name taken from it ("" for the module itself), inside functions too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name.removeprefix(OURS_BEGIN), ""
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}:{node.lineno}: import by the whole name"
                for alias in node.names:
                    yield node.lineno, (node.module or "").removeprefix(OURS_BEGIN), alias.name

    def layer(self) -> str:
        """The longest entry of the table that this module is in."""
        found = [layer for layer in MAY_IMPORT if inside(self.name, layer)]
        return max(found, key=len, default="")


def inside(module: str, package: str) -> bool:
    """Whether a module is a package or in it; whole segments count."""
    return module == package or module.startswith(package + ".")


def modules() -> list[Module]:
    found = []
    for package in (*PACKAGES, *API):
        top = ROOT if package in PACKAGES else ROOT / "fedcybgd"
        for path in sorted((top / package).rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            found.append(Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


MODULES = modules()
OURS = {m.name for m in MODULES}
# The package files of what has layers itself belong to none; they must stay empty of code.
LAYERED = [m for m in MODULES if m.name not in ("coordinator", "coordinator.services", "shared")]


def test_every_module_has_its_place() -> None:
    assert len(LAYERED) > 60, "the test looks in the wrong directory"
    assert [m.name for m in LAYERED if not m.layer()] == []
    assert [m.name for m in MODULES if m.path.name == "__init__.py" and m.name != "coordinator.storage" and list(m.imports())] == []


def test_modules_import_only_what_their_layer_may() -> None:
    wrong = []
    for module in LAYERED:
        layer = module.layer()
        for line, source, name in module.imports():
            if source.split(".")[0] not in (*PACKAGES, *API):
                continue
            target = f"{source}.{name}" if f"{source}.{name}" in OURS else source
            # A subpackage with an entry of its own is another layer, also for its parent.
            own = max((entry for entry in MAY_IMPORT if inside(target, entry)), key=len, default=target)
            if (
                own != layer
                and not any(inside(target, allowed) for allowed in MAY_IMPORT[layer])
                and not (layer == "agent" and own == "agent.training")
            ):
                wrong.append(f"{module.path.relative_to(ROOT)}:{line} imports {target}; {layer} may {sorted(MAY_IMPORT[layer])}")
    assert wrong == []


def test_modules_do_without_the_libraries_of_other_layers() -> None:
    wrong = []
    for module in LAYERED:
        banned = {library for layer, libraries in MUST_NOT_IMPORT.items() if inside(module.name, layer) for library in libraries}
        found = [
            f"{module.path.relative_to(ROOT)}:{line} imports {source}"
            for line, source, _ in module.imports()
            if source.split(".")[0] in banned
        ]
        wrong += found
    assert wrong == []


def test_everything_is_imported_by_its_one_name() -> None:
    """`coordinator.…` would be a second copy of the same file, with classes of its own."""
    wrong = []
    for folder in (*PACKAGES, "fedcybgd", "tests", "benchmarks", "examples", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                wrong += [f"{path.relative_to(ROOT)}: {name}" for name in names if name.split(".")[0] in PACKAGES]
    assert wrong == []


def test_no_file_imports_itself_by_a_detour() -> None:
    """At import time, that is: what stands in a function is left out."""
    needs: dict[str, set[str]] = {}
    for module in MODULES:
        top = [n for n in module.tree.body if isinstance(n, ast.ImportFrom) and (n.module or "").startswith(OURS_BEGIN)]
        found = {f"{n.module}.{a.name}".removeprefix(OURS_BEGIN) for n in top for a in n.names}
        needs[module.name] = {f if f in OURS else f.rpartition(".")[0] for f in found} & OURS
    done: set[str] = set()
    while ready := {name for name, wanted in needs.items() if name not in done and wanted <= done}:
        done |= ready
    assert set(needs) - done == set(), "these stand in circles, or on one"


@pytest.mark.parametrize(
    ("one", "other"), [("coordinator", "agent"), ("agent", "coordinator"), ("shared", "agent"), ("shared", "coordinator")]
)
def test_the_two_sides_meet_in_shared_only(one: str, other: str) -> None:
    wrong = [f"{m.name} imports {source}" for m in MODULES if inside(m.name, one) for _, source, _ in m.imports() if inside(source, other)]
    assert wrong == []


def test_the_engine_is_for_jobs_alone() -> None:
    users = {m.layer() for m in LAYERED for _, source, _ in m.imports() if inside(source, "coordinator.engine")}
    assert users == {"coordinator.engine", "coordinator.jobs"}


def test_jobs_import_the_engine_only_where_it_runs() -> None:
    """Inside a function, which the worker process calls: the web process imports `jobs` too."""
    for module in MODULES:
        if module.layer() == "coordinator.jobs":
            top = [n for n in module.tree.body if isinstance(n, ast.ImportFrom) and inside(n.module or "", "coordinator.engine")]
            assert top == [], module.name


@pytest.mark.parametrize("layer", ["coordinator.api", "coordinator.dashboard"])
def test_routes_write_no_sql(layer: str) -> None:
    taken = {
        (m.name, source, name) for m in MODULES if m.layer() == layer for _, source, name in m.imports() if inside(source, "sqlalchemy")
    }
    assert {(source, name) for _, source, name in taken} <= {("sqlalchemy.orm", "Session")}, sorted(taken)
    for module in MODULES:
        if module.layer() == layer:
            on_session = [c for c in calls(module) if isinstance(c.func, ast.Attribute) and is_name(c.func.value, "session")]
            assert on_session == [], f"{module.path}: line {on_session[0].lineno} speaks to the database by itself"


@pytest.mark.parametrize("layer", ["coordinator.api", "coordinator.dashboard"])
def test_a_transaction_lives_in_one_job_of_the_thread_pool(layer: str) -> None:
    """A lock or a connection that is held while its holder waits for a thread stops everybody who has one."""

    def look(node: ast.AST, path: Path, coroutine: bool) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Yield | ast.YieldFrom):
                yield f"{path}:{child.lineno} yields: what it holds is let go in another job"
            opens = isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and child.func.attr in ("transaction", "reading")
            if opens and coroutine:
                yield f"{path}:{child.lineno} opens a transaction in a coroutine"
            inside_coroutine = isinstance(child, ast.AsyncFunctionDef) or (coroutine and not isinstance(child, ast.FunctionDef))
            yield from look(child, path, inside_coroutine)

    wrong = [found for m in MODULES if inside(m.name, layer) for found in look(m.tree, m.path.relative_to(ROOT), coroutine=False)]
    assert wrong == []


def calls(module: Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))


def is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def called_attributes(layer: str) -> set[tuple[str, str]]:
    """(module, attribute) of everything that the modules of a layer call as `something.attribute(…)`."""
    return {(m.name, c.func.attr) for m in MODULES if inside(m.name, layer) for c in calls(m) if isinstance(c.func, ast.Attribute)}


def test_services_never_commit() -> None:
    assert {
        found for found in called_attributes("coordinator.services") if found[1] in {"commit", "rollback", "begin", "begin_nested", "close"}
    } == set()


def test_transactions_end_in_one_place() -> None:
    assert {name for name, attribute in called_attributes("coordinator") if attribute == "commit"} == {"coordinator.db.base"}


def test_a_state_changes_in_one_place() -> None:
    """A row begins in the start of its machine; only the transitions in services/states set another state, or `prepared`."""
    machines = {"RUN", "ROUND", "ASSIGNMENT", "AGENT", "MODEL", "JOB"}
    rows = {"Run", "Round", "Assignment", "Agent", "Model", "Job"}
    wrong = []
    for module in MODULES:
        if not inside(module.name, "coordinator") or inside(module.name, "coordinator.services.states"):
            continue
        where = module.path.relative_to(ROOT)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in ("state", "prepared"):
                wrong.append(f"{where}:{node.lineno} sets {ast.unparse(node)}")
            if isinstance(node, ast.Call) and is_name(node.func, "setattr"):
                wrong.append(f"{where}:{node.lineno} sets an attribute by its name")
            made = isinstance(node, ast.Call) and (
                (isinstance(node.func, ast.Name) and node.func.id in rows)
                or (isinstance(node.func, ast.Attribute) and node.func.attr == "values")
            )
            for keyword in node.keywords if made and isinstance(node, ast.Call) else ():
                begins = isinstance(keyword.value, ast.Attribute) and keyword.value.attr == "start"
                if keyword.arg == "prepared" or (
                    keyword.arg == "state" and not (begins and ast.unparse(keyword.value).split(".")[0] in machines)
                ):
                    wrong.append(f"{where}:{node.lineno} makes a row that is {ast.unparse(keyword.value)}")
    assert wrong == []


def test_the_domain_looks_at_no_clock() -> None:
    clocks = {"now", "utcnow", "today", "time", "monotonic", "perf_counter"}
    assert {found for found in called_attributes("coordinator.domain") if found[1] in clocks} == set()
    taken = {name for m in MODULES if inside(m.name, "coordinator.domain") for _, _, name in m.imports()}
    assert taken & {"utcnow", "now"} == set()


def test_the_domain_draws_only_from_seeds() -> None:
    """`random.Random(seed)` is a function of its argument; everything else in `random` is not."""
    for module in MODULES:
        if not inside(module.name, "coordinator.domain"):
            continue
        for call in calls(module):
            if isinstance(call.func, ast.Attribute) and is_name(call.func.value, "random"):
                assert call.func.attr == "Random", f"{module.name}:{call.lineno}"
                assert call.args, f"{module.name}:{call.lineno}: no seed"
        assert not {source for _, source, name in module.imports() if source in ("secrets", "uuid") or (source == "random" and name)}


def test_weights_are_never_pickled_and_foreign_code_is_never_run() -> None:
    banned_modules, banned_calls = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}, {("torch", "load"), ("torch", "save")}
    for module in MODULES:
        assert not {source for _, source, _ in module.imports() if source.split(".")[0] in banned_modules}, module.name
        for call in calls(module):
            if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
                assert (call.func.value.id, call.func.attr) not in banned_calls, f"{module.name}:{call.lineno}"
            for keyword in call.keywords:
                if keyword.arg == "trust_remote_code":
                    assert isinstance(keyword.value, ast.Constant), f"{module.name}:{call.lineno}"
                    assert keyword.value.value is False, f"{module.name}:{call.lineno}"


LIGHT = [
    ["coordinator.app", "coordinator.serve", "coordinator.cli", "coordinator.jobs.local", "coordinator.jobs.engine_process"],
    ["agent.cli", "agent.worker", "agent.check", "agent.trainer_process", "agent.trainer"],
    ["coordinator.domain.run_file", "coordinator.domain.schedule", "coordinator.domain.admission", "coordinator.domain.jobs.registry"],
]


@pytest.mark.parametrize("names", LIGHT, ids=lambda names: names[0])
def test_neither_the_web_process_nor_the_daemon_imports_torch(names: list[str]) -> None:
    heavy = sorted(TORCH | {"numpy"})
    program = f"import {', '.join(OURS_BEGIN + name for name in names)}, sys; print(sorted(set({heavy}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    assert found.stdout.strip() == "[]"


def test_the_web_process_can_be_made_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fedcybgd.coordinator.app import create_app; from fedcybgd.coordinator.settings import Settings;"
        f"create_app(Settings(home=Path({str(tmp_path)!r}))).openapi(); assert not set({sorted(TORCH)}) & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)


def test_modules_say_what_their_one_job_is() -> None:
    without = [m.path.relative_to(ROOT).as_posix() for m in LAYERED if m.path.read_text().strip() and not ast.get_docstring(m.tree)]
    assert without == []


def test_no_file_is_too_long() -> None:
    folders = [*PACKAGES, "fedcybgd", "tests", "benchmarks", "examples", "docs"]
    lengths = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for f in folders for p in (ROOT / f).rglob("*.py")}
    assert len(lengths) > 80
    limits = {path: MAX_LINES if path.split("/")[0] in (*PACKAGES, "fedcybgd") else MAX_LINES_OF_TESTS for path in lengths}
    assert {path: lines for path, lines in lengths.items() if lines > limits[path]} == {}
