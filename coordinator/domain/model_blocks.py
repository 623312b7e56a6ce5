"""Blocks as they are stored: of an added model, and of a run at its start."""

from pydantic import BaseModel


class TensorShape(BaseModel):
    name: str
    shape: list[int]
    linear: bool = False
    """whether it is a matrix that the run file means by `corrections.matrices`"""


class StoredBlock(BaseModel):
    """A block of an added model, or of a run at its start."""

    name: str
    kind: str
    digest: str
    size: int
    num_parameters: int
    tensors: list[TensorShape]
    """Of an added model: all of them; of a run: those that can be trained."""
