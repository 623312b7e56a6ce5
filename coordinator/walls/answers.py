"""An error as an answer over HTTP, with the headings that its status asks for."""

from starlette.responses import JSONResponse

from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.shared.contract.errors import FedError


def answer(status: int, code: str, message: str, detail: dict[str, object] | None = None, **headings: str) -> JSONResponse:
    if status == 401:
        headings["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"code": code, "message": message, "detail": detail or {}}, status, headings)


def answer_of(error: FedError) -> JSONResponse:
    status = error.status if isinstance(error, CoordinatorError) else 422
    wait = error.detail.get("retry_after_s")
    headings = {} if wait is None else {"Retry-After": str(wait)}
    if isinstance(error, CoordinatorError):
        headings |= error.headers or {}
    return answer(status, error.code, error.message, error.detail, **headings)
