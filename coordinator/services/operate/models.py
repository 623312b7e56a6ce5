"""Base models: added once, split into blocks, used by many runs."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Model, ModelUpload
from fedcybgd.coordinator.domain.jobs.payloads import ImportPayload, ImportResult
from fedcybgd.coordinator.domain.jobs.registry import IMPORT, Done, Failed
from fedcybgd.coordinator.domain.model import MODEL, ModelState
from fedcybgd.coordinator.errors import Conflict, NotFound
from fedcybgd.coordinator.services.records import jobs, keys
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import models as states
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.sizes import counted


class ModelNameTaken(Conflict):
    code = "model_name_taken"


class ModelNotReady(Conflict):
    code = "model_not_ready"


def add(session: Session, name: str, source: str, now: datetime, files: Sequence[FileRef] = (), upload: str | None = None) -> Model:
    """Begin to import a model, from a place or from the `files` of an upload. A name whose import failed may be used again."""
    model = check_name_free(session, name)
    if model is None:
        model = Model(id=keys.new_id("mod"), name=name, state=MODEL.start)
        session.add(model)
    else:
        states.add_again(model)
    model.source, model.created_at = source, now
    model.config, model.files, model.blocks, model.left_out, model.num_parameters = {}, [], [], [], 0
    try:
        session.flush()
    except IntegrityError as error:  # somebody took the name a moment ago
        raise ModelNameTaken(f"there is a model named {name!r} already; choose another name") from error
    jobs.enqueue(session, IMPORT, model.id, ImportPayload(source=source, called=name, files=list(files), upload=upload), now)
    return model


def check_name_free(session: Session, name: str) -> Model | None:
    """The model of that name whose import failed, if there is one. Raises `ModelNameTaken`."""
    model = session.scalar(select(Model).where(Model.name == name))
    if model is not None and model.state != ModelState.FAILED:
        raise ModelNameTaken(f"there is a model named {name!r} already (from {model.source}); choose another name")
    return model


def imported(session: Session, done: Done[ImportPayload, ImportResult]) -> None:
    model, result = session.get_one(Model, done.subject), done.result
    model.config, model.files, model.blocks, model.left_out = result.config, result.files, result.blocks, result.left_out
    model.num_parameters = result.num_parameters
    states.imported(model)
    session.execute(delete(ModelUpload).where(ModelUpload.id == done.payload.upload))
    record(
        session,
        done.now,
        "info",
        "model_added",
        f"model {model.name}: {counted(len(result.blocks), 'block')}, {counted(result.num_parameters, 'parameter')}",
    )
    for note in result.notes:
        record(session, done.now, "info", "tokenizer_note", f"model {model.name}: {note}")


def import_failed(session: Session, failed: Failed[ImportPayload]) -> None:
    model = session.get_one(Model, failed.subject)
    states.fail(model, failed.message)
    record(session, failed.now, "error", failed.code, f"model {model.name} could not be added: {failed.message}")


def by_name(session: Session, name: str) -> Model:
    model = session.scalar(select(Model).where((Model.name == name) | (Model.id == name)))
    if model is None:
        raise NotFound(f"there is no model {name!r}; `fedcoord models add` adds one, `fedcoord models list` lists them")
    return model


def ready(session: Session, name: str) -> Model:
    """A model that runs can use, locked: its runs are created one after another, so that two cannot take one name."""
    model = by_name(session, name)
    session.refresh(model, with_for_update=True)
    if model.state != ModelState.READY:
        raise ModelNotReady(f"model {name!r} is not ready: {model.reason or 'it is still being added'}")
    return model
