"""The real daemon and its training process against a coordinator that was taken over: each attack comes to nothing, and the agent goes on."""

import gzip
import hashlib
import itertools
import json
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
from safetensors.numpy import save

from tests.support.hostile import Answer, Asked, FakeServer, serving
from tests.support.processes import wait_for

RUN, WORK = "run_" + 16 * "0", "asg_" + 16 * "0"
MB = 1_000_000
DAEMON = """
import sys
from fedcybgd.agent import cli, retry, worker
worker.FAILURE_PAUSE_S = worker.REFUSED_PAUSE_S = retry.WAIT_FIRST_S = retry.WAIT_MAX_S = retry.JITTER_S = 0.02
sys.argv = ["fedagent", "run", "--home", sys.argv[1]]
cli.main()
"""
"""`fedagent run`, with short pauses after a failure."""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


HEAD = save({"classifier.weight": numpy.zeros((2, 8), "float32")})
"""The shard of what is to be trained, without which an agent looks at nothing else."""


def offered(files: dict[str, bytes] | None = None, **changes: Any) -> dict[str, Any]:
    """An assignment as a coordinator says it; names with two underscores go into `train`."""
    names = files if files is not None else {"config.json": b"{}"}
    refs = [{"name": name, "digest": digest(data), "size": len(data)} for name, data in names.items()]
    train = {"task": "text-classification", "num_labels": 2, "steps": 1, "batch_size": 1, "max_length": 8, "seed": 0}
    train["groups"] = [{"blocks": ["head"], "learning_rate": 1e-3}]
    head = {"block": "head", "version": 0, "codec": "exact", "digest": digest(HEAD), "size": len(HEAD)}
    said = {
        "assignment_id": WORK, "attempt": 1, "lease_seconds": 60, "run_id": RUN, "run_name": "mine", "round": 0, "cycle": 0, "block": "head",
        "manifest": {"files": refs, "blocks": [head]}, "train": train, "max_delta_bytes": 1000,
    }  # fmt: skip
    for name, value in changes.items():
        part, _, inner = name.rpartition("__")
        (said[part] if part else said)[inner] = value  # type: ignore[index]
    return said


@dataclass
class TakenOver:
    """A coordinator that offers one attack after the other, then nothing; every claim of it shows that the agent goes on."""

    attacks: list[Answer | dict[str, Any]]
    blobs: dict[str, Answer] = field(default_factory=dict)
    idle: int = 0
    """claims after the last attack"""
    returned: list[dict[str, Any]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __call__(self, asked: Asked) -> Answer:
        path = asked.path.split("?")[0]
        if path.endswith("/claim"):
            if not self.attacks:
                self.idle += 1
                time.sleep(0.2)
                return Answer(204)
            attack = self.attacks.pop(0)
            return attack if isinstance(attack, Answer) else Answer.json(attack)
        if "/shards/" in path:
            self.fetched.append(path.rsplit("/", 1)[1])
            return ({digest(HEAD): Answer(200, HEAD)} | self.blobs).get(
                self.fetched[-1], Answer.json({"code": "not_found", "message": "no", "detail": {}}, 404)
            )
        if path.endswith("/return"):
            self.returned.append(json.loads(asked.body))
            return Answer.json({"assignment_id": WORK, "state": "pending", "reason": None, "attempt": 1})
        if path.endswith("/health"):
            return Answer.json({"status": "ok", "version": "1"})
        if path.endswith("/renew"):
            return Answer.json({"lease_seconds": 60, "go_on": True})
        return Answer.json({"code": "not_found", "message": "there is no such thing", "detail": {}}, 404)

    @property
    def over(self) -> bool:
        return self.idle > 0


@dataclass
class Daemon:
    process: subprocess.Popen[str]
    home: Path
    peak: int = 0

    def watched(self, look: Callable[[], Any], limit: float = 60) -> Any:
        def seen() -> Any:
            assert self.process.poll() is None, (self.home / "log").read_text()[-3000:]
            self.peak = max(self.peak, psutil.Process(self.process.pid).memory_info().rss)
            return look()

        return wait_for(seen, limit)

    def stop(self) -> float:
        """One SIGTERM; how many seconds it took. Nothing of it is left."""
        everybody = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)
        seconds = time.monotonic() - began
        assert psutil.wait_procs(everybody, timeout=2)[1] == []
        return seconds


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    started: list[subprocess.Popen[str]] = []

    def start(server: FakeServer, rows: str = '{"text": "private", "label": 0}\n', policy: str = "") -> Daemon:
        home = tmp_path / "home"
        home.mkdir()
        (home / "rows.jsonl").write_text(rows)
        (home / "policy.toml").write_text(policy)
        limits = "[limits]\ndisk_gb = 0.01\n[device]\nkind = 'cpu'\nthreads = 1\n"
        (home / "agent.toml").write_text(f'coordinator = "{server.url}"\n[data.a]\npath = "rows.jsonl"\nruns = ["mine"]\n{limits}')
        (home / "credentials.json").write_text(json.dumps({"agent_id": "agt_" + 16 * "0", "name": "ann", "key": "fca_x"}))
        with (home / "log").open("w") as log:
            started.append(subprocess.Popen([sys.executable, "-c", DAEMON, str(home)], stdout=log, stderr=log, text=True))
        return Daemon(started[-1], home)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def deep(depth: int) -> bytes:
    return b"[" * depth


