"""`fedagent`: enrol this machine, test its settings, and work."""

from fedcybgd.shared.host import interrupt  # noqa: F401 - first, as it says

# isort: split

import json
import logging
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from getpass import getpass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from fedcybgd.agent import credentials, enrolment, keys, policy, reaching
from fedcybgd.agent.alone import alone
from fedcybgd.agent.approving import approve
from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.options import AgentCommands, HomeOption, Json, say_json, warn_of_variables
from fedcybgd.agent.settings import Home, template
from fedcybgd.agent.site.command import serve_cache
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.host import logs, program, started
from fedcybgd.shared.host.addresses import address_of, check_way
from fedcybgd.shared.host.exits import Exit
from fedcybgd.shared.host.machine import raise_open_files
from fedcybgd.shared.host.terminal import Terminal, log_plainly
from fedcybgd.shared.host.watchdog import Watchdog

app = AgentCommands(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
for command in (approve, serve_cache):
    app.command()(command)
terminal = Terminal()
GIVEN = (
    "Token from the operator. Who lists this machine's processes reads it here: rather use FEDAGENT_TOKEN, a file, or type it when asked."
)
TokenFile = Annotated[str | None, typer.Option(help="File with the token; - is standard input.")]
ASKED_EVERY_S = 30
"""While the status is watched, seconds between two questions to the coordinator"""


def _say_version(wanted: bool) -> None:
    if wanted:
        terminal.say(f"fedagent {version('fedcybgd')}")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version, and end.")] = False,
) -> None:
    """Options of the program itself."""
    os.umask(0o077)  # whatever it writes is nobody else's to read
    warn_of_variables()


