"""FedCyBGD: federated fine-tuning of all parameters of a language model, one block at a time.

    from fedcybgd import Agent, Client, Coordinator

What a program starts and steers it with. Importing this costs nothing: each name is loaded when it is first used.
"""

TYPE_CHECKING = False  # as in `typing`, which would be imported before a command hears Ctrl-C
if TYPE_CHECKING:
    from fedcybgd.client.client import Client
    from fedcybgd.coordinator.domain.run_file import RunFile
    from fedcybgd.local.agent import Agent
    from fedcybgd.local.coordinator import Coordinator
    from fedcybgd.shared.contract.errors import FedError

__all__ = ["Agent", "Client", "Coordinator", "FedError", "RunFile"]

_PLACES = {
    "Agent": "fedcybgd.local.agent",
    "Client": "fedcybgd.client.client",
    "Coordinator": "fedcybgd.local.coordinator",
    "FedError": "fedcybgd.shared.contract.errors",
    "RunFile": "fedcybgd.coordinator.domain.run_file",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
