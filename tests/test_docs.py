"""The documentation is complete and true, as far as a program can tell."""

import ast
import importlib
import pkgutil
import posixpath
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

from docs import generate, site, statechart
from fedcybgd.agent import cli as agent_cli
from fedcybgd.agent.policy import Policy
from fedcybgd.agent.settings import Config
from fedcybgd.coordinator import cli as coordinator_cli
from fedcybgd.coordinator import domain
from fedcybgd.coordinator.api.route import guard_of
from fedcybgd.coordinator.app import create_app
from fedcybgd.coordinator.domain.assignment import TakenBack
from fedcybgd.coordinator.domain.machine import Machine
from fedcybgd.coordinator.domain.run_file import RunFile, parse_run_file
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.assignments import ReturnReason
from fedcybgd.shared.contract.errors import FedError

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
CODE = [
    path
    for package in ("coordinator", "agent", "shared", "fedcybgd/client", "fedcybgd/local")
    for path in sorted((ROOT / package).rglob("*.py"))
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text(name: str) -> str:
    return (DOCS / name).read_text()


def fenced(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


# ---- what is generated ----------------------------------------------------------------------------------------------


GENERATED = generate.pages()


@pytest.mark.parametrize("page", GENERATED, ids=lambda page: page.name)
def test_generated_parts_are_what_the_code_says(page: Path) -> None:
    assert page.read_text() == GENERATED[page], "run `make docs`"


def test_every_state_machine_is_drawn() -> None:
    modules = [importlib.import_module(info.name) for info in pkgutil.walk_packages(domain.__path__, f"{domain.__name__}.")]
    machines = {value.noun: value for module in modules for value in vars(module).values() if isinstance(value, Machine)}
    assert {m.noun for m in statechart.MACHINES} == set(machines)
    for machine in machines.values():
        for word in (*machine.states, *machine.events):
            assert f"`{word}`" in statechart.section(machine)
            assert statechart.MEANINGS[type(word), str(word)]


def test_every_setting_of_the_coordinator_is_explained() -> None:
    for name, field in Settings.model_fields.items():
        assert f"| `FEDCOORD_{name.upper()}` |" in text("operating.md")
        assert field.description, name


@pytest.mark.parametrize(("model", "page"), [(Config, "running-an-agent.md"), (Policy, "running-an-agent.md"), (RunFile, "run-file.md")])
def test_every_field_is_explained(model: type[Config] | type[Policy] | type[RunFile], page: str) -> None:
    fields = list(generate.fields_of(model))
    assert len(fields) >= len(model.model_fields)
    for name, _, _, meaning in fields:
        assert f"| `{name}` |" in text(page)
        assert meaning, f"{name} has no description"


# ---- what is written by hand ----------------------------------------------------------------------------------------


def test_every_route_is_in_the_protocol_and_no_other() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    real = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(re.findall(r"^\| `([A-Z]+ /v1/[^`]*)` \|", text("protocol.md"), re.MULTILINE)) == real


def test_every_reason_to_give_work_back_is_in_the_protocol() -> None:
    for reason in get_args(ReturnReason):
        assert f"\n| `{reason}` | " in text("protocol.md")
    assert [reason for reason in TakenBack if f"`{reason}`" not in text("protocol.md")] == []


def test_every_error_code_is_in_the_protocol() -> None:
    documented = set(re.findall(r"`([a-z_]+)`", text("protocol.md")))
    missing = {code: str(path.relative_to(ROOT)) for code, path in codes_in_the_code().items() if code not in documented}
    assert missing == {}


def test_no_error_code_is_in_the_protocol_that_the_code_does_not_have() -> None:
    known = {*codes_in_the_code(), *get_args(ReturnReason), *TakenBack}
    tables = text("protocol.md").split("### Codes over HTTP")[1]
    documented = {code for row in re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE) for code in re.findall(r"`([a-z_]+)`", row)}
    assert documented - known == set()


def test_documented_statuses_are_those_of_the_code() -> None:
    for path in CODE:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("fedcybgd.").removesuffix(".__init__")
        importlib.import_module(f"fedcybgd.{module}")
    statuses = {kind.code: kind.status for kind in subclasses(FedError) if hasattr(kind, "status")}
    documented = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", text("protocol.md"), re.MULTILINE))
    assert len(documented) > 25
    for code, status in documented.items():
        if code in statuses:
            assert int(status) == statuses[code], code


def subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def codes_in_the_code() -> dict[str, Path]:
    """Every stable code: of error classes, of answers that no class makes, of events."""
    found: dict[str, Path] = {}
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            for value in code_expressions(node):
                for part in ast.walk(value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str) and re.fullmatch(r"[a-z]+(_[a-z]+)*", part.value):
                        found[part.value] = path
    return found


def code_expressions(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.Assign(targets=[ast.Name(id="code" | "codes")], value=value):
            yield value
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
            yield from (v for n, v in zip(names, values, strict=True) if isinstance(n, ast.Name) and n.id == "code")
        case ast.Call(func=ast.Name(id="_answer"), args=[_, code, *_]):
            yield code
        case ast.Call(func=ast.Name(id="record" | "record_at_most"), args=[_, _, _, code, *_]):
            yield code


@pytest.mark.parametrize(
    ("program", "app", "page"),
    [("fedcoord", coordinator_cli.app, "operating.md"), ("fedagent", agent_cli.app, "running-an-agent.md")],
)
def test_every_command_is_shown_and_every_shown_command_exists(program: str, app: typer.Typer, page: str) -> None:
    real = {f"{program} {command}" for command in commands(typer.main.get_command(app))}
    assert not [command for command in real if command not in text(page)]
    groups = {command.rsplit(" ", 1)[0] for command in real}
    for block in fenced(text(page), "sh"):
        for words in re.findall(rf"^{program} (.*)", block, re.MULTILINE):
            first, second, *_ = [*words.split(), ""]
            shown = f"{program} {first} {second}" if f"{program} {first}" in groups else f"{program} {first}"
            assert shown in real


def commands(command: object) -> Iterator[str]:
    for name, child in command.commands.items():  # type: ignore[attr-defined]
        if hasattr(child, "commands"):
            yield from (f"{name} {rest}" for rest in commands(child))
        else:
            yield name


NAMED = re.compile(r"(?<!of )\b(fedcoord|fedagent) ([a-z][a-z-]+)(?: ([a-z][a-z-]+))?([^`#\n]*)")


@pytest.mark.parametrize("folder", ["pages", "code"])
def test_every_command_that_is_named_exists_with_its_options(folder: str) -> None:
    real = {
        f"{program} {name}": opts
        for program, app in (("fedcoord", coordinator_cli.app), ("fedagent", agent_cli.app))
        for name, opts in options_of(typer.main.get_command(app))
    }
    groups = {command.rsplit(" ", 1)[0] for command in real} - {"fedcoord", "fedagent"}
    found, wrong = 0, []
    for path in PAGES if folder == "pages" else CODE:
        for program, first, second, rest in NAMED.findall(path.read_text()):
            command = f"{program} {first} {second}" if f"{program} {first}" in groups else f"{program} {first}"
            given = set(re.findall(r"(?<!\S)--[a-z][a-z-]+", rest.split("&&")[0]))
            found += 1
            if command.strip() not in {*real, *groups} or given - real.get(command, given):
                wrong.append((path.name, command, given - real.get(command, set())))
    assert found > 20
    assert wrong == []


def options_of(command: object, before: str = "") -> Iterator[tuple[str, set[str]]]:
    for name, child in command.commands.items():  # type: ignore[attr-defined]
        if hasattr(child, "commands"):
            yield from options_of(child, f"{before}{name} ")
        else:
            yield before + name, {option for parameter in child.params for option in (*parameter.opts, *parameter.secondary_opts)}


def test_run_files_that_are_shown_are_valid() -> None:
    shown = fenced(text("run-file.md"), "yaml")
    assert len(shown) == 7
    for example in shown:
        assert parse_run_file(example).name == yaml.safe_load(example)["name"]


def test_the_agent_toml_that_is_shown_is_valid_and_has_every_setting() -> None:
    shown = fenced(text("running-an-agent.md"), "toml")
    for values, model in zip(map(tomllib.loads, shown), (Config, Policy), strict=True):
        model.model_validate(values)
        assert_whole(values, model)


def assert_whole(values: dict[str, Any], model: type[Config] | type[Policy]) -> None:
    for name, *_ in generate.fields_of(model):
        *sections, setting = name.split(".")
        place: Any = values
        for section in sections:
            place = next(iter(place.values())) if section == "NAME" else place[section]
        assert setting in place, name


# ---- all pages ------------------------------------------------------------------------------------------------------


@every_page
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(place), f"{target}: no such heading"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_no_page_says_a_thing_twice(page: Path) -> None:
    """Pages are merged by union: of a paragraph that two have changed both could stay."""
    plain = re.sub(r"<!-- table: .*?<!-- end -->|^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for table in re.findall(r"(?:^\|.*\n)+", plain, re.MULTILINE):
        rows = [line.split("|")[1:3] for line in table.splitlines()]
        assert [row for row in rows if rows.count(row) > 1] == []
    lines = [re.sub(r"`[^`]*`", "", line) for line in plain.splitlines() if not line.startswith("|")]
    sentences = [part.strip()[:40] for line in lines for part in re.split(r"(?<=[.:;]) ", line)]
    assert [begins for begins in sentences if len(begins) == 40 and sentences.count(begins) > 1] == []


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:coordinator|agent|shared|tests|migrations|benchmarks|examples|docs)/[\w./-]*)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


@every_page
def test_no_page_names_a_place_on_somebodys_machine(page: Path) -> None:
    assert not re.findall(r"(?<![\w.])/(?:home|root|work|tmp|Users|mnt)/\S*", page.read_text())


def test_a_route_that_asks_for_a_key_says_whose() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    for method, path, route in generate.routes():
        assert (guard_of(route).word != "none") == ("security" in paths[path][method.lower()]), path


# ---- the pages as a site: `make docs-site` builds it, with programs that are not needed here --------------------------


CONFIGURED = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
SITED = [*site.PAGES, *(str(path.relative_to(ROOT)) for path in sorted(DOCS.rglob("*.md")))]
IN_SITE = {*map(site.place, SITED), *site.FILES, *(path.name for path in DOCS.iterdir() if path.suffix in (".png", ".svg"))}


def navigated(entries: Any) -> Iterator[str]:
    """Every page of a part of the navigation."""
    for entry in entries:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            yield from navigated(target) if isinstance(target, list) else [target]


def test_every_page_is_in_one_of_four_parts() -> None:
    assert [next(iter(part)) for part in CONFIGURED["nav"]] == ["Tutorial", "How-to", "Reference", "Explanation"]
    assert Counter(navigated(CONFIGURED["nav"])) == Counter(map(site.place, SITED))


@pytest.mark.parametrize("source", SITED)
def test_links_lead_to_what_is_in_the_site(source: str) -> None:
    here = posixpath.dirname(site.place(source))
    links = [
        target for _, _, target in site.LINK.findall(site.turned((ROOT / source).read_text(), source)) if not re.match(r"[a-z]+:|#", target)
    ]
    assert [link for link in links if posixpath.normpath(posixpath.join(here, link.partition("#")[0])) not in IN_SITE] == []


def test_headings_have_the_anchors_that_links_name() -> None:
    for source in SITED:
        headings = re.findall(r"^#+ (.*)$", (ROOT / source).read_text(), re.MULTILINE)
        assert {site.slug(heading, "-") for heading in headings} == anchors(ROOT / source)


def test_nothing_is_loaded_from_elsewhere_by_its_readers() -> None:
    assert CONFIGURED["theme"]["font"] is False
    assert CONFIGURED["plugins"] == ["search"], "the one for reading from a disk loads a script"
    assert not [key for key in CONFIGURED if key.startswith("extra")]
