"""OpenAPI entries of the errors that routes answer with."""

from typing import Any

from fedcybgd.shared.contract.words import ErrorBody

Responses = dict[int | str, dict[str, Any]]


def errors(*statuses: int) -> Responses:
    """OpenAPI entries of the errors that a route can answer with."""
    titles = {
        400: "Malformed request",
        401: "No key, or a wrong one",
        403: "The key may not do this",
        404: "Not there",
        409: "Not possible in this state",
        413: "Too many bytes",
        422: "The content is wrong",
        429: "Too often: come back after `Retry-After` seconds",
        503: "Not now: ask again",
        507: "The coordinator's disk is full",
    }
    return {status: {"model": ErrorBody, "description": titles[status]} for status in statuses}
