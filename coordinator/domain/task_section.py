"""What a run's model learns to do: the task section of a run file."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fedcybgd.coordinator.domain.section import Section
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.words import CLASSIFICATIONS, Task
from fedcybgd.shared.files.labels import check_names

GIVEN = "given"
"""The context in which a run file is read that somebody gives; runs that were made before there was a rule are read without it."""


class TaskSection(Section):
    kind: Task = Field(description="what the model learns to do")
    labels: Annotated[int, Field(ge=2, le=100_000)] | list[str] | None = Field(None, description="how many labels, or their names in order")
    max_length: int = Field(
        128, ge=2, le=1_000_000, description="tokens of a row (longer ones are cut) or of a window of text; not for images"
    )

    @property
    def is_classification(self) -> bool:
        return self.kind in CLASSIFICATIONS

    @property
    def num_labels(self) -> int | None:
        return len(self.labels) if isinstance(self.labels, list) else self.labels

    @property
    def label_names(self) -> list[str] | None:
        return self.labels if isinstance(self.labels, list) else None

    @property
    def spec(self) -> TaskSpec:
        """The task as jobs and agents are told it."""
        return TaskSpec(task=self.kind, num_labels=self.num_labels, label_names=self.label_names, max_length=self.max_length)

    @field_validator("labels")
    @classmethod
    def _names_can_be_told_apart(cls, labels: int | list[str] | None, given: ValidationInfo) -> int | list[str] | None:
        if given.context == GIVEN and isinstance(labels, list) and len(set(labels)) == len(labels):
            check_names(labels)
        return labels

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> "TaskSection":
        if self.is_classification and self.labels is None:
            raise ValueError(f"{self.kind} needs `labels`: how many there are, or their names")
        if self.kind == "image-classification" and self.max_length != TaskSection.model_fields["max_length"].default:
            raise ValueError("`max_length` means nothing for image-classification: an image has as many tokens as the model makes of it")
        if not self.is_classification and self.labels is not None:
            raise ValueError(f"{self.kind} has no labels")
        if isinstance(self.labels, list) and (len(set(self.labels)) != len(self.labels) or len(self.labels) < 2):
            raise ValueError("`labels` must name at least two different labels")
        return self
