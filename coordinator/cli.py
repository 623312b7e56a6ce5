"""`fedcoord`: run a coordinator, and steer one over its REST API."""

from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.host import interrupt  # noqa: F401 - first, as it says

# isort: split

import os
import shlex
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands import (
    agents,
    audit,
    compare,
    engine,
    explain,
    exports,
    health,
    held_out,
    init,
    models,
    operators,
    plan,
    predict,
    runs,
    trial,
)
from fedcybgd.coordinator.commands.given import CoordinatorCommands, Home, SettingsInvalid, settings_of, without_effect
from fedcybgd.coordinator.commands.output import Facts, Json, moment, say_json
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.operators import OperatorRequest
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.starting import Ready, StartReport
from fedcybgd.shared.contract.views import StatusView
from fedcybgd.shared.contract.words import problem_in_words
from fedcybgd.shared.host import imports, program, started
from fedcybgd.shared.host.terminal import Terminal

app = CoordinatorCommands(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
groups = {"models": models, "agents": agents, "run": runs, "exports": exports, "held-out": held_out}
for name, group in groups.items():
    app.add_typer(group.app, name=name)
for command in (plan.plan, compare.compare, init.init, explain.explain, health.health, predict.predict, engine.engine):
    app.command()(command)
app.command("try")(trial.try_run)
key_app = CoordinatorCommands(no_args_is_help=True, help="The key that provenance files are signed with.")
db_app = CoordinatorCommands(no_args_is_help=True, help="The database.")
app.add_typer(operators.app, name="operators")
app.add_typer(audit.app, name="audit")
app.add_typer(key_app, name="key")
app.add_typer(db_app, name="db")
terminal = Terminal()


def _say_version(wanted: bool) -> None:
    if wanted:
        terminal.say(f"fedcoord {version('fedcybgd')}")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version, and end.")] = False,
) -> None:
    """Options of the program itself."""


@app.command()
def serve(
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (FEDCOORD_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (FEDCOORD_PORT); 0 takes a free one.")] = None,
    database_url: Annotated[str | None, typer.Option(help="postgresql://… instead of SQLite (FEDCOORD_DATABASE_URL).")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM certificate: speak HTTPS (FEDCOORD_TLS_CERTIFICATE).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of the certificate (FEDCOORD_TLS_KEY).")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="For programs: say here, as JSON, the URL and a new key once it answers, or why it does not start.")
    ] = None,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", help="For programs: stop when standard input ends, as it does with whoever started this.")
    ] = False,
) -> None:
    """Run the coordinator. Needs no configuration; the first time it makes the first operator's key, and says where it is."""
    with started.reported(ready_file):
        settings = settings_of(home=home, host=host, port=port, database_url=database_url, tls_certificate=tls_certificate, tls_key=tls_key)
        if until_eof:
            started.stop_at_eof()
        _serve(settings, ready_file)


def _serve(settings: Settings, ready_file: Path | None) -> None:
    with imports.at_once():
        from fedcybgd.coordinator.home import occupied
        from fedcybgd.coordinator.serve import address, bind, certificate_of, check_listening, prepare_home
        from fedcybgd.coordinator.serve import serve as run
        from fedcybgd.coordinator.webhook import webhook_settings

    check_listening(settings, certificate_of(settings))
    listener = bind(settings.host, settings.port)
    with occupied(settings):
        key, url = prepare_home(settings), address(settings, listener)
        webhook_settings(settings)
        _say_hello(settings, listener, settings.behind or url, key)

        def ready() -> None:
            if ready_file is not None:
                report = Ready(url=url, pid=os.getpid(), version=version("fedcybgd"), operator_key=key)
                started.tell(ready_file, StartReport(ready=report))

        run(settings, listener, ready)


def _say_hello(settings: Settings, listener: socket.socket, url: str, key: str | None) -> None:
    from fedcybgd.coordinator.serve import elsewhere, is_local

    terminal.say(f"coordinator at {url}, status page {url}/admin, data in {settings.home}")
    if key is not None:
        file = shlex.quote(str(settings.first_key))
        terminal.say(
            f"\nthe first operator's key is in {settings.first_key}; to use it:\n  export FEDCOORD_URL={url} FEDCOORD_OPERATOR_KEY=$(cat {file})\n"
        )
    if not is_local(settings.host):
        terminal.say(f"for agents on other machines: {elsewhere(settings, listener)}")
    if settings.tls_certificate is None and not is_local(settings.host):
        told = (
            "allowed: keys and deltas can be read on the way"
            if settings.proxies is None
            else f"for the proxies at {settings.proxies} alone"
        )
        terminal.say(f"warning: plain HTTP, {told}", "yellow")
    for line in without_effect(os.environ):
        terminal.say(f"warning: {line}", "yellow")
    sys.stdout.flush()


@app.command()
def status(as_json: Json = False) -> None:
    """Runs, agents, leases and last errors."""
    view = Client().status()
    if as_json:
        say_json(StatusView, view)
        return
    active = sum(agent.state == "active" for agent in view.agents)
    terminal.say(f"{active} of {len(view.agents)} agents active, {view.waiting_claims} waiting, {len(view.leases)} training")
    if view.coordinators > 1:
        terminal.say(f"{view.coordinators} coordinators")
    if view.engines:
        terminal.say(f"engines elsewhere: {view.engines}")
    if view.signing_key is not None:
        terminal.say(f"signing key {view.signing_key}")
    for run in view.runs[:10]:
        why = f" – {one_line(run.reason)}" if run.reason else ""
        terminal.say(f"run {run.name}: {run.state}, {run.rounds_done} of {run.rounds_total} rounds{why}")
    for lease in view.leases:
        terminal.say(f"lease: {lease.agent} trains {lease.block} of {lease.run}, round {lease.round}, attempt {lease.attempt}")
    for job in view.running_jobs:
        still = f"; it has used nothing for {job.still_s:.0f} s" if job.still_s >= 60 else ""
        terminal.say(f"job: {job.kind} of {job.of}, for {job.seconds:.0f} s, {job.cpu_s:.0f} s of processor time{still}")
    for event in view.last_errors[:5]:
        terminal.say(f"{moment(event.at)} {event.level} {event.code}: {one_line(event.message)}")