def test_whatever_a_claim_is_answered_nothing_is_fetched_and_the_next_one_is_made(daemon: Callable[..., Daemon]) -> None:
    entry = {"block": "layers.0", "version": 0, "codec": "exact", "digest": "a" * 64, "size": 1}
    wrong: list[dict[str, Any]] = [
        *({"train__steps": n} for n in (10**12, -1, 0, 1e999)), *({"train__batch_size": n} for n in (-1, 0, 10**9)),
        *({"lease_seconds": n} for n in (0, -1, float("nan"), float("inf"), 1e300)), {"max_delta_bytes": -1}, {"max_delta_bytes": 2**70},
        {"round": 10**30}, {"run_id": "/etc"}, {"run_id": "../../x"}, {"run_name": "[/]"}, {"run_name": "\x1b]52;c;x\x07"}, {"block": "a/b"},
        {"train__groups": [{"blocks": ["head"], "learning_rate": float("nan")}]}, {"train__max_grad_norm": float("nan")},
        {"train__groups": [{"blocks": ["head"], "learning_rate": 1e-3}] * 2},
        {"train__max_length": 2**40}, {"manifest": {"files": [], "blocks": [entry] * 10_001}},
        {"manifest": {"files": [], "blocks": [{**entry, "size": -5}]}}, {"manifest": {"files": [], "blocks": [{**entry, "size": 2**64}]}},
    ]  # fmt: skip
    unreturned: list[Answer | dict[str, Any]] = [
        {**offered(), "attempt": float("inf")}, {**offered(), "attempt": "9" * 5000}, {**offered(), "attempt": -3},
        {**offered(), "assignment_id": "../../agents/me/key"}, {**offered(), "assignment_id": 5},
        Answer(200, deep(200_000)), Answer(200, b'{"a":' * 100_000), Answer(200, b"\xff\xfe"), Answer(200, b'"\\ud800"'), Answer(200, b"9" * 10**6),
        Answer(200, gzip.compress(b" " * 300 * MB, 1), {"Content-Encoding": "gzip"}), Answer(200, b"x", {"Content-Encoding": "br"}),
        Answer(200, b"[" + b"1," * 12 * MB), Answer(200, stream=itertools.repeat(b" " * 65536)),
        *(Answer.json({"code": "x", "message": "m", "detail": {name: 1}}, 409) for name in ("status", "code", "message", "self", "detail")),
        Answer.json({"code": "x", "message": "m", "detail": [1]}, 409), Answer(409, deep(100_000)), Answer(200, b"{}", {"Retry-After": "1e9"}),
    ]  # fmt: skip
    million = {**offered(), "manifest": {"files": [], "blocks": [entry] * 150_000}}
    scene = TakenOver([*({**offered(**change)} for change in wrong), *unreturned, million])
    with serving(lambda asked: Answer(200, b"{}")) as other, serving(scene) as server:
        scene.attacks.append(Answer(302, headers={"Location": f"{other.url}/v1/assignments/claim"}))
        agent = daemon(server)
        agent.watched(lambda: scene.over, 150)
        assert other.asked == [], "no redirect is followed, least of all with a key"
        assert agent.stop() < 10
    assert scene.fetched == []
    assert [answer["reason"] for answer in scene.returned] == ["manifest_invalid"] * len(wrong)
    assert agent.peak < 350 * MB, "no answer takes much memory"


