"""Whoever supplies a model's directory, against the coordinator that adds it."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.attack.attack import attack, held
from tests.attack.scene import Scene
from tests.support.visits import fresh


def spoilt(scene: Scene, how: Callable[[Path], object]) -> tuple[str, str, float]:
    """State and reason of a model whose directory was spoilt, and the seconds that it took."""
    folder = Path(shutil.copytree(scene.bert, scene.place("model") / "m"))
    how(folder)
    began = time.monotonic()
    model = scene.add_model(fresh("spoilt"), folder)
    return model["state"], model["reason"] or "", time.monotonic() - began


def config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@attack("B1", "files of a model are links to files of the coordinator")
def links(scene: Scene) -> str:
    secret = scene.place("secret") / "id_rsa"
    secret.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")

    def linked(name: str, target: object) -> Callable[[Path], object]:
        return lambda folder: ((folder / name).unlink(missing_ok=True), (folder / name).symlink_to(str(target)))

    kinds = {"vocab.txt": secret, "merges.txt": "/proc/self/environ", "special_tokens_map.json": secret, "tokenizer.json": "/dev/zero",
             "config.json": secret, "model.safetensors": secret}  # fmt: skip
    for name, target in kinds.items():
        state, reason, _ = spoilt(scene, linked(name, target))
        held(state == "failed", f"{name} → {target}: {state} {reason}")

    def hard(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.symlink_to("/proc/self")

    state, reason, _ = spoilt(scene, hard)
    return held(state == "failed", f"{len(kinds) + 1} kinds of links refused: {reason[-80:]}")


@attack("B2", "models that take for ever, or gigabytes, to be added")
def enormous(scene: Scene) -> str:
    kinds: dict[str, Callable[[Path], object]] = {
        "6000 layers": lambda folder: config(folder, num_hidden_layers=6000),
        "a width of 2^40": lambda folder: config(folder, hidden_size=2**40),
        "a tokenizer of 400 MB": lambda folder: os.truncate(folder / "tokenizer.json", 400 << 20),
        "a config of 400 MB": lambda folder: os.truncate(folder / "config.json", 400 << 20),
        "JSON 100,000 deep": lambda folder: (folder / "config.json").write_text('{"a":' * 100_000),
    }
    slowest = 0.0
    for word, how in kinds.items():
        state, _reason, seconds = spoilt(scene, how)
        held(state == "failed", f"{word}: {state}")
        slowest = max(slowest, seconds)
        held(seconds < 60, f"{word}: {seconds:.0f} s")
    return held(slowest < 60, f"{len(kinds)} kinds refused, the slowest after {slowest:.1f} s")


@attack("B3", "a model that brings code, or names it")
def code(scene: Scene) -> str:
    kinds: dict[str, dict[str, object]] = {
        "auto_map": {"auto_map": {"AutoConfig": "evil.Config"}},
        "nested auto_map": {"text_config": {"model_type": "bert", "auto_map": {"AutoConfig": "evil.Config"}}},
        "no model": {"architectures": ["Trainer"], "model_type": "none-such"},
    }
    for word, fields in kinds.items():
        state, reason, _ = spoilt(scene, lambda folder: config(folder, **fields))  # noqa: B023 - called at once
        held(state == "failed", f"{word}: {state} {reason}")
    state, _, _ = spoilt(scene, lambda folder: config(folder, attn_implementation="kernels-community/evil", use_kernels=True))
    return held(state == "ready", f"{len(kinds)} kinds refused; a kernel that is named is left out, not loaded ({state})")
