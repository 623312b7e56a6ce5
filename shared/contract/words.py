"""The words that messages are made of: names, ids, codecs, and the body of an error."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from fedcybgd.shared.contract.plain import PlainText

API = "/v1"
MAX_WAIT_S = 60.0
OFFERS = "FedCyBGD-Offers"
"""Heading of the answer to a claim; another value means that there are other runs, of which the agent should say whether its data fit."""
WAIT = "FedCyBGD-Wait"
"""Heading of the answer to a claim that got nothing: for how many seconds the next one is to wait."""
COORDINATOR = "FedCyBGD-Coordinator"
"""Heading of every answer: the id that the coordinator's database got when it was made."""
DAEMON = "FedCyBGD-Daemon"
"""Heading of what a daemon asks: a random word that it takes at its start. Two that take turns are two copies of one agent's home."""
ELSEWHERE = "FedCyBGD-Elsewhere"
"""Heading of a request for a shard: whoever asks may be sent to another host for it (307)."""
ACCEL = "FedCyBGD-Accel"
"""Heading that a reverse proxy adds which sends files by itself where an answer names them (X-Accel-Redirect)."""
SITE_CACHE = "FedCyBGD-Cache"
"""Heading of an answer of a site cache: `asked`, where the coordinator was asked whether this agent may have it."""
NEXT = "FedCyBGD-Next"
"""Heading of a page of a list: `after` for the next one. The last page has none."""
MOST_STEPS = 100_000
"""Local steps of a visit: an agent takes no visit that has more."""
SHARD_CODECS = "exact, int8, int4 and pruned:N (N percent of the width removed, 1 to 90)"


def _known_codec(text: str) -> str:
    if not re.fullmatch(r"exact|int8|int4|pruned:([1-9]|[1-8][0-9]|90)", text):
        raise ValueError(f"unknown codec {text!r}; known are {SHARD_CODECS}")
    return text


Codec = Annotated[str, AfterValidator(_known_codec)]
"""How a block travels and is held. A dropped block has no shard; the manifest lists it."""
DeltaCodec = Literal["float32", "bfloat16", "int8", "int4"]
"""How a delta travels."""
Optimizer = Literal["adamw", "adamw-8bit"]
LabelSkew = Literal["none", "mask", "logit_adjustment", "smoothed", "fedlc"]
"""What the training loss of a classifier does about labels that an agent has few rows of, or none."""
HeadStart = Literal["fresh", "class_means"]
"""What a classifier's fresh head begins as: as the model draws it, or at the means of what the model makes of the rows of each label."""
CorrectedLayers = Literal["all", "above"]
Task = Literal["text-classification", "causal-lm", "image-classification", "extractive-qa"]
CLASSIFICATIONS: frozenset[Task] = frozenset({"text-classification", "image-classification"})
"""Tasks whose rows have one label each."""
ExportForm = Literal["merged", "peft"]
"""A directory that transformers loads, or one with the adapters alone, which peft loads beside the base model."""


FINAL = frozenset({"completed", "failed", "cancelled"})
"""States of a run that it does not leave"""


def known_task(word: str) -> Task | None:
    """The task that a word means; None for one of a later version."""
    return next((task for task in get_args(Task) if task == word), None)


Precision = Literal["float32", "bfloat16", "auto"]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")]
"""A state, a kind: one of our own words."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
NAME_CHARACTERS = "letters of A to Z and a to z, digits, and . _ - (not first), 100 at the most"
Name = Annotated[str, StringConstraints(pattern=NAME)]
LabelOrder = Literal["worst", "label"]
"""In which labels are listed: the lowest recall first, or by their numbers"""
ID = r"^[a-z]{1,20}_[0-9a-f]{16}$"
Id = Annotated[str, StringConstraints(pattern=ID)]
"""An id that a coordinator made, as in run_0123456789abcdef. It becomes part of paths and URLs, so nothing else is one."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=0, lt=2**53)]
"""Bytes of one blob: what any program counts exactly."""
MOST_BLOCKS = 10_000
"""Blocks of a model, and so of a manifest."""
MOST_LABELS = 4096
"""Labels of a task up to which an agent may tell how many rows it has of each."""
MOST_FILES = 100
"""Files of configuration and tokenizer."""
JsonObject = dict[str, JsonValue]
"""JSON that is somebody else's: only he knows its type."""


class Message(BaseModel):
    # NaN and infinity have no place in JSON: whoever stored or showed one would fail at it.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class AgentMessage(Message):
    """What an agent says. A field that is added has a default: agents of earlier versions do not send it."""


class ErrorBody(BaseModel):
    """Every answer that is not 2xx has this body."""

    code: PlainText = Field(description="stable name of the error, for programs")
    message: PlainText = Field(description="what is wrong and what to do, for people")
    detail: dict[str, Any] = Field(default_factory=dict)


WHOLE, NUMBER, YES_OR_NO, FIELDS = "must be a whole number", "must be a number", "must be true or false", "must be fields with their values"
SAID = {
    "int_parsing": WHOLE, "int_type": WHOLE, "int_from_float": WHOLE, "float_parsing": NUMBER, "float_type": NUMBER,
    "int_parsing_size": f"{WHOLE} of fewer digits", "finite_number": f"{NUMBER} that is not infinite", "bool_parsing": YES_OR_NO,
    "bool_type": YES_OR_NO, "string_type": "must be text", "list_type": "must be a list", "dict_type": FIELDS, "model_type": FIELDS,
    "greater_than_equal": "must be {ge} or more", "greater_than": "must be more than {gt}", "less_than_equal": "must be {le} or less",
    "less_than": "must be less than {lt}", "literal_error": "must be {expected}", "string_too_short": "must have {min_length} characters or more",
    "string_too_long": "must have {max_length} characters or fewer", "too_long": "has {actual_length} in it, and may have {max_length}",
    "string_pattern_mismatch": "must look like {pattern}", "missing": "is missing", "extra_forbidden": "is not known",
    "model_attributes_type": "must be an object of JSON, sent with Content-Type: application/json",  # also a body that FastAPI has not read as JSON
    "json_invalid": "is no JSON: {error}", "string_unicode": "must be text in UTF-8",
}  # fmt: skip
"""What is said for each kind of problem that pydantic finds"""
OF_PATTERNS = {NAME: f"a name has {NAME_CHARACTERS}", ID: "is no id: one is a word, _ and 16 digits of 0-9 and a-f, as the lists show them"}
"""The same for text that is none of ours"""


def problem_in_words(problem: Any) -> str:
    """What pydantic says of a field that is wrong, as a person would say it. `problem`: one of the errors of a `ValidationError`."""
    if problem["type"] == "string_pattern_mismatch" and (said := OF_PATTERNS.get(problem["ctx"]["pattern"])) is not None:
        return said
    if problem["type"] == "too_short":
        return f"has {problem['ctx']['actual_length'] or 'nothing'} in it, and needs at least {problem['ctx']['min_length']}"
    if (said := SAID.get(problem["type"])) is not None:
        return said.format(**{name: f"{value:g}" if isinstance(value, float) else value for name, value in problem.get("ctx", {}).items()})
    return str(problem["msg"]).removeprefix("Value error, ")
