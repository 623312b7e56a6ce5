"""A coordinator that was taken over, against an honest agent or operator."""

import gzip
import json
import os
import subprocess
import sys
import time

from fedcybgd.shared.contract.words import COORDINATOR
from tests.attack.attack import attack, held
from tests.attack.scene import Scene, Taken
from tests.support.hostile import Answer, Asked, serving
from tests.support.processes import ENVIRONMENT
from tests.unit.test_client import RUN


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"fedcybgd.{words[0]}.cli", *words[1:]]
    return subprocess.run(command, env={**os.environ, **ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=60)


@attack("A1", "an export names files outside of its directory", quick=True)
def export_outside(scene: Scene) -> str:
    folder, digest = scene.place("export"), "0" * 64
    outside = folder / "bashrc"

    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("/runs/r"):
            return Answer.json(RUN)
        if asked.method == "POST":
            return Answer.json({"export_id": "job_" + "0" * 16})
        if asked.path.endswith("job_" + "0" * 16):
            files = [{"name": name, "digest": digest, "size": 1} for name in (str(outside), "../bashrc")]
            return Answer.json({"export_id": "job_" + "0" * 16, "ready": True, "after_rounds": 1, "files": files})
        return Answer(200, b"x")

    with serving(answer) as server:
        done = run("coordinator", "run", "export", "r", str(folder / "target"), FEDCOORD_URL=server.url, FEDCOORD_OPERATOR_KEY="fco_x")
    written = [p for p in folder.rglob("*") if p.is_file() and p != folder / "target" / "fedcybgd.json"]
    return held(done.returncode and not written, f"exit {done.returncode}, files written: {len(written)}; {done.stderr.strip()[-90:]}")


@attack("A2", "a run's id leads an agent to files outside of its home", quick=True)
def run_id_outside(scene: Scene) -> str:
    secret = scene.place("private") / "layers.4.safetensors"
    secret.write_bytes(b"private")
    with scene.victim(Taken(run_id=str(secret.parent), error_feedback=True, block="layers.4")) as victim:
        victim.until(lambda: victim.taken.returned or victim.taken.claims > 2, 20)
        sent, fetched = victim.taken.uploaded, [a.path for a in victim.server.asked if "/shards/" in a.path]
    return held(
        secret.read_bytes() == b"private" and not sent and not fetched, f"the file is as it was, {sent} bytes sent, {len(fetched)} fetched"
    )


@attack("A3", "work of a run that the owner did not consent to", quick=True)
def without_consent(scene: Scene) -> str:
    with scene.victim(Taken(run_name="evil-run")) as victim:
        victim.until(lambda: victim.taken.returned, 20)
        told = [r["reason"] for r in victim.taken.returned]
        fetched = [a.path for a in victim.server.asked if "/shards/" in a.path]
    return held(
        told and not fetched and not victim.taken.uploaded, f"given back as {told[:1]}, {len(fetched)} shards fetched, nothing trained"
    )


@attack("A4", "bodies longer than announced fill an agent's disk")
def long_bodies(scene: Scene) -> str:
    flood = Answer(200, b"\0" * (200 << 20))
    with scene.victim(Taken(bodies=flood), "[limits]\ndisk_gb = 0.02\n") as victim:
        victim.until(lambda: victim.taken.returned, 30)
        largest, told = victim.size(), [r["reason"] for r in victim.taken.returned]
        asked = [a.path for a in victim.server.asked if "/shards/" in a.path]
    return held(
        asked and told and largest < 25_000_000,
        f"{largest / 1e6:.1f} MB on the disk of at most 20, {len(asked)} floods, given back as {told}",
    )


@attack("A5", "work without end, which one SIGTERM does not stop")
def endless_work(scene: Scene) -> str:
    kinds = ({"train__steps": 10**12}, {"train__batch_size": -1}, {"lease_seconds": 0}, {"train__seed": 10**30})
    for changes in kinds:
        with scene.victim(Taken(**changes)) as victim:
            victim.until(lambda: victim.taken.returned or victim.taken.claims > 2, 20)
            began = time.monotonic()
            held(victim.ends(), f"{changes}: one SIGTERM did not end it")
            held(victim.taken.renewed < 20, f"{changes}: {victim.taken.renewed} renewals")
            held(victim.memory() == 0, f"{changes}: a process is left")
            held(time.monotonic() - began < 15, f"{changes}: took {time.monotonic() - began:.0f} s")
    return f"{len(kinds)} kinds refused; one SIGTERM ended it each time"


@attack("A6", "answers that unpack into gigabytes, or end the daemon")
def answers(scene: Scene) -> str:
    bomb = Answer(200, gzip.compress(b"[" * (400 << 20), 1), {"Content-Type": "application/json", "Content-Encoding": "gzip"})
    with scene.victim(Taken(claim=bomb)) as victim:
        victim.until(lambda: victim.taken.claims >= 2, 20)
        most = victim.memory()
        held(victim.process.poll() is None, "a packed answer ended the daemon")
    for detail in ({"status": 1}, {"code": "x", "message": 5}, {"self": 1}):
        said = Answer.json({"code": "conflict", "message": "no", "detail": detail}, 409)
        with scene.victim(Taken(claim=said)) as victim:
            victim.until(lambda: victim.taken.claims >= 2, 20)
            held(victim.process.poll() is None, f"409 with detail {detail} ended the daemon: {victim.said()[-100:]}")
    return held(most < 400 << 20, f"{most / 1e6:.0f} MB at the most, and the daemon went on after every answer")


@attack("A6-names", "names of runs are markup, or speak to the terminal")
def names(scene: Scene) -> str:
    for name in ("[/]", "\x1b[2J", "a[link=https://evil.example]b[/link]"):
        with scene.victim(Taken(run_name=name)) as victim:
            victim.until(lambda: victim.taken.claims >= 2, 15)
            shown = run("agent", "status", "--home", str(victim.home))
            held("\x1b" not in shown.stdout + victim.said() and "Traceback" not in shown.stderr, f"{name!r}: {shown.stderr[-80:]}")
    return "fedagent status and the log show no control sequence, and no traceback"


@attack("A-key", "somebody answers in the coordinator's place, and has not its key")
def without_the_key(scene: Scene) -> str:
    believed = f'[coordinator]\nkeys = ["{"0" * 64}"]\n'
    void = Answer.json({"code": "unauthorized", "message": "your key is void", "detail": {}}, 401, **{COORDINATOR: "crd_" + 16 * "0"})
    for taken in (Taken(), Taken(claim=void)):
        with scene.victim(taken, policy=believed) as victim:
            victim.until(lambda: victim.taken.claims >= 2, 20)
            fetched = [a.path for a in victim.server.asked if "/shards/" in a.path]
            held(victim.taken.claims >= 2, "it did not ask again")
            held(not fetched and not taken.uploaded and not taken.returned, f"it did what was said: {len(fetched)} shards fetched")
            held(victim.process.poll() is None, f"the daemon ended: {victim.said()[-100:]}")
            held("coordinator.keys" in victim.said(), "it does not say why")
    return "neither work nor a void key was believed, and the agent asks on"


@attack("A-plain", "an agent and an operator speak plain HTTP to another machine")
def plain_http(scene: Scene) -> str:
    far, home = "http://192.0.2.1:8440", scene.place("far")
    operator = run("coordinator", "status", FEDCOORD_URL=far, FEDCOORD_OPERATOR_KEY="fco_x", FEDCOORD_PLAIN_HTTP="")
    agent = run("agent", "enroll", far, "--token", "fct_" + "x" * 43, "--home", str(home), "--runs", "x")
    serve = run("coordinator", "serve", "--home", str(home / "c"), "--host", "0.0.0.0", "--port", "0", FEDCOORD_PLAIN_HTTP="refused")
    told = ["plain HTTP" in done.stderr and done.returncode == 1 for done in (operator, agent, serve)]
    return held(all(told), f"operator, agent and serve refused: {json.dumps(told)}")
