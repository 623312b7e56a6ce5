"""Which files a model that is uploaded may have: by their names and sizes, before a byte of them has come."""

from collections.abc import Sequence

from pydantic import Field

from fedcybgd.coordinator.errors import Invalid, TooLarge
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.model_uploads import CONFIG, LARGEST_TEXT, NO_TOKENIZER, TEXTS, WEIGHTS, ModelFile, reads_rows

CODE = (".py", ".pyc", ".so", ".sh")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".npy", ".npz")


class ModelFilesRefused(Invalid):
    """They are no model's, or none that this coordinator takes."""

    code = "model_files_refused"


class ModelTooLarge(TooLarge):
    code = "model_too_large"


class ModelUploadFile(FileRef):
    """A file of a model upload."""

    arrived: bool = Field(False, description="all of it, with its digest; its bytes are a blob then")


def check(files: Sequence[ModelFile], most: int) -> None:
    """Raise `ModelFilesRefused`, or `ModelTooLarge` for more than `most` bytes in all, or too many in a file that is no weights."""
    for file in files:
        if why := _refusal(file.name):
            raise ModelFilesRefused(f"{file.name}: {why}", name=file.name)
        if not file.name.endswith(WEIGHTS) and file.size > LARGEST_TEXT:
            raise ModelTooLarge(f"{file.name} has {file.size:,} bytes; what is no weights has at most {LARGEST_TEXT:,}", limit=LARGEST_TEXT)
    names = [file.name for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ModelFilesRefused(f"named more than once: {', '.join(twice[:3])}", name=twice[0])
    if CONFIG not in names:
        raise ModelFilesRefused(f"there is no {CONFIG} among the files: that is no model's directory")
    if not any(name.endswith(WEIGHTS) for name in names):
        raise ModelFilesRefused(f"there are no *{WEIGHTS} among the files; save the model with save_pretrained(safe_serialization=True)")
    sizes: dict[str, int] = {}
    for file in files:
        if sizes.setdefault(file.digest, file.size) != file.size:
            raise ModelFilesRefused(f"{file.name}: bytes of one digest cannot have two sizes", name=file.name)
    if (total := sum(file.size for file in files)) > most:
        raise ModelTooLarge(f"the files have {total:,} bytes; at most {most:,} are taken here (FEDCOORD_MAX_MODEL_BYTES)", limit=most)
    if not reads_rows(names):
        raise ModelFilesRefused(NO_TOKENIZER)


def _refusal(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith(PICKLES):
        return "pickles and the like can run code; save the model with save_pretrained(safe_serialization=True)"
    if lower.endswith(CODE):
        return "code of a model is never taken"
    if not name.endswith((WEIGHTS, *TEXTS)):
        return f"a model's files end in {', '.join((WEIGHTS, *TEXTS))}"
    return None
