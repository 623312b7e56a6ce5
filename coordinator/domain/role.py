"""What operators may do: each role may do what those before it may, and more."""

from enum import StrEnum


class Role(StrEnum):
    VIEWER = "viewer"
    """sees everything but secrets, changes nothing"""
    OPERATOR = "operator"
    """adds models, steers runs, exports, revokes agents"""
    OWNER = "owner"
    """makes operators, keys and tokens, and takes them back"""

    def may_act_as(self, needed: "Role") -> bool:
        order = list(Role)
        return order.index(self) >= order.index(needed)
