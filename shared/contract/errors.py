"""Errors that both sides may raise.

FedError                    code, message and what to do
├── HeaderError             a safetensors file whose header cannot be trusted
├── DataError               rows that cannot be read or do not fit the task
│   └── DataAway            rows that the disk or the network does not give at present
└── PartitionError          a model that cannot be split into blocks
"""

from typing import Any


class FedError(Exception):
    """An error with a stable `code`, a message for a person, and `detail` for a program."""

    code = "error"
    usage = False
    """whether a command line is wrong, and nothing was tried"""

    def __init__(self, message: str, **detail: Any) -> None:
        # A name of a file or of a column may hold half a character, which nobody can send or store.
        message = message if message.isascii() else message.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        super().__init__(message)
        self.message = message
        self.detail = detail


class HeaderError(FedError):
    code = "safetensors_invalid"


class DataError(FedError):
    code = "data_invalid"


class DataAway(DataError):
    code = "data_away"


class PartitionError(FedError):
    code = "model_not_partitionable"
