"""Which version of the protocol is spoken, and who understands whom.

The first number is that of `/v1`: another one is not understood. The second rises with every field, word or route that is added, so both sides
understand any second number: what is new is left out by whoever does not know it, and has a default for whoever does not send it.
"""

import re
from typing import Any, NamedTuple

from pydantic import ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

VERSION = "FedCyBGD-Version"
"""Heading of every request and every answer: the version that its sender speaks."""


class Version(NamedTuple):
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


SPOKEN = Version(1, 9)
SIGNING = Version(1, 2)
"""From this one on a coordinator takes public keys."""
LABEL_SKEW = Version(1, 3)
"""From this one on an agent knows `train.label_skew`; an earlier one would leave it out, and train by another loss than the others."""
ADAPTERS = Version(1, 4)
"""From this one on an agent knows models with adapters; an earlier one could not make them."""
CORRECTIONS = Version(1, 5)
"""From this one on an agent knows `train.corrections`; an earlier one would leave them out, and send a delta without them."""
SMOOTHED = Version(1, 6)
"""From this one on an agent knows `label_skew: smoothed` and `train.head_start`; an earlier one would refuse the first and leave out the second."""
TRAINED_IN_8_BITS = Version(1, 8)
"""From this one on an agent trains a block that it got in 8 bits; an earlier one fails at it."""
FROM_NEWER = "from newer"
"""The context of validation for what an agent of a later version says."""


def read(heading: str | None) -> Version:
    """The version in a heading; without one, that of agents before there was one. Raises `ValueError`."""
    if heading is None:
        return Version(SPOKEN.major, 0)
    if not re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", heading):
        raise ValueError(f"{heading[:40]!r} is no version: two numbers with a point between them, as in {SPOKEN}")
    major, minor = heading.split(".")
    return Version(int(major), int(minor))


def or_else(fallback: Any) -> WrapValidator:
    """Of a later version, a value that is not known here is taken as `fallback`."""

    def known(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return handler(value)
        except ValidationError:
            if info.context != FROM_NEWER:
                raise
            return fallback

    return WrapValidator(known)
