"""Bytes by name and digest: files, shards, patches, and the manifest of an emulator."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedcybgd.shared.contract.digests import Digest, digest_of
from fedcybgd.shared.contract.words import MOST_BLOCKS, MOST_FILES, Codec, Id, Name, Size


class Ref(BaseModel):
    """Never changed: rows and messages share it."""

    model_config = ConfigDict(frozen=True)


class FileRef(Ref):
    """A file of the model by its name: configuration, tokenizer, and in an export the weights."""

    name: Name
    digest: Digest
    size: Size


class BlobRef(Ref):
    """Bytes by their digest."""

    digest: Digest
    size: Size


class PatchRef(BlobRef):
    """Bytes that make a shard of an older one, which an agent may hold."""

    kind: Literal["difference", "delta"] = Field(
        description="difference: of two files of one layout, byte by byte; delta: an accepted delta that was added to the block"
    )
    base: Digest = Field(description="the shard that it starts from")
    weight: float = Field(1.0, ge=-1e6, le=1e6, allow_inf_nan=False, description="of a delta")


class ShardRef(Ref):
    """One block at one version in one codec: a safetensors file, and in what forms it can be fetched."""

    block: Name
    version: int = Field(ge=0, lt=2**31)
    codec: Codec
    digest: Digest
    size: Size
    packed: BlobRef | None = Field(None, description="the same file in the lossless coding")
    patches: list[PatchRef] = Field(
        default_factory=list, max_length=16, description="steps from older shards to this one, the last step first"
    )


class Manifest(Ref):
    """All that makes up one emulator, in the order of the model."""

    files: list[FileRef] = Field(max_length=MOST_FILES)
    blocks: list[ShardRef] = Field(max_length=MOST_BLOCKS)
    dropped: list[Name] = Field(
        default_factory=list, max_length=MOST_BLOCKS, description="blocks of layers that this emulator does without"
    )

    def digests(self) -> set[str]:
        """Of all blobs that an agent may ask for by it."""
        found = {file.digest for file in self.files}
        for ref in self.blocks:
            found |= {ref.digest, *(patch.digest for patch in ref.patches)} | ({ref.packed.digest} if ref.packed else set())
        return found

    @property
    def digest(self) -> Digest:
        """Of its JSON: equal manifests have the same one."""
        return digest_of(self.model_dump_json().encode())


class ExportView(BaseModel):
    """An export: whether it is ready, and its files."""

    export_id: Id
    ready: bool
    after_rounds: int | None = None
    files: list[FileRef] = []
