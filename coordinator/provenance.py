"""Checks a provenance file without the database that it comes from: signature, chain, and whatever bytes there are."""

import base64
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from fedcybgd.coordinator.domain.history import VersionFacts, VersionOrigin
from fedcybgd.coordinator.domain.jobs.candidates import AverageTerm, HeadCalibration
from fedcybgd.coordinator.domain.jobs.payloads import AdaptersBase, Change, Term
from fedcybgd.coordinator.domain.outer import Outer
from fedcybgd.coordinator.domain.verification import KeptVersion, Versions, check_beside, check_chains, check_once, lineages
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.jobs import recomputing
from fedcybgd.coordinator.storage import EngineStore, OverlayStore
from fedcybgd.shared.contract.adapters import ADAPTERS
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.digests import digest_of, digest_of_file
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.provenance import CARD, FILE, Provenance, ProvenanceAdapters, ProvenanceOuter, ProvenanceVersion, fingerprint
from fedcybgd.shared.contract.signatures import public_bytes
from fedcybgd.shared.contract.words import problem_in_words
from fedcybgd.shared.files.safetensors_header import header_of

WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
LARGEST = 1 << 28
MOST_NAMED = 20
CHUNK = 1 << 20


class ProvenanceInvalid(CoordinatorError):
    """The file is no provenance file, or does not agree with itself."""

    code = "provenance_invalid"


class SignatureInvalid(CoordinatorError):
    """The file is not as it was when it was signed."""

    code = "signature_invalid"


class SigningKeyUnlike(CoordinatorError):
    """The file is signed with another key than the one that is expected."""

    code = "signing_key_differs"


class ExportUnlike(CoordinatorError):
    """The directory is not the export that the file is about."""

    code = "export_differs"


@dataclass(frozen=True)
class Checked:
    file: Provenance
    made_again: int
    export_checked: bool
    key_was_given: bool

    def __str__(self) -> str:
        key = f"signed with {'the given key' if self.key_was_given else fingerprint(self.file.key) + ', which is to be compared with the coordinator'}"
        made = f"{self.made_again} of {len(self.file.versions)} versions made again"
        export = "the export is the one that it names" if self.export_checked else "no export was looked at"
        return f"run {self.file.run.name}: the file agrees with itself; {key}; {made}; {export}"


def check(path: Path, key: str | None = None, export: Path | None = None, blobs: Path | None = None) -> Checked:
    """`key`: the coordinator's, in base64 or by its fingerprint. `export`: a directory. `blobs`: shards and deltas by their digests.

    Raises the first thing that is wrong.
    """
    file = read(path)
    check_signature(file, key)
    versions = _versions(file)
    check_chains(versions, {block: (version, versions[block][version].digest) for block, version in file.present.items()})
    check_beside(versions)
    for line in lineages(versions, list(file.present.items())).values():
        check_once(line)
    if export is not None:
        _check_export(file, export, path)
    made = 0
    with tempfile.TemporaryDirectory(prefix="fedcoord-provenance-") as aside:
        if blobs is not None:
            store = OverlayStore(Path(aside), [blobs])
            there = _with_bytes(store, versions)
            rows, averages = recomputing.made_of(there), recomputing.averages_of(there, lambda row: store.has(row.digest))
            recomputing.recompute(store, rows)
            recomputing.recompute_averages(store, averages)
            made = len(rows) + len(averages)
            if export is not None:
                adapters = any(ref.name == ADAPTER_WEIGHTS for ref in file.export.files) if file.export else False
                _check_weights(file, versions, store, export / (ADAPTER_WEIGHTS if adapters else WEIGHTS))
    return Checked(file, made, export is not None, key is not None)