def test_bodies_and_patches_stop_at_what_was_announced(daemon: Callable[..., Daemon]) -> None:
    small, bomb = b"0123456789", gzip.compress(b"0" * 200 * MB, 1)
    endless, packed, cut = digest(b"endless"), digest(b"packed"), digest(b"cut")
    block = {"block": "head", "version": 1, "codec": "exact", "digest": "b" * 64, "size": 1000}
    circle = [{"digest": f"{n}" * 64, "size": 5, "kind": "difference", "base": "b" * 64} for n in (1, 2)]

    def one(name: str) -> dict[str, Any]:
        return {**offered(), "manifest": {"files": [{"name": "config.json", "digest": name, "size": len(small)}], "blocks": []}}

    scene = TakenOver(
        [one(endless), one(packed), one(cut), {**offered(files={}), "manifest": {"files": [], "blocks": [{**block, "patches": circle}]}}],
        {
            endless: Answer(200, stream=itertools.repeat(b"x" * 65536)), packed: Answer(200, bomb, {"Content-Encoding": "gzip"}),
            cut: Answer(200, b"x" * 50 * MB), "b" * 64: Answer(200, b"x" * 2000),
        },
    )  # fmt: skip
    with serving(scene) as server:
        agent = daemon(server)
        agent.watched(lambda: len(scene.returned) == 4)
        assert sum(f.stat().st_size for f in (agent.home / "cache").iterdir()) < 10_000
        assert {answer["reason"] for answer in scene.returned} == {"shard_corrupt"}
        assert agent.peak < 250 * MB
        assert agent.stop() < 10


def test_a_visit_beyond_the_disk_is_refused_before_the_first_byte_with_all_that_patches_make(daemon: Callable[..., Daemon]) -> None:
    patches = [{"digest": f"{n:064x}", "size": 5, "kind": "difference", "base": f"{n + 100:064x}"} for n in range(16)]
    block = {"block": "head", "version": 20, "codec": "exact", "digest": "b" * 64, "size": 11 * MB, "patches": patches}
    scene = TakenOver([{**offered(files={}), "manifest": {"files": [], "blocks": [block]}}])
    with serving(scene) as server:
        agent = daemon(server)
        agent.watched(lambda: scene.returned)
        assert (scene.returned[0]["reason"], scene.fetched) == ("disk_limit", [])
        assert agent.stop() < 10


def dripping() -> Iterator[bytes]:
    while True:
        yield b"x"
        time.sleep(0.2)


def test_a_body_that_drips_is_given_up_and_one_signal_is_enough(daemon: Callable[..., Daemon]) -> None:
    slow = digest(b"slow")
    ref = {"files": [{"name": "config.json", "digest": slow, "size": 10 * 1000}], "blocks": []}
    scene = TakenOver([{**offered(), "manifest": ref}], {slow: Answer(200, stream=dripping())})
    with serving(scene) as server:
        agent = daemon(server, policy="[most]\nseconds = 2\n")
        agent.watched(lambda: scene.returned)
        assert scene.returned[0]["reason"] == "policy_refused"
        assert scene.returned[0]["message"].startswith("most.seconds: fetching took longer than 2 s")
        (agent.home / "policy.toml").write_text("[most]\nseconds = 3600\n")
        asked = len(scene.fetched)
        scene.attacks.append({**offered(), "manifest": ref})
        agent.watched(lambda: len(scene.fetched) > asked)
        assert agent.stop() < 12


