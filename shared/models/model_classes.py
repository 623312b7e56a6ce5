"""Which class of transformers a configuration is made with: the one that `from_pretrained` would choose for a task."""

import json
from collections.abc import Mapping
from typing import Any, get_args

import transformers

from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.files.configuration import ModelUnknown, in_a_line, plain, with_numbers

AUTO_CLASSES: dict[str, Any] = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
    "image-classification": transformers.AutoModelForImageClassification,
    "extractive-qa": transformers.AutoModelForQuestionAnswering,
}
BOTH_SIDES = frozenset({"xlnet", "xlm", "bert-generation"})
"""Model types whose language models attend to what follows unless told otherwise, though none of them is a masked language model."""


def settings_of(config: Mapping[str, Any]) -> Any:
    """The configuration (the contents of a config.json) as an object of transformers. Raises `ModelUnknown`."""
    values = plain(config)
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # no answer could show it
        raise ModelUnknown("config.json holds half a character, one of a pair: a text in it was cut inside of one") from error
    values = with_numbers(values)
    model_type = values.pop("model_type", None)
    if model_type not in transformers.CONFIG_MAPPING:
        raise ModelUnknown(f"transformers {transformers.__version__} knows no model type {model_type!r}")
    try:
        return transformers.AutoConfig.for_model(model_type, **values)
    except Exception as error:  # whatever a configuration of nonsense leads to
        raise ModelUnknown(f"transformers {transformers.__version__} cannot read this configuration: {in_a_line(error)}") from error


def tasks_of(settings: Any) -> list[Task]:
    """The tasks that transformers has a model for."""
    return [task for task in get_args(Task) if type(settings) in AUTO_CLASSES[task]._model_mapping]


def sees_what_follows(settings: Any) -> bool:
    """Whether the language model of this configuration is an encoder's: each token is predicted from those after it too."""
    masked = transformers.AutoModelForMaskedLM._model_mapping
    if type(settings) not in masked and settings.model_type not in BOTH_SIDES:
        return False
    return not (getattr(settings, "is_decoder", False) or getattr(settings, "causal", False))


def model_of(settings: Any, task: Task | None) -> Any:
    """A new model for `task`; None: of the class that the configuration names, or the base model where it names none that fits."""
    if task is None:
        named = _named_class(settings)
        return transformers.AutoModel.from_config(settings) if named is None else named(settings)
    if task not in tasks_of(settings):
        raise ModelUnknown(f"{settings.model_type} has no {task} model in transformers {transformers.__version__}")
    settings.architectures = settings.architectures or []  # read where a type has several models for a task
    return AUTO_CLASSES[task].from_config(settings)


def base_model_of(settings: Any) -> Any:
    """A new model without a head, where the type has one."""
    has_base = type(settings) in transformers.AutoModel._model_mapping
    return transformers.AutoModel.from_config(settings) if has_base else model_of(settings, None)


def _named_class(settings: Any) -> Any:
    named = (settings.architectures or [None])[0]
    found: Any = getattr(transformers, named, None) if isinstance(named, str) and named.isidentifier() else None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model and getattr(found, "config_class", None) is type(settings) else None
