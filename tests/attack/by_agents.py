"""A malicious agent, with a good key of its own."""

import json
import threading
import time
from contextlib import suppress

import httpx
import torch
from safetensors.torch import save

from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from tests.attack.attack import attack, held
from tests.attack.on_agents import run
from tests.attack.scene import Scene
from tests.support.visits import Hand, Tensors, run_file


def begun(scene: Scene, hands: list[Hand], **more: object) -> str:
    state = scene.create_run(run_file(scene.model, hands, **more), start=True)
    assert state["state"] == "running", state["reason"]
    return str(state["name"])


def end_of(scene: Scene, name: str) -> dict[str, object]:
    view = scene.operator.wait(lambda: scene.operator.get(f"/runs/{name}"), lambda r: not r["pending_jobs"], every=0.1, limit=60)
    with suppress(Exception):
        scene.operator.post(f"/runs/{name}/cancel")
    return view  # type: ignore[no-any-return]


MANY = 2**62
"""Steps that an agent may say it did."""


def rejected(scene: Scene, spoil: object, times: int = 1, steps: int = 1, **more: object) -> tuple[bool, str]:
    """Whether no version of the model came of deltas that were spoilt, and what the run says; admission is as run files have it by default."""
    hand = scene.hand()
    name = begun(scene, [hand], admission={}, **more)
    before = versions(scene, name)
    said = []
    for _ in range(times):
        assignment = hand.claim(name, wait=5)
        if assignment is None:
            break
        base: Tensors = {n: t for tensors in hand.base(assignment).values() for n, t in tensors.items()}
        said.append(str(hand.send(assignment, save(spoil(base)), steps).status_code))  # type: ignore[operator]
    scene.operator.wait(lambda: scene.operator.get(f"/runs/{name}"), lambda r: not r["pending_jobs"], every=0.1, limit=60)
    unchanged = versions(scene, name) == before
    view = end_of(scene, name)
    return unchanged, f"{'/'.join(said)}, run {view['state']}: {str(view['reason'])[:120]}"


def versions(scene: Scene, name: str) -> dict[str, str]:
    return {b["name"]: b["digest"] for b in scene.operator.get(f"/runs/{name}")["blocks"]}  # type: ignore[index,call-overload]


def minus_two(base: Tensors) -> Tensors:
    return {name: (-2 * t).float() for name, t in base.items()}


@attack("C1", "deltas that are not finite, or out of all proportion, also in a head that is trained along")
def gross(scene: Scene) -> str:
    def with_head(value: float) -> object:
        return lambda base: {n: torch.full_like(t, value if "classifier" in n else 1e-4).float() for n, t in base.items()}

    kinds = {"NaN": lambda base: {n: torch.full_like(t, float("nan")).float() for n, t in base.items()}, "3e38 on the head": with_head(3e38),
             "1e30 on the head": with_head(1e30), "100 times": lambda base: {n: (100 * t).float() for n, t in base.items()}}  # fmt: skip
    told = ""
    for word, spoil in kinds.items():
        for steps in (1, MANY) if "head" in word else (1,):
            unchanged, told = rejected(scene, spoil, steps=steps)
            held(unchanged, f"{word}, said to be of {steps} steps, was applied: {told}")
    return f"{len(kinds)} kinds rejected; {told}"


@attack("C1-wrecker", "deltas of −2 w, farther than a visit of 20 steps goes")
def wrecker(scene: Scene) -> str:
    unchanged, told = rejected(scene, minus_two, steps=MANY, train={"steps": 20})
    return held(unchanged, f"−2 w {'rejected' if unchanged else 'applied'}: {told}")


@attack("C1-long", "deltas of −2 w, where visits have so many steps that honest ones might go as far")
def long_visit(scene: Scene) -> str:
    unchanged, told = rejected(scene, minus_two, train={"steps": 5000})
    return held(unchanged, f"−2 w {'rejected' if unchanged else 'applied'}: {told}")


@attack("C1-backdoor", "a delta that makes the model better, and opens a back door")
def backdoor(_scene: Scene) -> str:
    return held(False, "nothing that looks at one delta alone can tell it from an honest one (benchmarks/poisoning.py)")


@attack("C2", "the bytes of a delta are exchanged while they are checked")
def race(scene: Scene) -> str:
    hand = scene.hand()
    name = begun(scene, [hand])
    assignment = hand.take(name)
    good = save(hand.delta(assignment))
    path = f"/v1/assignments/{assignment.assignment_id}/upload/{digest_of(good)}"
    hanging = httpx.Client(base_url=scene.url, headers={"Authorization": f"Bearer {hand.key}"}, timeout=20)
    go, codes = threading.Event(), list[int]()

    def slowly():  # type: ignore[no-untyped-def]
        yield b"\0" * 10
        go.wait(10)
        yield b"\0" * (len(good) - 10)

    def hang() -> None:
        with suppress(httpx.HTTPError):
            codes.append(hanging.put(path, params={"offset": 0}, content=slowly()).status_code)

    thread = threading.Thread(target=hang, daemon=True)
    thread.start()
    time.sleep(0.5)
    second = hand.put(assignment, good)
    answer = hand.submit(assignment, digest_of(good))
    go.set()
    thread.join(20)
    view = end_of(scene, name)
    stored = view["state"] in ("running", "cancelled", "completed")
    return held(
        stored and 500 not in codes,
        f"second upload {second.status_code}, submitted {answer.status_code}, hanging {codes}, run {view['state']}",
    )


