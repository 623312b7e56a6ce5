"""Imported first by a command: Ctrl-C ends it without a word while the rest of it is being imported."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMANDS = ("fedcoord", "fedagent", "cli")
"""How our programs are called, `python -m coordinator.cli` too. Whoever imports a command for another reason keeps his Ctrl-C."""

if Path(sys.argv[0]).stem in COMMANDS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def heard() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again, which `main` turns into an exit status."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def at_the_end() -> Iterator[None]:
    """In here a request to end, or a terminal that goes away, is a Ctrl-C: whatever was begun is cleaned up."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def withheld() -> Iterator[None]:
    """Processes that are started in here never get Ctrl-C themselves: who started them ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