def is_file(path: Path) -> bool:
    """Also of what is no name that a file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def read(path: Path) -> Provenance:
    """Raises `ProvenanceInvalid`."""
    try:
        with path.open("rb") as opened:
            data = opened.read(LARGEST + 1)
    except OSError as error:
        raise ProvenanceInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        return Provenance.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if not first["loc"]:
            raise ProvenanceInvalid(f"{path} is no provenance file: that is {FILE} of an export") from error
        raise ProvenanceInvalid(f"{path}: {'.'.join(map(str, first['loc'])) or 'file'}: {problem_in_words(first)}") from error
    except ValueError as error:
        raise ProvenanceInvalid(f"{path}: {error}") from error


def check_signature(file: Provenance, key: str | None) -> None:
    try:
        public = public_bytes(file.key)
        if key is not None and key.strip() not in (file.key, digest_of(public)):
            raise SigningKeyUnlike(f"the file is signed with {fingerprint(file.key)}, and not with the key that was given")
        Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(file.signature, validate=True), file.signed())
    except InvalidSignature as error:
        raise SignatureInvalid("the signature is not one of this file: something in it was changed after it was signed") from error
    except ValueError as error:
        raise SignatureInvalid(f"the signature is not one of this file: {error}") from error


def _versions(file: Provenance) -> Versions:
    found: dict[str, dict[int, KeptVersion]] = {}
    adapters = {entry.version: entry for entry in file.versions if entry.block == ADAPTERS}
    for entry in file.versions:
        if entry.version in found.setdefault(entry.block, {}):
            raise ProvenanceInvalid(f"block {entry.block}, version {entry.version}: it is there twice")
        found[entry.block][entry.version] = _row(entry, found[entry.block], adapters)
    for block, version in [*file.present.items(), *(file.export.versions.items() if file.export else ())]:
        if version not in found.get(block, {}):
            raise ProvenanceInvalid(f"block {block}, version {version}: it is named, and nothing is said of it")
    return found


def _row(entry: ProvenanceVersion, before: dict[int, KeptVersion], adapters: Mapping[int, ProvenanceVersion]) -> KeptVersion:
    facts = VersionFacts(entry.block, entry.version, entry.origin, entry.parent, entry.round, exact=False)
    parent = before.get(entry.parent) if entry.parent is not None else None
    change, velocity = None, entry.outer.velocity if entry.outer is not None else None
    if entry.origin == VersionOrigin.RESTORED and parent is not None:
        velocity = parent.velocity
    try:
        if parent is not None and entry.terms and entry.aggregate is not None:
            base = ShardRef(block=entry.block, version=parent.facts.version, codec=EXACT, digest=parent.digest, size=parent.size)
            terms = [
                Term(
                    digest=term.delta,
                    weight=float(term.weight),
                    visit=term.visit,
                    rows=[float(weight) for weight in term.rows],
                    scale=None if term.scale is None else float(term.scale),
                )
                for term in entry.terms
            ]
            outer = _outer(entry.outer) if entry.outer is not None else None
            values = {"block": base, "terms": terms, "aggregate": entry.aggregate}
            beside = _beside(entry.beside, adapters) if entry.beside is not None else None
            change = Change.model_validate({**values, "outer": outer, "velocity": parent.velocity if outer else None, "beside": beside})
    except ValueError as error:  # pydantic's are, too
        raise ProvenanceInvalid(f"block {entry.block}, version {entry.version}: {error}") from error
    try:
        calibration = None if (how := entry.calibration) is None else HeadCalibration(
            weight=how.weight, bias=how.bias, scale=float(how.scale), shift=[float(one) for one in how.shift]
        )  # fmt: skip
    except ValueError as error:
        raise ProvenanceInvalid(f"block {entry.block}, version {entry.version}: {error}") from error
    average = [AverageTerm(version=term.version, rounds=term.rounds) for term in entry.average or ()]
    return KeptVersion(facts, entry.digest, entry.size, change, kept=False, velocity=velocity, average=average, calibration=calibration)


def _beside(said: ProvenanceAdapters, adapters: Mapping[int, ProvenanceVersion]) -> AdaptersBase:
    if (made := adapters.get(said.version)) is None:
        raise ValueError(f"it is beside version {said.version} of the adapters, of which nothing is said")
    block = ShardRef(block=ADAPTERS, version=made.version, codec=EXACT, digest=made.digest, size=made.size)
    return AdaptersBase(block=block, scale=float(said.scale))


def _outer(said: ProvenanceOuter) -> Outer:
    return Outer(learning_rate=float(said.learning_rate), momentum=float(said.momentum), nesterov=said.nesterov)


def _with_bytes(store: EngineStore, versions: Versions) -> Versions:
    """Of the versions, which can be made again of what is there."""
    found: dict[str, dict[int, KeptVersion]] = {}
    for block, known in versions.items():
        made = found.setdefault(block, {})
        for version, row in sorted(known.items()):
            parent = made.get(row.facts.parent) if row.facts.parent is not None else None
            follows = parent is not None and parent.kept
            given = row.change is None or _has(store, row.change)
            there = store.has(row.digest) and (row.velocity is None or store.has(row.velocity))
            made[version] = replace(row, kept=there or (follows and given and not row.average and row.calibration is None))
    return {
        block: {v: row if row.change is None or _has(store, row.change) else _bare(row) for v, row in known.items()}
        for block, known in found.items()
    }  # fmt: skip


def _has(store: EngineStore, change: Change) -> bool:
    """Whether the deltas of a change are there, and the adapters that they are of."""
    return all(map(store.has, [*(term.digest for term in change.terms), *([change.beside.block.digest] if change.beside else [])]))


def _bare(row: KeptVersion) -> KeptVersion:
    return replace(row, change=None)


def _check_export(file: Provenance, directory: Path, path: Path) -> None:
    """`path` is where the file lies."""
    if file.export is None:
        raise ExportUnlike("the file names no export: one that lies beside an export does")
    for ref in file.export.files:
        place = directory / ref.name
        if not place.is_file():
            raise ExportUnlike(f"{place} is not there")
        if digest_of_file(place) != ref.digest:
            raise ExportUnlike(f"{place}: its bytes are others than were exported ({ref.digest})")
    # Whatever lies there may be loaded with it: weights under other names, adapters, templates, code.
    known = {directory / name for name in (*(ref.name for ref in file.export.files), FILE, CARD)} | {path}
    if extra := sorted(str(found) for found in directory.rglob("*") if found not in known and (found.is_symlink() or not found.is_dir())):
        more = f" and {len(extra) - MOST_NAMED} more" if len(extra) > MOST_NAMED else ""
        raise ExportUnlike(f"no part of the export, and to be taken out of it: {', '.join(extra[:MOST_NAMED])}{more}", files=extra)


def _check_weights(file: Provenance, versions: Versions, store: EngineStore, weights: Path) -> None:
    """The tensors of an export are those of the blocks, one after another in the order of the model; their names alone are others.

    Where the model has adapters, matrices are joined with theirs.
    """
    assert file.export is not None
    rows = [versions[block][file.export.versions[block]] for block in file.run.blocks if block in file.export.versions]
    if not all(store.has(row.digest) for row in rows):
        return
    sum_of = hashlib.sha256()
    said = json.loads(file.run.run_file)
    refs = [ShardRef(block=row.facts.block, version=row.facts.version, codec=EXACT, digest=row.digest, size=row.size) for row in rows]
    if weights.name == ADAPTER_WEIGHTS:
        recomputing.add_beside(store, refs, json.loads(weights.with_name("adapter_config.json").read_text())["fan_in_fan_out"], sum_of)
    elif adapters := said.get("adapters"):
        config, scale = json.loads(weights.with_name("config.json").read_text()), adapters["alpha"] / adapters["rank"]
        recomputing.add_joined(store, config, said["task"]["kind"], refs, scale, sum_of)
    else:
        for row in rows:
            with store.localised(row.digest) as path:
                _add_tensors(path, sum_of)
    found = hashlib.sha256()
    _add_tensors(weights, found)
    if sum_of.digest() != found.digest():
        raise ExportUnlike(f"{weights}: its tensors are not those of the versions that the file names")


def _add_tensors(path: Path, to: "hashlib._Hash") -> None:
    with path.open("rb") as opened:
        opened.seek(header_of(opened, str(path)).data_start)
        while chunk := opened.read(CHUNK):
            to.update(chunk)
