"""What a run's model learns to do, and of what rows: one value from the run file to the training process."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fedcybgd.shared.contract.words import CLASSIFICATIONS, Task

LabelName = Annotated[str, StringConstraints(max_length=10_000)]


class TaskSpec(BaseModel):
    """A task with its labels and the length of its rows. A message or a job that is about one has these fields as its own."""

    model_config = ConfigDict(frozen=True)
    task: Task
    num_labels: int | None = Field(None, ge=1, le=100_000)
    label_names: list[LabelName] | None = Field(None, max_length=100_000)
    max_length: int = Field(ge=1, le=1 << 20, description="tokens a row or window at the most; means nothing for images")

    @property
    def is_classification(self) -> bool:
        return self.task in CLASSIFICATIONS
