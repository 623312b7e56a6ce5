"""Says of a finished run whether its model is what its log says. It knows the schema and the file formats, and imports nothing of the product.

Every delta that was accepted is part of exactly one apply; the versions of each block are one unbroken chain; and each version's bytes
are those of the version before plus the deltas, added here once more with numpy.
"""

import hashlib
import json
import math
import sqlite3
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy
import zstandard
from safetensors.numpy import load

Query = Callable[[str], list[dict[str, Any]]]
Read = Callable[[str], bytes]
"""The blob of a digest; raises `FileNotFoundError`."""
MAGIC = b"FEDPACK1"


@dataclass
class Findings:
    """What is wrong with a run, as sentences; all empty when all is well."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    versions: int = 0
    """that were computed again"""

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.different)


def opened(url: str) -> Query:
    """A database, to be asked in SQL; `url` is a file of SQLite, or postgresql://…"""
    if url.startswith("postgresql://"):
        import psycopg
        from psycopg.rows import dict_row

        def ask(statement: str) -> list[dict[str, Any]]:
            with psycopg.connect(url, row_factory=dict_row) as connection:  # type: ignore[arg-type]
                return list(connection.execute(statement))  # type: ignore[call-overload]

        return ask

    def ask_file(statement: str) -> list[dict[str, Any]]:
        connection = sqlite3.connect(f"file:{url}?mode=ro", uri=True, timeout=30)
        try:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(statement)]
        finally:
            connection.close()

    return ask_file


Delta = dict[str, Callable[[tuple[int, ...]], Any]]


def check(ask: Query, blobs: Read, run: str) -> Findings:
    found = Findings()
    assert run.replace("_", "").isalnum()
    jobs = ask(
        f"SELECT id, kind, state, payload, result FROM job WHERE subject = '{run}' AND kind IN ('prepare', 'apply') AND state = 'done'"
    )
    prepared = next(_json(job["result"]) for job in jobs if job["kind"] == "prepare")
    applies = [(job["id"], _json(job["payload"]), _json(job["result"])) for job in jobs if job["kind"] == "apply"]
    assignments = {
        row["id"]: row for row in ask(f"SELECT id, state, applied, delta_digest, round, seat FROM assignment WHERE run_id = '{run}'")
    }
    _deltas(found, assignments, applies)
    _rounds(found, assignments)
    present = {row["name"]: row for row in ask(f"SELECT name, version, digest FROM block WHERE run_id = '{run}'")}
    for block in prepared["blocks"]:
        _chain(found, blobs, block["name"], block["digest"], present[block["name"]], applies)
    return found


def _deltas(found: Findings, assignments: dict[str, dict[str, Any]], applies: list[tuple[str, Any, Any]]) -> None:
    times = Counter(name for _, payload, _ in applies for name in payload["assignments"])
    for name, row in assignments.items():
        accepted = row["state"] == "accepted"
        if accepted and (times[name] == 0 or not row["applied"]):
            found.lost.append(f"{name} (round {row['round']}) was accepted, and is in no version")
        if times[name] > 1:
            found.doubled.append(f"{name} (round {row['round']}) was applied {times[name]} times")
        if times[name] and not accepted:
            found.different.append(f"{name} (round {row['round']}) was applied, and is {row['state']}")
    for job, payload, _ in applies:
        told = {assignments[name]["delta_digest"] for name in payload["assignments"]}
        if (terms := {term["digest"] for change in payload["changes"] for term in change["terms"]}) != told:
            found.different.append(f"{job} has added {sorted(terms)}, its assignments say {sorted(told, key=str)}")


def _rounds(found: Findings, assignments: dict[str, dict[str, Any]]) -> None:
    seats = Counter((row["round"], row["seat"]) for row in assignments.values() if row["state"] == "accepted")
    found.doubled += [f"round {round}, seat {seat}: {times} deltas were accepted" for (round, seat), times in seats.items() if times > 1]


def _chain(found: Findings, blobs: Read, name: str, digest: str, present: dict[str, Any], applies: list[tuple[str, Any, Any]]) -> None:
    steps: dict[int, list[tuple[Any, Any]]] = {}
    for _, payload, result in applies:
        for change in payload["changes"]:
            if change["block"]["block"] == name:
                made = next(b for b in result["blocks"] if b["block"] == name)
                steps.setdefault(change["block"]["version"], []).append((change, made))
    version = 0
    while version in steps:
        if len(steps[version]) > 1:
            found.doubled.append(f"{name}: version {version} was changed {len(steps[version])} times")
        change, made = steps.pop(version)[0]
        if change["block"]["digest"] != digest:
            found.different.append(f"{name}: version {version} is {digest[:12]}, and {change['block']['digest'][:12]} was changed")
        if made["version"] != version + 1:
            found.different.append(f"{name}: version {version} became {made['version']}")
        if (wrong := _computed_again(blobs, change, made["digest"])) is not None:
            found.different.append(f"{name}, version {made['version']}: {wrong}")
        found.versions += 1
        version, digest = made["version"], made["digest"]
    if steps:
        found.different.append(f"{name}: the chain ends at version {version}, and {sorted(steps)} were changed")
    if (present["version"], present["digest"]) != (version, digest):
        found.different.append(f"{name}: is at version {present['version']} {present['digest'][:12]}; the log says {version} {digest[:12]}")


