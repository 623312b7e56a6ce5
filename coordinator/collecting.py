"""When Python looks for garbage in the web process: by the clock, so that nobody waits long for it, however many agents wait."""

import asyncio
import gc
import time

EVERY_S = 0.25
"""Between two looks through what was made since the last one"""
SOME = 1000
"""New objects, fewer of which are left for the next look"""
ALL_EVERY_S, SHARE = 600.0, 0.001
"""Between two looks through everything: at least so long, and so long that they take no more than this part of the time"""
NET = (200_000, 50, 1_000)
"""New objects before Python looks by itself, should the event loop stand still"""


async def collect() -> None:
    """Until it is cancelled. What was there before, code for the most part, stays for good and is not looked through.

    By count, as Python has it, a look is at once seldom and long: ten thousand claims come and go, so that hardly more objects are made than
    freed, and then all that wait are looked through while everybody waits, for up to a second. By the clock each is looked through once, when
    it is new, and is freed when nobody refers to it any more, as most are.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*NET)
    all_at = time.monotonic() + ALL_EVERY_S
    while True:
        await asyncio.sleep(EVERY_S)
        began = time.monotonic()
        if began >= all_at:
            gc.collect()
            ended = time.monotonic()
            all_at = ended + pause_s(ended - began)
        elif gc.get_count()[0] >= SOME:
            gc.collect(1)


def pause_s(took_s: float) -> float:
    """How long after a look through everything the next one may come."""
    return max(ALL_EVERY_S, took_s / SHARE)
