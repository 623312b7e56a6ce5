"""Imported by the process that engines are forked from, and by nobody else: what takes seconds is then done for all of them.

What goes wrong here goes wrong in the engine again, where somebody hears of it; here it would end the process.
"""

import atexit
import os
from contextlib import suppress

from fedcybgd.coordinator.engine.entries import import_all

with suppress(Exception):
    import_all()
atexit.register(os._exit, 0)  # it has nothing to put away, and to take torch apart takes as long as to import it
