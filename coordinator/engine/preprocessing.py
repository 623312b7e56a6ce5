"""Stores what a model does with images before it sees them, looked at first."""

from typing import Any

from fedcybgd.coordinator.engine.model_directory import ModelDirectory, ModelRefused
from fedcybgd.coordinator.engine.tokenizers import Tried
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.files.configuration import ModelUnknown
from fedcybgd.shared.files.preprocessing import FILE, preprocessing_of
from fedcybgd.shared.models.model_classes import settings_of, tasks_of


def takes_images(config: dict[str, Any]) -> bool:
    """Whether images are all that a model of this configuration can be trained on here."""
    return tasks_of(settings_of(config)) == ["image-classification"]


def import_preprocessing(store: EngineStore, folder: ModelDirectory, config: dict[str, Any]) -> Tried:
    """Store the preprocessor_config.json of a model. Raises `ModelRefused` for one that is not there, is not known, or does not fit it."""
    if not folder.has(FILE):
        raise ModelRefused(f"{folder} has no {FILE}: save it with the image processor's save_pretrained")
    try:
        preprocessing_of(folder.json(FILE), config)
    except ModelUnknown as error:
        raise ModelRefused(f"{folder}: {error.message}") from error
    return Tried([folder.store(store, FILE)], [])