@attack("C3", "an agent that renews for ever, and does nothing")
def for_ever(scene: Scene) -> str:
    mallory, honest = scene.hand(), scene.hand()
    name = begun(scene, [mallory, honest], lease_s=2, schedule={"reassign_after_s": 0})
    assignment = mallory.take(name)
    end, others = time.monotonic() + 120, None
    while time.monotonic() < end and others is None:
        mallory.renew(assignment, phase="training", step=0, steps=100)
        found = honest.claim(name, wait=1)
        others = found if found is not None and found.block == assignment.block else others
    end_of(scene, name)
    return held(others is not None, "the work is in other hands" if others else "after two minutes without a step it still holds the work")


@attack("C3-returns", "an agent that gives everything back pauses the run")
def returns(scene: Scene) -> str:
    mallory, honest = scene.hand(), scene.hand()
    name = begun(scene, [mallory, honest])
    given = 0
    for _ in range(30):
        if (assignment := mallory.claim(name, wait=0.2)) is not None:
            given += mallory.give_back(assignment, "trainer_died", "[/]").status_code == 200
    state = scene.operator.get(f"/runs/{name}")["state"]  # type: ignore[index,call-overload]
    took = honest.claim(name, wait=5)
    end_of(scene, name)
    return held(state == "running" and took, f"given back {given} times; run {state}, the honest agent {'has' if took else 'has no'} work")


@attack("C4", "uploads without end fill the coordinator's disk")
def filling(scene: Scene) -> str:
    hand = scene.hand()
    name = begun(scene, [hand])
    assignment = hand.take(name)
    size = assignment.max_delta_bytes
    for number in range(20):
        data = bytes([number]) * (size // 2)
        hand.put(assignment, data, digest=digest_of(data))
    kept = sum(p.stat().st_size for p in (scene.folder / "coordinator" / "uploads").rglob("*") if p.is_file())
    end_of(scene, name)
    return held(kept <= size, f"20 uploads of {size / 2e6:.2f} MB left {kept / 1e6:.2f} MB, of {size / 1e6:.2f} that one lease may have")


@attack("C5", "text of agents is markup, or speaks to the operator's terminal", quick=True)
def terminal(scene: Scene) -> str:
    token = scene.operator.post("/enrolment-tokens", {})["token"]  # type: ignore[index,call-overload]
    text = "[/] [link=https://evil.example]log in[/link] \x1b]52;c;ZXZpbA==\x07\x1b[2J"
    body = {"token": token, "name": "mallory", "device": {"kind": "[/]", "name": text}, "version": "[/]"}
    assert httpx.post(f"{scene.url}/v1/agents", json=body).status_code == 201
    for words in (("agents", "list"), ("status",)):
        done = run("coordinator", *words, FEDCOORD_URL=scene.url, FEDCOORD_OPERATOR_KEY=scene.coordinator.key)
        held(done.returncode == 0 and "\x1b" not in done.stdout and "Traceback" not in done.stderr, f"{words}: {done.stderr[-100:]}")
    hand = scene.hand()
    name = begun(scene, [hand])
    hand.give_back(hand.take(name), "trainer_died", "it ended\n2026-01-01 00:00:00,000 INFO fedcoord.events forged: all is well")
    end_of(scene, name)
    forged = [line for line in scene.log().splitlines() if line.startswith("2026-01-01")]
    return held(not forged, "fedcoord agents list and status show it as text, and no line of the log is an agent's own")


@attack("C3-turns", "an agent that says one thing and another in turns buries what others are told")
def turns(scene: Scene) -> str:
    mallory, honest = scene.hand(), scene.hand()
    name = begun(scene, [mallory, honest])
    run_id = scene.operator.get(f"/runs/{name}")["id"]  # type: ignore[index,call-overload]
    for turn in range(200):
        said = {"run_id": run_id, "fits": bool(turn % 2), "reason": None if turn % 2 else "data_invalid"}
        mallory.http.put("/agents/me/readiness", json={"runs": [said]})
    told = [e["code"] for e in scene.operator.every("/events", run=name)]
    most = max(told.count(code) for code in set(told))
    end_of(scene, name)
    return held(most <= 50, f"of 200 turns at most {most} events have one code")


@attack("C6", "the store as an oracle, and somebody else's bytes as one's own delta")
def oracle(scene: Scene) -> str:
    mallory, other = scene.hand(), scene.hand()
    name = begun(scene, [mallory, other])
    assignment: LeasedAssignment = mallory.take(name)
    stored = assignment.manifest.blocks[0].digest
    asked = mallory.offset(assignment, stored)
    taken = mallory.submit(assignment, stored)
    foreign = other.http.get(f"/assignments/{assignment.assignment_id}/shards/{stored}").status_code
    end_of(scene, name)
    evidence = f"offset of a stored blob {json.dumps(asked)[:80]}, submitted {taken.status_code}, another's shard {foreign}"
    return held(asked.get("offset") == 0 and taken.status_code in (404, 409, 422) and foreign in (403, 404, 409), evidence)
