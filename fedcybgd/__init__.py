"""FedCyBGD: federated fine-tuning of all parameters of a language model, one block at a time.

    from fedcybgd import Client

What a program steers a coordinator with. Importing this costs nothing: each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedcybgd.client.client import Client
    from fedcybgd.coordinator.domain.run_file import RunFile
    from fedcybgd.shared.contract.errors import FedError

__all__ = ["Client", "FedError", "RunFile"]

_PLACES = {
    "Client": "fedcybgd.client.client",
    "FedError": "fedcybgd.shared.contract.errors",
    "RunFile": "fedcybgd.coordinator.domain.run_file",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
