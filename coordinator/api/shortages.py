"""What is answered while the machine has nothing to give: a full disk, no more open files, no memory. Asked again later it works."""

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from fedcybgd.coordinator.storage import StoreFull
from fedcybgd.coordinator.storage.full import FullDisks
from fedcybgd.shared.files.disk import says_full
from fedcybgd.shared.host.exhausted import says_exhausted
from fedcybgd.shared.host.rarely import Rarely

log = logging.getLogger("fedcoord")
_rarely = Rarely()


def answer_shortages(app: FastAPI) -> None:
    """Answer these in place of a traceback for each request: there may be many, on the very disk that is full."""
    app.add_exception_handler(StoreFull, _disk_full)
    app.add_exception_handler(OSError, _of_the_system)
    app.add_exception_handler(MemoryError, _of_the_system)


def _disk_full(request: Request, error: Exception) -> JSONResponse:
    disks: FullDisks = request.app.state.disks
    disks.say(error if isinstance(error, StoreFull) else StoreFull(str(error)))
    return _answer(507, "disk_full", "the coordinator's disk is full; what arrived is kept and nothing was lost, try again later")


def _of_the_system(request: Request, error: Exception) -> JSONResponse:
    if says_full(error):
        return _disk_full(request, error)
    if says_exhausted(error):
        if _rarely.is_due():
            log.error("this machine has nothing to give (%s); whoever asked tries again", str(error) or type(error).__name__)
        return _answer(503, "exhausted", "the coordinator's machine is out of memory or open files; nothing was changed. Ask again later")
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(500, "internal_error", "the coordinator failed at this request; its log says more. It is safe to repeat it")


def _answer(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"code": code, "message": message, "detail": {}}, status)
