"""One assignment from claim to receipt: fetch, train, send."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import CoordinatorSaid, LeaseGone, Unreachable, VisitFailed
from fedcybgd.agent.fetching import Recipe, cheapest
from fedcybgd.agent.heartbeat import Heartbeat
from fedcybgd.agent.messages import Bounds, DataSource, LocalShard, TrainRequest
from fedcybgd.agent.outbox import Outbox
from fedcybgd.agent.policy import Policy, check_fetch, check_send
from fedcybgd.agent.residuals import Residuals
from fedcybgd.agent.retry import patiently
from fedcybgd.agent.sending import Delivery, DeltaDamaged
from fedcybgd.agent.site.asking import SiteCache
from fedcybgd.agent.trainer_process import TrainerProcess
from fedcybgd.shared.contract.assignments import DeltaReceipt, LeasedAssignment, Progress
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.manifests import BlobRef, FileRef, Manifest
from fedcybgd.shared.contract.sizes import in_units
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.files.configuration import image_shape
from fedcybgd.shared.files.images import bytes_on_disk

log = logging.getLogger("fedagent")
ENOUGH = 1 << 20
"""Bytes that a cut transfer must have brought to be gone on with at once,"""
LONG_S = 5.0
"""unless it went on for so long: then the line is slow."""
LEASE_CODES = frozenset({"stale_attempt", "lease_lost", "not_found"})


@dataclass(frozen=True)
class Tools:
    """What an assignment needs, made once by the daemon."""

    client: Client
    cache: ShardCache
    outbox: Outbox
    trainer: TrainerProcess
    data: DataSource
    residuals: Residuals
    policy: Policy = field(default_factory=Policy)
    memory_limit: float | None = None
    """bytes that training may take at the most"""
    told: Callable[[Exception], None] = log.debug
    """hears what keeps a visit waiting"""
    pause: Callable[[float], None] = time.sleep
    """waits between two calls"""
    alive: Callable[[], None] = lambda: None
    """hears that the visit goes on"""
    rows: int | None = None
    """how many the run may use, where they were counted"""
    site: SiteCache | None = None
    """what is asked for shards first; none: the coordinator"""


@dataclass(frozen=True)
class Fetched:
    """What a visit needs, all of it on this machine."""

    files: dict[str, str]
    shards: list[LocalShard]
    residuals: dict[str, str]
    """block → file of what is carried to it"""
    spent: set[str]
    """digests of what is of no use once the shards are made"""
    disk_bytes: int | None = None
    """what limits.disk_gb leaves to encoded rows"""


def run_assignment(tools: Tools, assignment: LeasedAssignment, report: Callable[[Progress], None]) -> DeltaReceipt:
    """Steps 3 to 5 of the straight path.

    Raises `VisitFailed` when it should be given back with a reason, `LeaseGone` when it is somebody else's by now, and
    `StopRequested`.
    """
    latest: list[Progress] = []

    def remember(progress: Progress) -> None:
        latest[:] = [progress]
        tools.alive()
        report(progress)

    note = tools.told

    def told(error: Exception) -> None:
        log.warning("%s is delayed: %s", latest[-1].phase, error)
        note(error)
        if isinstance(error, Unreachable):
            remember(latest[-1].model_copy(update={"trouble": error.trouble}))

    tools = replace(tools, told=told)
    remember(Progress(phase="fetching"))
    with Heartbeat(
        tools.client, assignment, lambda: moving(tools, latest[-1]), lambda: tools.trainer.stop(visit_name(assignment)), tools.alive
    ) as heartbeat:
        try:
            # A delta of this very work may lie in the outbox: made before a crash, not sent yet.
            while True:
                entry = tools.outbox.find(assignment) or keep(tools, assignment, make(tools, assignment, heartbeat, remember))
                remember(latest[-1].model_copy(update={"phase": "sending", "moved": None, "trouble": None}))
                try:
                    return send(tools, assignment, entry[0], entry[1])
                except DeltaDamaged as error:
                    log.warning("%s; the work is done again", error)
        except CoordinatorSaid as error:
            if error.code in LEASE_CODES:
                raise LeaseGone(error.message) from error
            raise


def moving(tools: Tools, progress: Progress) -> Progress:
    """With what has crossed the wire, while something does: else nobody could tell a slow line from a dead one."""
    moved = {"fetching": tools.cache.bytes_fetched, "sending": tools.client.bytes_sent}.get(progress.phase)
    return progress if moved is None else progress.model_copy(update={"moved": moved})


def make(tools: Tools, assignment: LeasedAssignment, heartbeat: Heartbeat, report: Callable[[Progress], None]) -> TrainMetrics:
    """Fetch and train. Where a shard does not come out right, or a step to it is not to be had, all shards are had whole, once."""
    try:
        return train(tools, assignment, fetch(tools, assignment), heartbeat, report)
    except VisitFailed as error:
        if error.reason != "shard_corrupt":
            raise
        log.warning("%s; fetching whole shards", error.message)
    except CoordinatorSaid as error:
        if error.code != "blob_missing":
            raise
        log.warning("%s; fetching whole shards", error.message)
    blocks = [ref.model_copy(update={"patches": []}) for ref in assignment.manifest.blocks]
    whole = assignment.model_copy(update={"manifest": assignment.manifest.model_copy(update={"blocks": blocks})})
    return train(tools, whole, fetch(tools, whole), heartbeat, report)


def keep(tools: Tools, assignment: LeasedAssignment, metrics: TrainMetrics) -> tuple[Path, TrainMetrics]:
    """Have a delta outlast this process: first what it left out, for nobody knows what the coordinator has heard once it is being sent."""
    digest = digest_of_file(tools.outbox.delta_path(assignment))
    if assignment.error_feedback:
        tools.residuals.keep(assignment, digest, tools.outbox.left_path(assignment))
    return tools.outbox.put(assignment, digest, metrics)


def bounds_of(policy: Policy) -> Bounds:
    """What the training process looks at once it knows the rows and the tensors."""
    return Bounds(steps=policy.most.steps, seconds=policy.most.seconds, rows=policy.least.rows, never=policy.work.never_train)


def visit_name(assignment: LeasedAssignment) -> str:
    """Names this visit and no other to the training process."""
    return f"{assignment.assignment_id}/{assignment.attempt}"


def fetch(tools: Tools, assignment: LeasedAssignment) -> Fetched:
    """The files of the manifest, and for each shard what it can be made of; what the cache holds costs nothing."""
    check_memory(tools.memory_limit, assignment)
    tools.outbox.tidy(assignment, lambda other: is_over(tools.client, other))
    manifest = assignment.manifest
    residuals = tools.residuals.of(assignment.run_id, assignment.carried)
    ways = [cheapest(ref, tools.cache.has) for ref in manifest.blocks]
    less: list[dict[str, Any]] = [{"patches": []}, {"patches": [], "packed": None}]  # what shards are made of takes room of its own
    for without in less:
        if sum(needed(manifest, ways).values()) <= tools.cache.limit:
            break
        ways = [cheapest(ref.model_copy(update=without), tools.cache.has) for ref in manifest.blocks]
    blobs: list[FileRef | BlobRef] = [*manifest.files, *(blob for way in ways for blob in way.blobs)]
    check_fetch(tools.policy, sum({ref.digest: ref.size for ref in blobs if not tools.cache.has(ref.digest)}.values()))
    tools.cache.share(lambda allowed: beside(tools, assignment, allowed))
    tools.cache.pin(needed(manifest, ways).items(), tools.policy.most.seconds)
    paths, disk_bytes = fetch_blobs(tools, assignment, manifest.files), tools.cache.left
    tools.cache.reserve(pixel_bytes(paths, assignment, tools.rows), "pixels")
    fetch_blobs(tools, assignment, blobs[len(manifest.files) :])
    for shard in manifest.blocks:
        tools.cache.make_room(shard.digest, shard.size)
    shards = [way.local(tools.cache.path) for way in ways]
    spent = {blob.digest for way in ways for blob in way.blobs} - {ref.digest for ref in manifest.blocks}
    return Fetched({f.name: str(paths[f.digest]) for f in manifest.files}, shards, residuals, spent, disk_bytes)


def pixel_bytes(paths: Mapping[str, Path], assignment: LeasedAssignment, rows: int | None) -> int:
    """What the images of a visit take of the disk once they are decoded, where their number is known. The training process counts them, too."""
    config = next((paths[file.digest] for file in assignment.manifest.files if file.name == "config.json"), None)
    if assignment.train.task != "image-classification" or rows is None or config is None:
        return 0
    try:
        return bytes_on_disk(rows, math.prod(image_shape(json.loads(config.read_text()))))
    except (ValueError, RecursionError, AttributeError, FedError):  # it is looked at by whoever makes the model, and named there
        return 0


def needed(manifest: Manifest, ways: list[Recipe]) -> dict[str, int]:
    """Digest → bytes of all that lies in the cache at once while shards are fetched and made."""
    files = {ref.digest: ref.size for ref in manifest.files}
    shards = {ref.digest: ref.size for ref in manifest.blocks}
    return {digest: size for way in ways for digest, size in way.takes()} | files | shards


def beside(tools: Tools, assignment: LeasedAssignment, allowed: int) -> int:
    """Bytes of what shares the limit of the cache, once there is room for the visit: deltas that wait go first, then old residuals."""
    waiting = tools.outbox.shrink(allowed - tools.residuals.size(), assignment)
    return waiting + tools.residuals.shrink(allowed - waiting)


def is_over(client: Client, assignment_id: str) -> bool:
    """Whether the coordinator says that it wants no delta of an assignment any more. Where it does not know, or is away, it may."""
    try:
        return client.state(assignment_id).state not in ("pending", "leased")
    except (CoordinatorSaid, Unreachable):
        return False


def fetch_blobs(tools: Tools, assignment: LeasedAssignment, refs: Iterable[FileRef | BlobRef]) -> dict[str, Path]:
    """By their digests, as long as it takes."""
    return {
        ref.digest: patiently(lambda ref=ref: fetch_blob(tools, assignment, ref), waited=tools.told, pause=tools.pause)  # type: ignore[misc]
        for ref in refs
    }


def fetch_blob(tools: Tools, assignment: LeasedAssignment, ref: FileRef | BlobRef) -> Path:
    """One blob. A transfer that is cut again and again, as by a proxy with a time limit, goes on at once where it got further."""
    site = tools.site or SiteCache(tools.client)
    while True:
        before, began = tools.cache.bytes_fetched, time.monotonic()
        try:
            return tools.cache.get(ref.digest, ref.size, lambda offset: site.shard(assignment.assignment_id, ref, offset))
        except Unreachable as error:
            enough = 1 if time.monotonic() - began >= LONG_S else ENOUGH
            if not site.heard(error) and tools.cache.bytes_fetched - before < enough:
                raise
        except VisitFailed as error:
            if error.reason != "shard_corrupt" or not (site.heard(error) or tools.client.elsewhere.blame()):
                raise


IN_TRAINING = {"int8": 15}
"""Times its shard that a trained block takes with gradients and moments: one in float32 four times"""


def check_memory(limit: float | None, assignment: LeasedAssignment) -> None:
    """Refuse, before anything is fetched, a visit whose float32 weights, gradients and two moments alone are over the limit.

    Of embeddings that are not tied to an output matrix only the rows that occur have any; how many is not known yet, so none count.
    """
    trained = set(assignment.train.trained)
    if assignment.train.task != "causal-lm" or any(ref.block == "head" for ref in assignment.manifest.blocks):
        trained.discard("embeddings")
    needed = sum(IN_TRAINING.get(ref.codec, 4) * ref.size for ref in assignment.manifest.blocks if ref.block in trained)
    if limit is not None and needed > limit:
        text = f"{assignment.block} needs at least {in_units(needed)} to train, the agent's limits allow {in_units(limit)}"
        raise VisitFailed("memory_limit", text)


def train(
    tools: Tools, assignment: LeasedAssignment, fetched: Fetched, heartbeat: Heartbeat, report: Callable[[Progress], None]
) -> TrainMetrics:
    request = TrainRequest(
        assignment_id=assignment.assignment_id, visit=visit_name(assignment), files=fetched.files, model_key=assignment.run_id,
        shards=fetched.shards,
        dropped=assignment.manifest.dropped, bounds=bounds_of(tools.policy), stall_s=assignment.stall_s, train=assignment.train,
        data=tools.data, disk_bytes=fetched.disk_bytes, delta_path=str(tools.outbox.delta_path(assignment)),
        delta_codec=assignment.delta_codec, residuals=fetched.residuals,
        new_residuals=str(tools.outbox.left_path(assignment)) if assignment.error_feedback else None,
    )  # fmt: skip
    try:
        metrics = tools.trainer.train(request, report, heartbeat.lost)
    except VisitFailed as error:
        if error.reason == "shard_corrupt":  # whatever it was made of: the next attempt fetches all of it again
            bases = {Path(shard.base).name for shard in fetched.shards if shard.base}
            tools.cache.drop({*fetched.spent, *bases, *(shard.digest for shard in fetched.shards)})
        raise
    tools.cache.drop(fetched.spent)
    return metrics.model_copy(update={"bytes_down": tools.cache.bytes_fetched})


def send(tools: Tools, assignment: LeasedAssignment, delta: Path, metrics: TrainMetrics) -> DeltaReceipt:
    """Upload what has not arrived yet, then submit; both may be repeated as often as needed."""
    size = delta.stat().st_size
    check_send(tools.policy, size)
    if size > assignment.max_delta_bytes:
        raise VisitFailed("delta_refused", f"the delta has {size} bytes, the coordinator takes {assignment.max_delta_bytes}")
    delivery = Delivery(tools.client, assignment, delta, metrics, tools.told)
    receipt = patiently(delivery.attempt, waited=tools.told, pause=tools.pause, further=lambda: tools.client.further)
    # Once it is applied, it is the way from the block as received to the block's next version.
    try:
        tools.cache.adopt(delta, delivery.digest)
    except OSError as error:  # it is received: all that is lost is a cheaper way to the next version
        log.warning("the delta is not kept in the cache: %s", error)
    tools.outbox.drop(assignment)
    return receipt