@app.command()
def backup(
    directory: Annotated[Path, typer.Argument(help="Where to; a later backup to the same place copies only what is new.", file_okay=False)],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Copy database and blobs while the coordinator works. Run this on the coordinator's machine."""
    from fedcybgd.coordinator.backup import backup as copy

    done = copy(settings_of(home=home), directory)
    if as_json:
        say_json(Facts, {"directory": str(directory), "blobs": done.blobs, "copied": done.copied, "bytes": done.bytes})
    else:
        terminal.say(f"{counted(done.blobs, 'blob')}, {done.copied} of them new, {done.bytes / 1e6:,.0f} MB in {directory}")


@app.command()
def verify(
    what: Annotated[
        str, typer.Argument(metavar="RUN|FILE", help="Name or id of a run of this machine's coordinator, or a provenance file.")
    ],
    home: Home = None,
    quick: Annotated[bool, typer.Option("--quick", help="Of a run: look at rows and digests only; make no version again.")] = False,
    key: Annotated[str | None, typer.Option(help="Of a file: the coordinator's public key, or its fingerprint.")] = None,
    export: Annotated[Path | None, typer.Option(help="Of a file: the directory of the export.", exists=True, file_okay=False)] = None,
    deltas: Annotated[
        Path | None, typer.Option(help="Of a file: a directory of shards and deltas by their digests.", exists=True, file_okay=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Make every version of a run again of its deltas; say that the model is what the log says, or what is wrong first (status 1).

    Of a run: on the coordinator's machine, also while it works; with --home on a backup. Of a provenance file: anywhere.
    """
    from fedcybgd.coordinator.provenance import check, is_file
    from fedcybgd.coordinator.verify import verify as look

    place = Path(what)
    if "/" in what or place.suffix == ".json" or (place.suffix and is_file(place)) or {key, export, deltas} != {None}:
        found = str(check(place, key, export, deltas))
    else:
        found = f"run {what}: {look(settings_of(home=home), what, quick)}"
    if as_json:
        say_json(Facts, {"what": what, "verified": True, "found": found})
    else:
        terminal.say(found)


@key_app.command()
def renew(home: Home = None, as_json: Json = False) -> None:
    """Make a new signing key, if it became known or its secret is lost. Run this on the coordinator's machine: it works on the database itself."""
    from fedcybgd.coordinator.db.base import utcnow
    from fedcybgd.coordinator.home import existing_database, signing_secret
    from fedcybgd.coordinator.services.records import audit as log
    from fedcybgd.coordinator.services.records import signing

    settings = settings_of(home=home)
    with existing_database(settings).transaction() as session:
        made = signing.renew(session, signing_secret(settings, make=True), utcnow())
        log.write(session, utcnow(), log.MACHINE, "fedcoord key renew", made.fingerprint)
        key = made.fingerprint
    if as_json:
        say_json(Facts, {"fingerprint": key})
    else:
        terminal.say(f"signing key {key}; what was signed before is checked with the key before")


@operators.app.command()
def recover(
    name: Annotated[str, typer.Argument(help="Of the owner; one that is not there yet is made.")] = "owner",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a new key for an owner, where none is known any more. Run this on the coordinator's machine: it works on the database itself."""
    from fedcybgd.coordinator.db.base import utcnow
    from fedcybgd.coordinator.home import existing_database
    from fedcybgd.coordinator.services.agents import operators as services
    from fedcybgd.coordinator.services.records import audit as log

    try:
        OperatorRequest(name=name, role="owner")
    except ValidationError as error:
        raise SettingsInvalid(f"{name!r} is no name for an operator: {problem_in_words(error.errors()[0])}") from error
    with existing_database(settings_of(home=home)).transaction() as session:
        key = services.recover(session, name, utcnow())
        log.write(session, utcnow(), log.MACHINE, "fedcoord operators recover", name)
    if as_json:
        say_json(Facts, {"name": name, "key": key})
    else:
        terminal.say(f"export FEDCOORD_OPERATOR_KEY={key}")


@db_app.command()
def upgrade(home: Home = None, as_json: Json = False) -> None:
    """Bring the database to the newest schema; `serve` does so by itself, unless FEDCOORD_MIGRATE=never. In an empty PostgreSQL database, make its tables."""
    from fedcybgd.coordinator.db import migrate
    from fedcybgd.coordinator.home import database_to_upgrade, understood

    settings = settings_of(home=home)
    database = database_to_upgrade(settings)
    with understood(settings):
        migrate.upgrade(database.engine)
    _say_schema(migrate.current(database.engine), None, as_json)


@db_app.command()
def current(home: Home = None, as_json: Json = False) -> None:
    """The schema of the database, and the newest there is."""
    from fedcybgd.coordinator.db import migrate
    from fedcybgd.coordinator.home import existing_database

    _say_schema(migrate.current(existing_database(settings_of(home=home)).engine), migrate.newest(), as_json)


def _say_schema(current: str | None, newest: str | None, as_json: bool) -> None:
    if as_json:
        say_json(Facts, {"schema": current} | ({} if newest is None else {"newest": newest}))
    else:
        terminal.say(f"schema {current}" + (f", newest {newest}" if newest is not None else ""))


def main() -> None:
    program.ended(app)


if __name__ == "__main__":
    main()
