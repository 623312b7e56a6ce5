"""How a visit can end without a delta."""

from fedcybgd.shared.contract.errors import FedError


class NonFinite(Exception):
    """The loss or a gradient became NaN or infinite; the step was not taken."""


class Stopped(Exception):
    """The daemon asked to stop."""


class PolicyBroken(FedError):
    """The visit is against the owner's policy, as its rows and tensors show."""

    code = "policy_refused"


class DiskFilled(FedError):
    """The pixels of the rows take more of the disk than limits.disk_gb leaves them."""

    code = "disk_limit"


class OptimizerMissing(FedError):
    """An optimizer whose library is not installed here."""

    code = "optimizer_missing"


class DeviceMissing(FedError):
    """The device that agent.toml asks for is not one that torch can use here."""

    code = "device_missing"