@app.command()
def enroll(
    url: Annotated[str, typer.Argument(help="URL of the coordinator.")],
    token: Annotated[str | None, typer.Option(envvar="FEDAGENT_TOKEN", help=GIVEN)] = None,
    token_file: TokenFile = None,
    name: Annotated[str | None, typer.Option(help="Name of this agent; default: the host's name.")] = None,
    data: Annotated[Path | None, typer.Option(help="File with this agent's rows.", dir_okay=False)] = None,
    runs: Annotated[
        list[str] | None, typer.Option(help="Name of a run that may use these rows; * and ? are wildcards. Give it once for each.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="FIELD=COLUMN of these rows, where they differ: text=question. May be repeated.")
    ] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Let http:// go beyond this machine: the network itself is trusted.")
    ] = False,
    coordinator_key: Annotated[
        str | None,
        typer.Option(help="Fingerprint of the coordinator's signing key, from the operator: nobody else is believed, now and later."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="The GPU of this agent, where there are several: its number as nvidia-smi counts, or its UUID.")
    ] = None,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Get an identity and a key, and write a first agent.toml."""
    place = Home(home)
    enrolment.check_new(place)
    address, there = address_of(url), enrolment.settings_there(place)
    check_way(address, plain_http or (there is not None and there.plain_http), "give --plain-http")
    consented = enrolment.run_patterns(runs if runs is not None else _asked(data) if there is None else [])
    card, called, columns = enrolment.chosen_gpu(gpu), enrolment.agent_name(name), enrolment.columns_of(column or [])
    if there is not None:
        enrolment.check_agrees(place, there, address, data, consented, columns, plain_http, card)
        consented = sorted({run for one in there.data.values() for run in one.runs})
        data = data or place.data_path(next(iter(there.data.values())))
    mapped = enrolment.well_known(data, columns) if there is None else {}
    path = str(data.expanduser().resolve()) if data else None
    settings = template(address, path, consented, plain_http, card, columns or mapped)
    believed = enrolment.coordinator_key(coordinator_key)
    answer = enrolment.enrol(place, address, enrolment.token_of(token, token_file, _typed_token), called, settings, believed, card)
    if as_json:
        say_json({"agent": answer.name, "agent_id": answer.agent_id, "settings": str(place.config), "runs": consented})
        return
    terminal.say(f"enrolled as {answer.name}; settings in {place.config}")
    for line in enrolment.next_steps(data, consented, home, mapped):
        terminal.say(line)


def _typed_token() -> str:
    if not _somebody_is_there():
        raise ConfigError("a token is needed: in FEDAGENT_TOKEN, in a file (--token-file, - is standard input), or by --token")
    return getpass("token from the operator (it is not shown): ")


def _asked(data: Path | None) -> list[str]:
    """The runs that may use the data, as a person says; nobody is there to ask: none."""
    if data is None or not _somebody_is_there():
        return []
    terminal.say(f"Which runs may use {data.name}? Names, with a space between them; * and ? are wildcards; nothing: none yet.")
    return input("runs: ").split()


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


@app.command()
def check(home: HomeOption = None, as_json: Json = False) -> None:
    """Test settings, device, data, coordinator and key; say what to do where something is wrong."""
    from fedcybgd.agent.check import check as look

    wrong, findings = 0, look(Home(home))
    if as_json:
        found = [asdict(finding) for finding in findings]
        say_json(found)
        wrong, findings = sum(finding["ok"] is False for finding in found), iter(())
    for finding in findings:
        mark = {True: Text("ok   ", "green"), False: Text("wrong", "red"), None: Text("note " if finding.note else "no   ", "dim")}[
            finding.ok
        ]
        terminal.print(mark, end=" ")
        terminal.say(f"{finding.what}: {one_line(finding.found)}")
        if finding.ok is False:
            wrong += 1
            terminal.say(f"      → {finding.advice}")
    if wrong:
        raise typer.Exit(Exit.FAILED)


@app.command()
def run(
    home: HomeOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    metrics: Annotated[
        int | None, typer.Option(help="Port on which this machine, and no other, can read metrics (Prometheus).", min=0, max=65535)
    ] = None,
    page: Annotated[
        int | None, typer.Option(help="Port of a page for this machine, and no other, that shows what the agent does.", min=0, max=65535)
    ] = None,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", help="For programs: stop when standard input ends, as it does with whoever started this.")
    ] = False,
) -> None:
    """Ask for work and do it, until SIGTERM or Ctrl-C."""
    from fedcybgd.agent.metrics import MetricsPort
    from fedcybgd.agent.page import PagePort
    from fedcybgd.agent.worker import Worker

    place = Home(home)
    config, rules = reaching.load(place)
    log_plainly(logging.DEBUG if verbose else logging.INFO, kind=config.log_format)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    mine = credentials.load(place)
    logs.always(agent=mine.name)
    raise_open_files()
    if until_eof:
        started.stop_at_eof()
    place.ready()
    with alone(place.lock, "an agent runs"):
        if page is not None:
            logging.getLogger("fedagent").info("page at %s", PagePort(page, place, mine).url)
        speak = partial(reaching.client, place, config, rules)
        keys.settle_in_time(place, speak)
        logging.getLogger("fedagent").info("agent %s asks %s for work", mine.name, config.coordinator)
        worker = Worker(place, config, speak(credentials.load(place)), Watchdog.of())
        if metrics is not None:
            logging.getLogger("fedagent").info("metrics at %s", MetricsPort(metrics, worker.metrics).url)
        worker.run()


@app.command()
def status(
    home: HomeOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it, until Ctrl-C.")] = False,
    exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code", help="For health checks: status 1 where its daemon does not run, or hangs; the coordinator is not asked."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """What the agent on this machine is doing: visit, step, speed, cache, errors, next contact; and what has left this machine, to whom."""
    from fedcybgd.agent import status as shown

    place = Home(home)
    mine = credentials.load(place)
    if not watch:
        view = shown.gathered(place, mine, None if exit_code else shown.asked(place, mine))
        if as_json:
            say_json(view.model_dump(mode="json"))
        else:
            terminal.parts(shown.parts(view))
        if exit_code and not view.well:
            raise typer.Exit(Exit.FAILED)
        return
    says, before = shown.asked(place, mine), None
    with nullcontext() if as_json else Live(console=terminal, auto_refresh=False) as live:
        for second in count(1):
            view = shown.gathered(place, mine, says)
            if live is not None:
                live.update(shown.draw(view), refresh=True)
            elif view != before:
                typer.echo(json.dumps(view.model_dump(mode="json")))
            before = view
            time.sleep(1)
            if second % ASKED_EVERY_S == 0:
                says = shown.asked(place, mine)


@app.command()
def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", dir_okay=False)] = Path("fedagent-report.json"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Write what somebody who helps wants to know into a file: no key, no token, no row, no path of this machine is in it."""
    from fedcybgd.agent import report as made

    size = made.write(Home(home), output, force)
    if as_json:
        say_json({"file": str(output), "bytes": size})
    else:
        terminal.say(f"{output}: {size:,} bytes. Look through it, then send it to whoever helps you")


@app.command()
def rotate_key(
    token: Annotated[str | None, typer.Option(envvar="FEDAGENT_TOKEN", help=f"{GIVEN} Only where the operator has made one.")] = None,
    token_file: TokenFile = None,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Get a new key under the same identity; the old one is void at once. Start the agent again afterwards.

    Where the operator has taken the old one away (fedcoord agents rotate), his token is needed.
    """
    place = Home(home)
    config, rules = reaching.load(place)
    mine = credentials.load(place)
    place.ready()
    with alone(place.lock, "an agent runs"):
        if token is not None or token_file is not None:
            given = enrolment.token_of(token, token_file, _typed_token)
            enrolment.enrol_again(place, reaching.client(place, config, rules, replace(mine, key=None, private_key=None)), given)
        else:
            speak = partial(reaching.client, place, config, rules)
            keys.settle(place, speak)
            keys.change(place, speak)
    if as_json:
        say_json({"agent": mine.name, "agent_id": mine.agent_id})
    else:
        terminal.say(f"agent {mine.name} has a new key")


@app.command()
def config(home: HomeOption = None, as_json: Json = False) -> None:
    """Show the settings in force, defaults included. They are JSON either way; with --json without colours."""
    settings, rules = reaching.load(Home(home))
    shown = {**settings.model_dump(mode="json"), "policy": rules.model_dump(mode="json")}
    if as_json:
        say_json(shown)
    else:
        terminal.print_json(json.dumps(shown))


@app.command()
def policy_file(home: HomeOption = None, as_json: Json = False) -> None:
    """Write a policy.toml with every rule and what it means, where there is none."""
    place = Home(home)
    place.ready()
    if place.policy.exists():
        raise ConfigError(f"{place.policy} is there already; `fedagent config` shows what is in force")
    credentials.write_whole(place.policy, policy.template(), 0o666)  # as any file that is made here: who runs the daemon may be another
    if as_json:
        say_json({"file": str(place.policy)})
        return
    terminal.say(f"{place.policy}: nothing is forbidden yet that was allowed before; take the # away from what should be in force")


def main() -> None:
    program.ended(app)


if __name__ == "__main__":
    main()
