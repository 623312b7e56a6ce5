"""Much that is imported at once: nothing that nobody uses, and without looking for garbage meanwhile."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("accelerate", "scipy")
"""What transformers imports wherever it is installed, and we need for nothing: a tenth of what the start of an engine or training process takes."""


@contextmanager
def at_once() -> Iterator[None]:
    """What is imported in here stays: no collection of garbage looks through it, neither meanwhile, a fifth of the time, nor later.

    What is `UNUSED` and not yet imported seems not to be installed in here, to transformers for as long as the process lives; where it was
    imported before, it may have found them, and counts on them.
    """
    hidden = [name for name in UNUSED if name not in sys.modules and "transformers" not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: it cannot be imported, and is not found
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        gc.enable()
