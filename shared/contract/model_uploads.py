"""A model that comes from another machine than the coordinator's: which files it may have, and what has arrived of them."""

import json
from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, Field

from fedcybgd.shared.contract.digests import Digest, digest_of
from fedcybgd.shared.contract.words import Message, Name

PREFIX = "upl"
"""Of the ids of uploads"""
WEIGHTS = ".safetensors"
TEXTS = (".json", ".txt", ".model", ".jinja")
"""Suffixes of configuration and tokenizer"""
CONFIG = "config.json"
INDEX = ".index.json"
OF_WEIGHTS = (CONFIG, "generation_config.json")
TOKENIZER = "tokenizer_config.json"
OF_VOCABULARY = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json")
"""What says how a vocabulary is used, as `TOKENIZER` does, and is none"""
WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "DiaTokenizer", "PerceiverTokenizer")
"""Of transformers: their tokens are bytes or characters, and `TOKENIZER` is all that there is of them"""
NO_TOKENIZER = (
    "there is no tokenizer with its vocabulary among the files (tokenizer.json, vocab.txt, *.model and the like), and nothing that says how "
    "images are read; save it with the tokenizer's save_pretrained"
)
MOST_MODEL_FILES = 1000
"""The largest checkpoints that are published have some two hundred."""
LARGEST_TEXT = 128 << 20
"""Bytes of a file that is no weights: the largest tokenizers that are published have about 60 MiB"""
LARGEST_WEIGHTS = 64 << 30
"""Bytes of a file of weights: hubs take 50 GB at the most"""


class ModelFile(Message):
    """A file of a model's directory."""

    name: Name = Field(description="without a directory")
    digest: Digest
    size: int = Field(ge=1, le=LARGEST_WEIGHTS, description="bytes")


class ModelUploadRequest(Message):
    name: Name = Field(description="how runs call the model")
    files: list[ModelFile] = Field(
        min_length=1, max_length=MOST_MODEL_FILES, description="config.json, the weights (*.safetensors), what the tokenizer needs"
    )

    def upload_id(self) -> str:
        """The same for the same name and files, in whatever order."""
        files = sorted((file.name, file.digest, file.size) for file in self.files)
        return f"{PREFIX}_{digest_of(json.dumps([self.name, files]).encode())[:16]}"


def reads_rows(names: Iterable[str], needs_vocabulary: bool = False) -> bool:
    """Whether one of a model's files may be a vocabulary, or say how images are read; what is in it is seen when the model is added.

    `needs_vocabulary`: it is known that `TOKENIZER` is of a tokenizer that has one.
    """
    others = (*OF_WEIGHTS, *OF_VOCABULARY, *([TOKENIZER] if needs_vocabulary else []))
    return any(name.endswith(TEXTS) and name not in others and not name.endswith(INDEX) for name in names)


def source_of(upload_id: str) -> str:
    """Where a model comes from that was uploaded, as it is listed."""
    return f"upload {upload_id}"


class ModelUploadEntry(BaseModel):
    """A model upload, without its files."""

    id: str
    name: str
    begun_by: str = Field(description="name of the operator")
    number_of_files: int
    size: int = Field(description="bytes of all files")
    arrived_files: int = Field(description="those that have arrived whole")
    created_at: datetime
    touched_at: datetime = Field(description="when somebody last sent something of it")


class ModelFileView(BaseModel):
    name: str
    digest: str
    size: int
    offset: int = Field(description="bytes that have arrived: where to go on")
    complete: bool = Field(description="all of it has arrived, and has its digest")


class ModelUploadView(ModelUploadEntry):
    complete: bool = Field(description="all files have arrived: it can be added")
    files: list[ModelFileView]
