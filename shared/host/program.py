"""How both programs end: errors that we know are one line for a person, the rest keep their traceback."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.words import problem_in_words
from fedcybgd.shared.host import interrupt
from fedcybgd.shared.host.exits import Exit
from fedcybgd.shared.host.terminal import Terminal

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class DocstringsLeftOut(FedError):
    """Python was told to leave docstrings out, and transformers makes its classes of them."""

    code = "docstrings_left_out"


@contextmanager
def options_in_words() -> Iterator[None]:
    """What is wrong with an option of a command line is said in our words meanwhile."""
    try:
        yield
    except Exception as error:
        if isinstance(error.__cause__, ValidationError) and hasattr(error, "message"):
            error.message = problem_in_words(error.__cause__.errors()[0])
        raise


def ended(app: Callable[[], object]) -> None:
    """Do what the command line says."""
    interrupt.heard()
    _write_whatever_it_is()
    try:
        try:
            if sys.flags.optimize > 1:
                raise DocstringsLeftOut("Python leaves docstrings out (-OO, PYTHONOPTIMIZE=2), which transformers needs; -O is all right")
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except FedError as error:
        _fail(f"{error.message} [{error.code}]", Exit.USAGE if error.usage else Exit.FAILED)
    except BrokenPipeError:
        _give_up_output()
        sys.exit(Exit.FAILED)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        if error.filename is None:
            _give_up_output()
        _fail(f"{error.filename or 'standard output'} has no room for what is to be written: {error.strerror} [disk_full]")
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:
        if not _was_interrupted(error):
            raise
        sys.exit(Exit.INTERRUPTED)


def _write_whatever_it_is() -> None:
    """In an encoding that lacks a character (ISO 8859-1, code page 1252) that is written as its number: it ends no command."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether this came of Ctrl-C: what was under way failed as it was put away."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _give_up_output() -> None:
    """Else Python tries once more at its end, and says so in its own words."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(why: str, status: Exit = Exit.FAILED) -> None:
    Terminal(stderr=True).say(f"error: {why}", "red")
    sys.exit(status)
