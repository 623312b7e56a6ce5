"""`fedcoord engine`: does jobs for coordinators, on a machine of its own."""

import os
import sys
from typing import Annotated

import typer

from fedcybgd.coordinator.commands.given import Home, SettingsInvalid, settings_of, without_effect
from fedcybgd.shared.host import started
from fedcybgd.shared.host.terminal import Terminal


def engine(
    lanes: Annotated[str | None, typer.Option(help="Which jobs to do: all, quick or slow (FEDCOORD_LANES).")] = None,
    home: Home = None,
    database_url: Annotated[str | None, typer.Option(help="The coordinators' postgresql://… (FEDCOORD_DATABASE_URL).")] = None,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", help="For programs: stop when standard input ends, as it does with whoever started this.")
    ] = False,
) -> None:
    """Do jobs of the coordinators on a database, on any machine that has their blobs. SIGTERM gives back what is under way; killed, another does it."""
    from fedcybgd.coordinator.elsewhere import work

    settings = settings_of(home=home, lanes=lanes, database_url=database_url)
    if not settings.own_lanes:
        raise SettingsInvalid("FEDCOORD_LANES is none: an engine with nothing to do; --lanes names what it is for")
    if until_eof:
        started.stop_at_eof()

    def ready() -> None:
        for line in without_effect(os.environ):
            Terminal().say(f"warning: {line}", "yellow")
        Terminal().say(f"engine for jobs of the lanes {', '.join(settings.own_lanes)}, blobs in {settings.storage or settings.blobs}")
        sys.stdout.flush()

    work(settings, ready)
