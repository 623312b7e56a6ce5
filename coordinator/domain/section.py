"""What all sections of a run file have in common."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    # JSON, in which runs are kept and shown, has neither NaN nor infinity.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, field: ValidationInfo) -> Any:
        """`batch_size: yes` would be a batch of one."""
        if isinstance(value, bool) and field.field_name is not None:
            kinds = set(_kinds(cls.model_fields[field.field_name].annotation))
            if bool not in kinds and kinds & {int, float}:
                raise ValueError("must be a number; YAML reads yes, no, on and off as true and false")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a value may be of, those of a `Literal` with them."""
    yield annotation if isinstance(annotation, type) else type(annotation)
    for inner in get_args(annotation):
        yield from _kinds(inner)
