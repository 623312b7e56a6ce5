"""What is wrong with a field is said in words, where pydantic says it in regular expressions and names of classes."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from fedcybgd.coordinator.domain.run_file import RunFileInvalid, parse_run_file
from fedcybgd.shared.contract.words import Id, Name, problem_in_words


class Named(BaseModel, extra="forbid"):
    name: Name = "a"
    id: Id = "run_0123456789abcdef"
    odd: int = 1
    size: int = Field(1, ge=1, lt=2**53)
    share: float = Field(0.5, gt=0, le=0.5, allow_inf_nan=False)
    kind: Literal["cpu", "cuda"] = "cpu"
    sure: bool = True
    parts: Annotated[dict[str, int], Field(min_length=1)] = {"a": 1}
    pair: Annotated[list[str], Field(min_length=2)] = ["a", "b"]

    @field_validator("odd")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("it is even")
        return value


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "zwei Wörter", "a name has letters of A to Z and a to z, digits, and . _ - (not first), 100 at the most"),
        ("odd", 2, "it is even"),
        ("parts", {}, "has nothing in it, and needs at least 1"),
        ("pair", ["a"], "has 1 in it, and needs at least 2"),
        ("id", "x", "is no id: one is a word, _ and 16 digits of 0-9 and a-f, as the lists show them"),
        ("id", 7, "must be text"),
        ("id", "run_\udcff", "must be text in UTF-8"),
        ("size", "many", "must be a whole number"),
        ("size", 1.5, "must be a whole number"),
        ("size", 0, "must be 1 or more"),
        ("size", 2**53, "must be less than 9007199254740992"),
        ("share", 0, "must be more than 0"),
        ("share", 0.6, "must be 0.5 or less"),
        ("share", float("inf"), "must be a number that is not infinite"),
        ("share", "half", "must be a number"),
        ("kind", "gpu", "must be 'cpu' or 'cuda'"),
        ("sure", "perhaps", "must be true or false"),
        ("parts", "a", "must be fields with their values"),
        ("pair", "a", "must be a list"),
        ("more", 1, "is not known"),
    ],
)
def test_it_is_what_a_person_would_say(field: str, value: object, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Named.model_validate({field: value})
    assert [problem_in_words(problem) for problem in caught.value.errors()] == [said]


def test_a_run_file_says_what_a_name_is() -> None:
    with pytest.raises(RunFileInvalid, match=r"name: a name has letters of A to Z.*not 'my run'"):
        parse_run_file("name: my run\nmodel: m\ntask: {kind: causal-lm}\n")


def test_nothing_else_passes_on_what_pydantic_says() -> None:
    files = [path for folder in ("agent", "coordinator", "shared", "fedcybgd/client") for path in Path(folder).rglob("*.py")]
    assert [str(path) for path in files if '["msg"]' in path.read_text().replace("'", '"')] == ["shared/contract/words.py"]
