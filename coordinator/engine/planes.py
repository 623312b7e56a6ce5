"""The arithmetic of the lossless coding by numpy, which lets go of the interpreter meanwhile."""

import numpy as np

from fedcybgd.shared.files.byte_planes import Arithmetic
from fedcybgd.shared.files.lossless import PackedError


def split(data: bytes, width: int) -> list[bytes]:
    return [data] if width == 1 else [plane.tobytes() for plane in np.frombuffer(data, np.uint8).reshape(-1, width).T]


def subtract(new: bytes, old: bytes) -> bytes:
    if len(new) != len(old):
        raise PackedError("the base of the patch is shorter than the patch")
    return np.subtract(np.frombuffer(new, np.uint8), np.frombuffer(old, np.uint8), dtype=np.uint8).tobytes()


def add(patch: bytes, old: bytes) -> bytes:
    return np.add(np.frombuffer(patch, np.uint8), np.frombuffer(old, np.uint8), dtype=np.uint8).tobytes()


BY_NUMPY = Arithmetic(split, subtract, add)