BACKTRACKING = {
    "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None, "decoder": None, "truncation": None, "padding": None,
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "^(\\w+\\s?)*$"}, "behavior": "Isolated", "invert": False},
    "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"},
}  # fmt: skip
BERT = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 8}
# With more letters a row the library gives up by itself: it counts how often it tries again.
ROWS = 2000 * (json.dumps({"text": "a" * 20 + "!", "label": 0}) + "\n")


def files_of(config: Any, **more: Any) -> dict[str, bytes]:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[UNK]"}
    said = {"config.json": config, "tokenizer.json": BACKTRACKING, "tokenizer_config.json": settings, **more}
    return {name: json.dumps(value).encode() for name, value in said.items()}


def test_a_tokenizer_that_never_ends_is_ended(daemon: Callable[..., Daemon]) -> None:
    files = files_of(BERT)
    blobs = {digest(data): Answer(200, data) for data in files.values()}
    scene = TakenOver([offered(files, train__max_length=128)], blobs)
    with serving(scene) as server:
        agent = daemon(server, ROWS, "[most]\nseconds = 8\n")
        agent.watched(lambda: scene.returned, 90)
        assert scene.returned[0]["message"].startswith("most.seconds: training took longer than 8 s")
        (agent.home / "policy.toml").write_text("[most]\nseconds = 3600\n")
        scene.attacks.append(offered(files, train__max_length=128))
        agent.watched(lambda: json.loads((agent.home / "status.json").read_text()).get("phase") == "loading", 30)
        status = json.loads((agent.home / "status.json").read_text())
        assert "no network" in status["walls"]
        time.sleep(1)
        assert agent.stop() < 12
    rooms = ("status.json", "cache", "outbox", "work")
    assert {stat.S_IMODE((agent.home / name).stat().st_mode) & 0o077 for name in ("", *rooms)} == {0}, "nobody else looks into it"


def test_code_of_others_is_refused_at_every_depth(daemon: Callable[..., Daemon]) -> None:
    evil = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", None]}
    plain = {**BACKTRACKING, "pre_tokenizer": {"type": "Whitespace"}}
    cases = [
        files_of({"model_type": "fuyu", "text_config": {"model_type": "rag", "auto_map": evil}}, **{"tokenizer.json": plain}),
        files_of({**BERT, "auto_map": evil}, **{"tokenizer.json": plain}),
        files_of(BERT, **{"tokenizer.json": plain, "tokenizer_config.json": {"tokenizer_class": "Evil", "auto_map": evil}}),
        files_of(BERT, **{"tokenizer.json": plain, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "x": {"auto_map": evil}}}),
    ]
    speaking = save({"\x1b]0;owned\x07x": numpy.zeros((8, 8), "float32")})
    shard = {"block": "layers.0", "version": 0, "codec": "exact", "digest": digest(speaking), "size": len(speaking)}
    cases.append(files_of(BERT, **{"tokenizer.json": plain}))
    offers = [offered(case) for case in cases]
    offers[-1] |= {"manifest": {**offers[-1]["manifest"], "blocks": [shard]}, "block": "layers.0"}
    offers[-1]["train"]["groups"] = [{"blocks": ["layers.0"], "learning_rate": 1e-3}]
    files = {digest(data): Answer(200, data) for case in cases for data in case.values()} | {digest(speaking): Answer(200, speaking)}
    scene = TakenOver(offers, files)
    with serving(scene) as server:
        agent = daemon(server)
        agent.watched(lambda: len(scene.returned) == len(cases), 90)
        said = (agent.home / "log").read_text()
        assert "a shard holds x, which the model does not have" in said
        assert "to be trained" not in said, "refused for another reason than the one meant here"
        assert "\x1b" not in said, "names of others do not speak to the terminal"
        assert agent.stop() < 10
    assert {answer["reason"] for answer in scene.returned} == {"model_mismatch"}
    assert not list(agent.home.rglob("evil*"))
