"""Imported last by the process that engines are forked from, and by nobody else: what takes seconds is then done for all of them.

What goes wrong here goes wrong in the engine again, where somebody hears of it; here it would end the process. Who is asked to end
meanwhile does not wait for it, so it looks itself whether its coordinator is still there.
"""

import atexit
import os
import signal
import sys
from contextlib import suppress

from fedcybgd.coordinator.engine.entries import import_all
from fedcybgd.shared.host.plain_streams import speak_plainly

LOOK_EVERY_S = 0.1
COORDINATOR = "ENGINES_OF"
"""In the environment: its process id. Whoever looks for its parent may have lost it already."""


def look(*_: object) -> None:
    """End if the coordinator has: an engine that it asked for last would find nothing of what it was given."""
    if str(os.getppid()) != os.environ.get(COORDINATOR):
        os._exit(0)


if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    before = signal.signal(signal.SIGALRM, look)  # no thread: what is forked has none
    signal.setitimer(signal.ITIMER_REAL, LOOK_EVERY_S, LOOK_EVERY_S)
    speak_plainly()
    with suppress(Exception):
        import_all()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    look()
    atexit.register(os._exit, 0)  # it has nothing to put away, and to take torch apart takes as long as to import it