def _folded_again(blobs: Read, beside: Any, old: Any, new: Any, deltas: list[tuple[Any, Any]]) -> str | None:
    """What the mean of adapters leaves out of the mean of what they do, added to the matrices that they are beside."""
    adapters, scale = _read(blobs, beside["block"]["digest"]), numpy.float32(beside["scale"])
    left_over = numpy.float32(1 - math.fsum(beside["weights"]))
    for tensor, base in old.items():
        factors = [f"{tensor.removesuffix('.weight')}.adapter_{side}" for side in ("left", "right")]
        value = base
        if factors[0] in adapters:
            start = [adapters[factor] for factor in factors]
            mean, total = list(start), numpy.zeros(base.shape, numpy.float32)
            for delta, weight in deltas:
                moved = [delta[factor](factors_now.shape) for factor, factors_now in zip(factors, start, strict=True)]
                total = total + _product(start[0] + moved[0], start[1] + moved[1]) * weight
                mean = [one + step * weight for one, step in zip(mean, moved, strict=True)]
            total = total + _product(*start) * left_over if left_over else total
            value = base.astype(numpy.float32) + (total - _product(*mean)) * scale
        if value.tobytes() != new[tensor].tobytes():
            return f"{tensor} is not what is folded into it"
    return None


def _product(left: Any, right: Any) -> Any:
    total = left[:, :1] * right[:1]
    for index in range(1, left.shape[1]):
        total = total + left[:, index : index + 1] * right[index : index + 1]
    return total


def _added(delta: Delta, scale: float | None) -> Delta:
    """Of a delta that corrects a block, what it adds to its matrices."""
    if scale is None:
        return delta
    sides = {name.rpartition(".")[0]: name for name in delta if name.endswith(".adapter_left")}
    return {
        f"{part}.weight": (lambda _, left=left, right=f"{part}.adapter_right": _product(delta[left](()), delta[right](())) * numpy.float32(scale))
        for part, left in sides.items()
    }  # fmt: skip


def _computed_again(blobs: Read, change: Any, digest: str) -> str | None:
    try:
        old, new = _read(blobs, change["block"]["digest"]), _read(blobs, digest)
        before = _read(blobs, change["velocity"]) if change.get("velocity") else None
        deltas = [(_added(_delta(blobs, term["digest"]), term.get("scale")), numpy.float32(term["weight"])) for term in change["terms"]]
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    if set(old) != set(new):
        return "it has other tensors than the version before"
    if (beside := change.get("beside")) is not None:
        beside = {**beside, "weights": [term["weight"] for term in change["terms"]]}
        return _folded_again(blobs, beside, old, new, deltas)
    for tensor, base in old.items():
        terms = [(delta[tensor], weight) for delta, weight in deltas if tensor in delta]
        value = base.astype(numpy.float32) if terms else base
        outer = change.get("outer") if terms else None
        if outer is not None:
            value = numpy.zeros(base.shape, numpy.float32)
        for delta, weight in terms:
            value = value + delta(base.shape) * weight
        if outer is not None:
            value = _stepped(outer, base, value, before[tensor] if before is not None else None)
        if value.tobytes() != new[tensor].tobytes():
            return f"{tensor} is not what its deltas make of it"
    return None


def _stepped(outer: Any, base: Any, mean: Any, before: Any) -> Any:
    """What the outer optimizer makes of a mean; `before` is its velocity so far."""
    momentum, rate = numpy.float32(outer["momentum"]), numpy.float32(outer["learning_rate"])
    velocity = mean if before is None else before * momentum + mean
    step = velocity * momentum + mean if outer["nesterov"] else velocity
    return step * rate + base.astype(numpy.float32)


def _bytes(blobs: Read, digest: str) -> bytes:
    data = blobs(digest)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"blob {digest[:12]} has not its digest")
    return data


def _read(blobs: Read, digest: str) -> dict[str, Any]:
    return dict(load(_bytes(blobs, digest)))


def _delta(blobs: Read, digest: str) -> Delta:
    """name → what makes the difference of a tensor of some shape, in float32."""
    data = _bytes(blobs, digest)
    parts = dict(load(_unpacked(data) if data.startswith(MAGIC) else data))
    return {name: (lambda shape, name=name: _difference(parts, name, shape)) for name in parts if "::" not in name}


def _difference(parts: dict[str, Any], name: str, shape: tuple[int, ...]) -> Any:
    value = parts[name].astype(numpy.float32)
    if name + "::scales" in parts:
        value = value * parts[name + "::scales"][..., None]
    if name + "::rows" not in parts:
        return value
    whole = numpy.zeros(shape, numpy.float32)
    whole[parts[name + "::rows"]] = value
    return whole


def _unpacked(data: bytes) -> bytes:
    return b"".join(_chunks(data))


def _chunks(data: bytes) -> Iterable[bytes]:
    at, total, crc = len(MAGIC), 0, 0
    while width := data[at]:
        (length,) = struct.unpack_from("<I", data, at + 1)
        at += 5
        out = bytearray(length)
        for plane in range(width):
            how, held = struct.unpack_from("<BI", data, at)
            at += 5
            piece = data[at : at + held]
            at += held
            out[plane::width] = zstandard.ZstdDecompressor().decompress(piece) if how else piece
        total, crc = total + length, zlib.crc32(out, crc)
        yield bytes(out)
    if struct.unpack_from("<QI", data, at + 1) != (total, crc):
        raise ValueError("a delta does not unpack to what was packed")


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
