"""The training process: reads commands from standard input, trains, and reports on standard output, one JSON object a line."""

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from fedcybgd.agent.messages import Command, TrainerEvent, TrainingOptions, TrainRequest
from fedcybgd.agent.sandbox.walls import Walls, dies_with_its_parent, raise_walls
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.host import imports
from fedcybgd.shared.host.machine import cores, limits
from fedcybgd.shared.host.plain_streams import speak_plainly

ALIVE_EVERY_S = 5.0
_speaking = threading.Lock()


def main(walls: Walls, parent: int, device: str, threads: int, memory_limit: int, card_limit: int, options: TrainingOptions) -> None:
    """Serve until standard input ends: when the daemon is gone, however it went, this process goes too."""
    dies_with_its_parent(parent)
    standing = raise_walls(walls)  # before there is a second thread, and before anything of others is imported
    out = os.fdopen(os.dup(1), "w", buffering=1)
    _say(out, TrainerEvent(event="walled", message=standing.text()))
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between our lines
    speak_plainly()
    # What asks a person (transformers may) finds nobody there: our lines are read from a copy.
    commands = os.fdopen(os.dup(0), "r")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    orders = Orders()
    threading.Thread(target=_listen, args=(commands, orders), daemon=True).start()
    busy = threading.Event()
    busy.set()  # to import torch may take long
    threading.Thread(target=_live, args=(out, busy), daemon=True).start()
    if memory_limit:
        _limit_memory(memory_limit)

    with imports.at_once():  # the collection after each visit need not look through it
        import torch

        from fedcybgd.agent.training.compute import choose_device, limit_card, precision_name
        from fedcybgd.agent.training.memory import give_back_memory
        from fedcybgd.agent.training.visitor import Visitor
        from fedcybgd.shared.models.assembly import import_model_code

        # More threads than a container has cores throttle each other.
        torch.set_num_threads(threads or min(torch.get_num_threads(), cores()))
        import_model_code()
    made: list[Visitor] = []

    def visitor() -> Visitor:
        if not made:
            made.append(Visitor(chosen := choose_device(device), options, _allowed(chosen, memory_limit, card_limit, limit_card)))
        return made[0]

    ready = TrainerEvent(event="ready")
    try:
        ready.device = f"{visitor().device}, {precision_name(visitor().device)}"
    except Exception as error:  # the first visit says what is wrong, and so does `fedagent check`
        ready.message = f"{type(error).__name__}: {error}"[:1500]
    busy.clear()
    _say(out, ready)
    while True:
        request = orders.requests.get()
        busy.set()
        event = _visit(visitor, request, out, lambda request=request: orders.unwanted(request))  # type: ignore[misc]
        if event.event == "failed":
            give_back_memory()  # while the error was there, so was what it came through
        _say(out, event)
        busy.clear()


class Orders:
    """What the daemon asked for. A stop is for one visit: it never touches a later one, however late it comes."""

    def __init__(self) -> None:
        self.requests: queue.Queue[TrainRequest] = queue.Queue()
        self._stopped: set[str | None] = set()

    def take(self, command: Command) -> None:
        if command.op == "stop":
            self._stopped.add(command.visit)
        elif command.request is not None:
            self.requests.put(command.request)

    def unwanted(self, request: TrainRequest) -> bool:
        return None in self._stopped or request.visit in self._stopped


def _listen(lines: TextIO, orders: Orders) -> None:
    for line in lines:
        orders.take(Command.model_validate_json(line))
    os._exit(0)


def _live(out: TextIO, busy: threading.Event) -> None:
    """Say during a visit, and before the first, that this process runs, also while a step takes long; and what it uses of the processor."""
    while True:
        busy.wait()
        time.sleep(ALIVE_EVERY_S)
        _say(out, TrainerEvent(event="alive", cpu_s=time.process_time()))


def _visit(visitor: Callable[[], Any], request: TrainRequest, out: TextIO, should_stop: Callable[[], bool]) -> TrainerEvent:
    return _outcome(visitor, request, out, should_stop).model_copy(update={"visit": request.visit})


def _outcome(visitor: Callable[[], Any], request: TrainRequest, out: TextIO, should_stop: Callable[[], bool]) -> TrainerEvent:
    from fedcybgd.agent.training.errors import Stopped
    from fedcybgd.agent.training.failures import failure_of

    at: list[Progress] = []

    def report(progress: Progress) -> None:
        at[:] = [progress]
        _say(out, TrainerEvent(event="progress", visit=request.visit, progress=progress))

    try:
        return TrainerEvent(event="done", metrics=visitor().visit(request, report, should_stop))
    except Stopped:
        return TrainerEvent(event="stopped")
    except Exception as error:
        # Whatever it is: the process lives, and says what happened and where.
        event = failure_of(error, at[-1] if at else None)
        if event.reason != "disk_full":  # which may be that of the log, and is no riddle
            traceback.print_exc()
        return event


def _allowed(chosen: str, memory_limit: int, card_limit: int, limit_card: Callable[[int], None]) -> int:
    """What a visit is planned with, of the card or else of this machine, in bytes; 0: whatever there is."""
    if chosen == "cuda":
        if card_limit:
            limit_card(card_limit)
        return card_limit
    # A container's limit counts as the owner's does, though only the latter is set on this process.
    return min((n for n in (memory_limit, limits().memory_bytes) if n), default=0)


def _limit_memory(limit: int) -> None:
    # Private memory; shards count too, for they are mapped writable, though nobody writes to them.
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _say(out: TextIO, event: TrainerEvent) -> None:
    with _speaking:
        out.write(event.model_dump_json(exclude_none=True) + "\n")
        out.flush()


if __name__ == "__main__":
    _device, _threads, _limit, _card, _options, _walls, _parent = sys.argv[1:]
    main(
        Walls.model_validate_json(_walls),
        int(_parent),
        _device,
        int(_threads),
        int(_limit),
        int(_card),
        TrainingOptions.model_validate_json(_options),
    )
