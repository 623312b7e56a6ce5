"""Errors of processes that a program starts.

FedError (shared)
└── LocalError              local_error
    ├── NotStarted          a process did not come up; the code is its own where it said one, else `not_started`
    ├── ProcessEnded        a process is not there any more
    ├── SettingUnknown      the coordinator has no setting of that name
    ├── ExtraMissing        the packages of a coordinator are not installed
    ├── KeyUnknown          the home has no operator.key, and the program was not told a key
    └── SplitInvalid        rows cannot be dealt out as it was said
"""

from fedcybgd.shared.contract.errors import FedError


class LocalError(FedError):
    code = "local_error"


class OfProcess(LocalError):
    """`log` has the last lines that the process wrote."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message, log=log)
        self.log = log

    def __str__(self) -> str:
        return self.message if self.message in self.log or not self.log else f"{self.message}\n{self.log}"


class NotStarted(OfProcess):
    code = "not_started"

    def __init__(self, message: str, log: str, code: str | None = None) -> None:
        super().__init__(message, log)
        self.code = code or self.code


class ProcessEnded(OfProcess):
    code = "process_ended"


class SettingUnknown(LocalError):
    code = "setting_unknown"


class ExtraMissing(LocalError):
    code = "extra_missing"


class KeyUnknown(LocalError):
    code = "operator_key_unknown"


class SplitInvalid(LocalError):
    code = "split_invalid"
    usage = True
