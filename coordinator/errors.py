"""Errors of the coordinator. Each is a class beside the rule it guards, with a stable code and an HTTP status.

FedError (shared)                       what both sides know
└── CoordinatorError                    status 400
    ├── NotFound                        404  no such run, agent, model, assignment, file
    ├── Unauthorized                    401  no key, or a wrong one
    ├── Forbidden                       403  a valid key that may not do this
    ├── Conflict                        409  not in this state
    │   └── domain: InvalidTransition, StaleAttempt, LeaseLost
    ├── Invalid                         422  the content is wrong
    │   ├── OptionInvalid       of a command line
    │   └── domain: DeltaRefused
    ├── TooLarge                        413  more bytes than announced beforehand
    ├── storage: BlobMissing 404, BlobCorrupt 422, BlobDamaged 503, StoreFull 507, StorageAway 503
    └── db: DatabaseAway 503
"""

from collections.abc import Mapping

from fedcybgd.shared.contract.errors import FedError


class CoordinatorError(FedError):
    code = "bad_request"
    status = 400
    headers: Mapping[str, str] | None = None
    """of the answer"""


class NotFound(CoordinatorError):
    code = "not_found"
    status = 404


class Unauthorized(CoordinatorError):
    code = "unauthorized"
    status = 401


class Forbidden(CoordinatorError):
    code = "forbidden"
    status = 403


class Conflict(CoordinatorError):
    code = "conflict"
    status = 409


class Invalid(CoordinatorError):
    code = "invalid"
    status = 422


class OptionInvalid(Invalid):
    """What was given on a command line."""

    usage = True


class TooLarge(CoordinatorError):
    code = "too_large"
    status = 413
