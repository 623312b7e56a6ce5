"""A checker of provenance files as a stranger would write it from docs/provenance.md: it knows nothing of ours."""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from safetensors.numpy import load


def check(path: Path, key: str, export: Path, blobs: Path) -> int:
    """Raises for a file that is not what it says; how many versions were made again (of float32 deltas that are not packed)."""
    file = json.loads(path.read_text())
    signature = base64.b64decode(file.pop("signature"))
    signed = json.dumps(file, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert file["format"] == "fedcybgd-provenance-1"
    assert file["key"] == key
    Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(signature, signed)

    versions = {(v["block"], v["version"]): v for v in file["versions"]}
    assert len(versions) == len(file["versions"])
    made = {}
    for (block, number), version in sorted(versions.items()):
        if version["origin"] in ("base", "found"):
            assert version["parent"] is None
            made[block, number] = load((blobs / version["digest"]).read_bytes())
            assert hashlib.sha256((blobs / version["digest"]).read_bytes()).hexdigest() == version["digest"]
        elif version["origin"] == "restored":
            assert version["digest"] == versions[block, version["parent"]]["digest"]
            made[block, number] = made[block, version["parent"]]
        else:
            tensors = dict(made[block, version["parent"]])
            for term in version["terms"]:
                data = (blobs / term["delta"]).read_bytes()
                assert hashlib.sha256(data).hexdigest() == term["delta"]
                delta = load(data)
                tensors = {n: t + delta[n] * np.float32(term["weight"]) if n in delta else t for n, t in tensors.items()}
            made[block, number] = tensors
    for block, number in file["present"].items():
        stored = load((blobs / versions[block, number]["digest"]).read_bytes())
        assert all(np.array_equal(stored[name], tensor) for name, tensor in made[block, number].items()), block
    for ref in file["export"]["files"]:
        assert hashlib.sha256((export / ref["name"]).read_bytes()).hexdigest() == ref["digest"]
    return sum(v["origin"] == "applied" for v in versions.values())
