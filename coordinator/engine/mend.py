"""Makes a lost blob again from what others hold of it: every way leads to the same bytes, or is no way."""

from fedcybgd.coordinator.domain.jobs.mending import LOST, MendPayload, MendResult, Remedy
from fedcybgd.coordinator.domain.jobs.payloads import Change, Term
from fedcybgd.coordinator.engine.apply import add_deltas
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.engine.shards import write_chunks
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.storage import BlobMissing, EngineStore
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.safetensors_header import MAX_NUMBER


def mend(store: EngineStore, payload: MendPayload) -> MendResult:
    """Raises `BlobMissing` when no way leads to the blob; a source that is lost itself is raised as lost, for it may be mended first."""
    lost: CoordinatorError | None = None
    for way in payload.ways:
        try:
            _make(store, payload, way)
            if store.has(payload.digest):
                store.check(payload.digest)
                return MendResult()
        except CoordinatorError as error:
            lost = lost or (error if error.code in LOST and error.detail.get("digest") != payload.digest else None)
        except FedError:
            continue
    raise lost or BlobMissing(f"blob {payload.digest} cannot be made again", digest=payload.digest)


def _make(store: EngineStore, payload: MendPayload, way: Remedy) -> None:
    match way.kind:
        case "encode":
            ShardEncoder(store, payload.config, payload.task).encode(way.source, way.codec)
        case "unpack":
            with store.localised(way.source) as packed, store.scratch() as folder:
                lossless.unpack(packed, folder / "plain", MAX_NUMBER)
                store.adopt(folder / "plain", payload.digest)
        case "delta":
            block = ShardRef(block="any", version=0, codec=EXACT, digest=way.source, size=0)
            add_deltas(store, Change(block=block, terms=[Term(digest=way.change, weight=way.weight)]))
        case "versions":
            for change in way.again:
                add_deltas(store, change)
        case "difference":
            with store.localised(way.source) as old, store.localised(way.change) as new:
                write_chunks(store, lossless.difference(old, new))
