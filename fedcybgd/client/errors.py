"""Errors of the client.

FedError (shared)
└── ClientError
    ├── CoordinatorAway     no answer, or one of something that stands before the coordinator: later it may be another
    ├── Refused             the coordinator said no; the code is its own
    ├── BodyLimited         a proxy takes no body of that size
    ├── AnswerInvalid       the answer is not what a coordinator of this version gives
    ├── KeyInvalid          the operator's key is missing, or is none
    ├── TimedOut            what was waited for did not come
    ├── ModelFailed         a model could not be added
    ├── RunStopped          a run was not prepared, or ended otherwise than it was waited for
    ├── DirectoryTaken      an export would be written over something else
    ├── FileUnusable        a file or directory of this machine cannot be read or written, or arrived damaged
    ├── PackageMissing      a package of an extra is not installed; the message names the extra
    └── TrackerFailed       TensorBoard, MLflow or Weights & Biases does not take what is written
"""

from typing import Any

from fedcybgd.shared.contract.errors import FedError


class ClientError(FedError):
    """Every error of the client: `code` for programs, `message` for people, `detail` with more."""

    code = "client_error"


class CoordinatorAway(ClientError):
    code = "coordinator_away"


class Refused(ClientError):
    """What the coordinator answered instead: `code`, `message` and `detail` are its own, `status` is that of HTTP."""

    def __init__(self, status: int, code: str, message: str, detail: dict[str, Any]) -> None:
        super().__init__(message)
        self.status, self.code, self.detail = status, code, detail

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class BodyLimited(ClientError):
    code = "proxy_body_limit"


class AnswerInvalid(ClientError):
    code = "answer_invalid"


class KeyInvalid(ClientError):
    code = "key_invalid"


class TimedOut(ClientError):
    code = "timed_out"


class ModelFailed(ClientError):
    code = "model_failed"


class RunStopped(ClientError):
    code = "run_stopped"


class DirectoryTaken(ClientError):
    code = "directory_taken"


class FileUnusable(ClientError):
    code = "file_unusable"


class PackageMissing(ClientError):
    code = "extra_missing"


class TrackerFailed(ClientError):
    code = "tracker_failed"
