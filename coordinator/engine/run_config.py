"""The configuration of a run's model: that of the added one, where the run does not say otherwise."""

from typing import Any

from torch import nn

from fedcybgd.coordinator.domain.jobs.payloads import PreparePayload
from fedcybgd.shared.contract.adapters import FIELD, Adapters, select
from fedcybgd.shared.files.configuration import OF_THE_WEIGHTS, plain, without
from fedcybgd.shared.models.adapters import linear_weights
from fedcybgd.shared.models.assembly import skeleton

OF_A_RUN = frozenset({FIELD})
OF_A_HEAD = frozenset({"num_labels", "id2label", "label2id", "finetuning_task", "problem_type", "task_specific_params"})


def task_config(payload: PreparePayload) -> dict[str, Any]:
    """The contents of config.json: labels, kind of problem, dtype, adapters and what a call returns are the run's to say.

    Raises `AdaptersRefused`.
    """
    config = without(plain(payload.config), OF_THE_WEIGHTS | OF_A_HEAD | OF_A_RUN)
    config["dtype"] = "float32"
    if payload.is_classification:
        assert payload.num_labels is not None
        labels = payload.label_names or [f"LABEL_{i}" for i in range(payload.num_labels)]
        config["id2label"] = {str(i): name for i, name in enumerate(labels)}
        config["label2id"] = {name: i for i, name in enumerate(labels)}
        config["problem_type"] = "single_label_classification"
    model = skeleton(config, payload.task)
    config["architectures"] = [type(model).__name__]
    if (wanted := payload.adapters) is not None:
        matrices = select(wanted.matrices, wanted.rank, linear_weights(model))
        config[FIELD] = Adapters(rank=wanted.rank, alpha=wanted.alpha, matrices=matrices).model_dump()
    return config


def padding_of(model: nn.Module) -> int | None:
    """The padding token that the model itself counts with: RoBERTa's positions begin after it, a decoder's last token stands before it."""
    pad, size = getattr(model.config, "pad_token_id", None), getattr(model.config, "vocab_size", None)
    return pad if isinstance(pad, int) and 0 <= pad < (size or pad + 1) else None
