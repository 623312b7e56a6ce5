"""What ends by itself unless somebody goes on with it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def renewed(every_s: float, renew: Callable[[], None]) -> Iterator[None]:
    """Meanwhile `renew` is called every so many seconds, in a thread of its own. Whatever hinders it once is left to the next time."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(every_s):
            with suppress(Exception):
                renew()

    renewing = threading.Thread(target=go_on, name="renewing", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
