"""Every message of `/v1` that agents say or hear, and every line between daemon and training process, is as it was frozen.

A sample has two forms: `full` has every field, `least` only those that the first version of the message needed. A field that is added goes
into `full`; nothing in `least` ever changes: it is what an agent, or a coordinator, of an earlier version still sends.
"""

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fedcybgd.agent import messages
from fedcybgd.shared import contract
from fedcybgd.shared.contract import manifests, task, words
from fedcybgd.shared.contract.versions import FROM_NEWER

SAMPLES = Path(__file__).parent / "samples"
# What operators say and get no agent meets, and tests/wire/openapi.json holds it; base classes are no messages.
OF_OPERATORS = {
    "operators", "starting", "views", "explanations", "run_views", "comparison", "plans", "run_file", "measured", "provenance", "model_uploads",
}  # fmt: skip
BASES = {words.Message, words.AgentMessage, manifests.Ref, task.TaskSpec}


def messages_of_the_wire() -> dict[str, type[BaseModel]]:
    modules = [
        importlib.import_module(f"{contract.__name__}.{i.name}")
        for i in pkgutil.iter_modules(contract.__path__)
        if i.name not in OF_OPERATORS
    ]
    found = [
        value
        for module in (*modules, messages)
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return {kind.__name__: kind for kind in found if issubclass(kind, BaseModel) and kind not in BASES}


MODELS = messages_of_the_wire()
every_message = pytest.mark.parametrize("name", sorted(MODELS))
what_agents_say = pytest.mark.parametrize("name", sorted(n for n, kind in MODELS.items() if issubclass(kind, words.AgentMessage)))


def sample(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((SAMPLES / f"{name}.json").read_text())
    return found


def test_every_message_has_a_sample_and_no_other() -> None:
    assert len(MODELS) > 35, "the test looks in the wrong place"
    assert {path.stem for path in SAMPLES.iterdir()} == set(MODELS), "write tests/wire/samples/NAME.json, with `full` and `least`"


@every_message
def test_a_sample_is_read_and_written_as_it_was(name: str) -> None:
    full = sample(name)["full"]
    assert set(full) == set(MODELS[name].model_fields), "a field that is added goes into `full`"
    read = MODELS[name].model_validate_json(json.dumps(full))
    assert json.loads(read.model_dump_json()) == full
    assert all(getattr(read, n) != field.get_default(call_default_factory=True) for n, field in MODELS[name].model_fields.items()
               if not field.is_required() and n != "state")  # fmt: skip


@every_message
def test_what_the_first_version_sent_is_still_understood(name: str) -> None:
    least = sample(name)["least"]
    read = MODELS[name].model_validate_json(json.dumps(least))
    assert json.loads(read.model_dump_json(exclude_unset=True)) == least


@every_message
def test_what_is_left_out_of_the_least_form_has_a_default(name: str) -> None:
    required = {n for n, field in MODELS[name].model_fields.items() if field.is_required()}
    assert required <= set(sample(name)["least"]), "a field that is added needs a default: others do not send it yet"


# Daemon and training process are always of one version.
@pytest.mark.parametrize("name", sorted(n for n, kind in MODELS.items() if kind.__module__ != messages.__name__))
def test_fields_of_a_later_version_are_left_out_at_any_depth(name: str) -> None:
    kind, full = MODELS[name], sample(name)["full"]
    text = json.dumps(grown(full))
    if issubclass(kind, words.AgentMessage):
        with pytest.raises(ValidationError, match="extra_forbidden"):
            kind.model_validate_json(text)
        read = kind.model_validate_json(text, extra="ignore", context=FROM_NEWER)
    else:
        read = kind.model_validate_json(text)
    known = json.loads(read.model_dump_json())
    if "detail" in known:  # a bag for programs, kept whole
        known["detail"].pop("later")
    assert known == full


def grown(value: Any) -> Any:
    """`value` with a field that nobody knows in every object."""
    if isinstance(value, list):
        return [grown(item) for item in value]
    return {**{key: grown(item) for key, item in value.items()}, "later": [{"than": "today"}]} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("name", "place", "taken_as"),
    [
        ("ReturnRequest", ["reason"], "other"), ("RunReadiness", ["reason"], None), ("Progress", ["trouble", "code"], None),
        ("RenewRequest", ["progress", "phase"], None), ("RenewRequest", ["progress", "trouble", "code"], None),
    ],
)  # fmt: skip
def test_words_of_a_later_version_are_taken_as_others(name: str, place: list[str], taken_as: str | None) -> None:
    said = sample(name)["full"]
    inner = said
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = "a_word_of_tomorrow"
    with pytest.raises(ValidationError):
        MODELS[name].model_validate_json(json.dumps(said))
    read = MODELS[name].model_validate_json(json.dumps(said), extra="ignore", context=FROM_NEWER).model_dump(mode="json")
    assert any(read is not None and found == taken_as for found in walked(read, place))


def walked(value: Any, place: list[str]) -> list[Any]:
    """The values on the way to `place`; the way may end early."""
    found = []
    for key in place:
        value = value[key] if isinstance(value, dict) else None
        found.append(value)
    return found


@what_agents_say
def test_every_word_of_an_agent_has_another_it_can_be_taken_as(name: str) -> None:
    """An enumeration without one would be 422 for a later agent; `phase` and `code` are dropped with what they are in."""
    words_of = {n for n, prop in MODELS[name].model_json_schema()["properties"].items() if "enum" in str(prop)}
    assert words_of <= {"ReturnRequest": {"reason"}, "RunReadiness": {"reason"}, "Progress": {"phase"}, "Trouble": {"code"}}.get(
        name, set()
    )


def test_the_headings_have_the_names_that_they_had() -> None:
    from fedcybgd.shared.contract import versions

    assert json.loads((SAMPLES.parent / "headings.json").read_text()) == {
        "coordinator": words.COORDINATOR, "offers": words.OFFERS, "version": versions.VERSION, "api": words.API, "wait": words.WAIT,
    }  # fmt: skip
    assert versions.SPOKEN.major == 1
