"""A checker of provenance files as a stranger would write it from docs/provenance.md: it knows nothing of ours."""

import base64
import hashlib
import json
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from safetensors.numpy import load

Tensor = np.ndarray[Any, Any]
Tensors = dict[str, Tensor]


def check(path: Path, key: str, export: Path, blobs: Path) -> int:
    """Raises for a file that is not what it says; how many versions were made again (of float32 deltas that are not packed)."""
    file = json.loads(path.read_text())
    signature = base64.b64decode(file.pop("signature"))
    signed = json.dumps(file, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert file["format"] in [f"fedcybgd-provenance-{number}" for number in (1, 2, 3, 4, 5)]
    assert file["key"] == key
    Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(signature, signed)

    versions = {(v["block"], v["version"]): v for v in file["versions"]}
    assert len(versions) == len(file["versions"])
    made: dict[tuple[str, int], Tensors] = {}
    carried: dict[tuple[str, int], Tensors] = {}
    for (block, number), version in sorted(versions.items()):
        if version["origin"] in ("base", "found"):
            assert version["parent"] is None
            made[block, number] = load((blobs / version["digest"]).read_bytes())
            assert hashlib.sha256((blobs / version["digest"]).read_bytes()).hexdigest() == version["digest"]
        elif version["origin"] == "restored":
            assert version["digest"] == versions[block, version["parent"]]["digest"]
            made[block, number] = made[block, version["parent"]]
            carried[block, number] = carried.get((block, version["parent"]), {})
        elif version["origin"] in ("averaged", "best"):
            made[block, number] = mean([(made[block, term["version"]], term["rounds"]) for term in version["average"]])
        elif version["origin"] == "calibrated":
            made[block, number] = calibrated(made[block, version["parent"]], version["calibration"])
        else:
            deltas = []
            for term in version["terms"]:
                data = (blobs / term["delta"]).read_bytes()
                assert hashlib.sha256(data).hexdigest() == term["delta"]
                deltas.append(load(data) if "scale" not in term else corrections(load(data), float(term["scale"])))
            weights = [float(term["weight"]) for term in version["terms"]]
            parent = made[block, version["parent"]]
            if (beside := version.get("beside")) is not None:
                made[block, number] = folded(parent, made["adapters", beside["version"]], float(beside["scale"]), deltas, weights)
                continue
            if (outer := version.get("outer")) is None:
                made[block, number] = together(version["aggregate"], parent, deltas, weights)
                continue
            middle = together(version["aggregate"], {n: np.zeros(t.shape, np.float32) for n, t in parent.items()}, deltas, weights)
            before, names = carried.get((block, version["parent"]), {}), {n for delta in deltas for n in delta}
            made[block, number], carried[block, number] = stepped(outer, parent, middle, before, names)
            stored = load((blobs / outer["velocity"]).read_bytes())
            assert all(np.array_equal(stored[name], tensor) for name, tensor in carried[block, number].items()), block
    for block, number in file["present"].items():
        stored = load((blobs / versions[block, number]["digest"]).read_bytes())
        assert all(np.array_equal(stored[name], tensor) for name, tensor in made[block, number].items()), block
    for ref in file["export"]["files"] if file["export"] else []:
        assert hashlib.sha256((export / ref["name"]).read_bytes()).hexdigest() == ref["digest"]
    return sum(v["origin"] in ("applied", "averaged", "best", "calibrated") for v in versions.values())


def mean(versions: list[tuple[Tensors, int]]) -> Tensors:
    """Of versions of a block, each with the rounds that it stood for."""
    found, total = versions[0]
    for tensors, rounds in versions[1:]:
        total += rounds
        found = {name: old + (tensors[name] - old) * np.float32(rounds / total) for name, old in found.items()}
    return found


def calibrated(head: Tensors, how: Any) -> Tensors:
    """The head that a run ended with."""
    scale = np.float32(float(how["scale"]))
    new = {**head, how["weight"]: head[how["weight"]].astype(np.float32) * scale}
    if how["bias"] is not None:
        new[how["bias"]] = head[how["bias"]].astype(np.float32) * scale + np.array([float(one) for one in how["shift"]], np.float32)
    return new


def folded(parent: Tensors, adapters: Tensors, scale: float, deltas: list[Tensors], weights: list[float]) -> Tensors:
    """What the mean of adapters leaves out of the mean of what they do, added to the matrices beside which they are."""
    new, left_over = dict(parent), 1 - fsum(weights)
    for name in parent:
        factors = [f"{name.removesuffix('.weight')}.adapter_{side}" for side in ("left", "right")]
        if factors[0] not in adapters:
            continue
        total = np.zeros(parent[name].shape, np.float32)
        for delta, weight in zip(deltas, weights, strict=True):
            total = total + product(*(adapters[factor] + delta[factor] for factor in factors)) * np.float32(weight)
        if left_over:
            total = total + product(*(adapters[factor] for factor in factors)) * np.float32(left_over)
        total = total - product(*(added(adapters[factor], [delta[factor] for delta in deltas], weights) for factor in factors))
        new[name] = parent[name] + total * np.float32(scale)
    return new


def corrections(delta: Tensors, scale: float) -> Tensors:
    """What a delta adds to the matrices that it corrects."""
    sides = {name.rpartition(".")[0]: name for name in delta if name.endswith(".adapter_left")}
    return {f"{part}.weight": product(delta[left], delta[f"{part}.adapter_right"]) * np.float32(scale) for part, left in sides.items()}


def product(left: Tensor, right: Tensor) -> Tensor:
    """Number by number, in the order of the rank."""
    total = left[:, :1] * right[:1]
    for index in range(1, left.shape[1]):
        total = total + left[:, index : index + 1] * right[index : index + 1]
    return total


def stepped(outer: Any, parent: Tensors, mean: Tensors, before: Tensors, names: set[str]) -> tuple[Tensors, Tensors]:
    """The new version of a block, and the new velocity."""
    rate, momentum = np.float32(float(outer["learning_rate"])), np.float32(float(outer["momentum"]))
    velocity = {name: before[name] * momentum + mean[name] if name in before else mean[name] for name in parent if name in names}
    step = {name: v * momentum + mean[name] if outer["nesterov"] else v for name, v in velocity.items()}
    return {name: step[name] * rate + tensor if name in step else tensor for name, tensor in parent.items()}, velocity


def together(aggregate: str, parent: Tensors, deltas: list[Tensors], weights: list[float]) -> Tensors:
    """The new version of a block."""
    if aggregate == "geometric_median":
        weights = nearest([np.concatenate([d[n].ravel() for n in parent if n in d]).astype(np.float64) for d in deltas], weights)
    new = {}
    for name, old in parent.items():
        given = [(delta[name], weight) for delta, weight in zip(deltas, weights, strict=True) if name in delta]
        rows, shares = [row for row, _ in given], [weight for _, weight in given]
        if rows and aggregate in ("trimmed_mean", "median"):
            most = (len(rows) - 1) // 2
            out = most if aggregate == "median" else min(max(1, len(rows) // 4), most)
            middle = np.sort(np.stack(rows), axis=0)[out : len(rows) - out]
            old = old + added(np.zeros_like(old), list(middle), [1 / len(middle)] * len(middle)) * np.float32(fsum(shares))
        else:
            old = added(old, rows, shares)
        new[name] = old
    return new


def added(old: Tensor, rows: list[Tensor], weights: list[float]) -> Tensor:
    for row, weight in zip(rows, weights, strict=True):
        old = old + row * np.float32(weight)
    return old


def nearest(deltas: list[Tensor], weights: list[float]) -> list[float]:
    given, products = np.array(weights), np.array([[a @ b for b in deltas] for a in deltas])
    shares = given / given.sum()
    for _ in range(200):
        squares = products.diagonal() - 2 * products @ shares + shares @ products @ shares
        pulls = given / np.sqrt(np.maximum(squares, 1e-12 * max(products.diagonal().max(), 1e-300)))
        shares = pulls / pulls.sum()
    return [float(given.sum()) * round(float(share), 6) for share in shares]
