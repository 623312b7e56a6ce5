"""What a model says of one row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """What does not go for the task is None."""

    label: int | None = None
    probability: float | None = None
    loss: float | None = None
    """nats a token, of what is predicted of the row; None also where that is nothing"""
    tokens: int | None = None
    """predicted ones, or those that a prompt is gone on by"""
    continuation: str | None = None
    answer: str | None = None
    """the part of the context that answers the question"""
    margin: float | None = None
    """logits by which the answer is surer than that there is none; below 0 the model would rather say nothing"""
