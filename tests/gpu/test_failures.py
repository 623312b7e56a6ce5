"""What goes wrong on a card has a name, and the next visit is done all the same."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from fedcybgd.agent import trainer
from fedcybgd.agent.errors import VisitFailed
from fedcybgd.agent.messages import TrainRequest
from fedcybgd.agent.settings import Config
from fedcybgd.agent.settings import Home as AgentHome
from fedcybgd.agent.trainer_process import TrainerProcess
from fedcybgd.agent.training.compute import DRIVERS_OWN, limit_card
from fedcybgd.agent.training.visitor import Visitor
from tests.support.models import word_piece
from tests.support.processes import wait_for
from tests.support.training import Home, options, same, train

START_S = 120.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    word_piece(tokenizer := tmp_path_factory.mktemp("tokenizer"))
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    return Home(tmp_path_factory.mktemp("llama"), tokenizer, "llama-untied", layers=2, **sizes)


def process(folder: Path, home: Home, **limits: float) -> TrainerProcess:
    """The training process of an agent that may read what visits need."""
    values = {
        "coordinator": "http://localhost", "data": {"path": str(home.rows), "runs": ["*"]}, "device": {"kind": "cuda"}, "limits": limits,
    }  # fmt: skip
    place = AgentHome(folder)
    place.cache, place.outbox = home.folder, folder / "outbox"
    return TrainerProcess(Config.model_validate(values), place)


def request(home: Home, folder: Path, *blocks: str, **settings: Any) -> TrainRequest:
    (folder / "outbox").mkdir(exist_ok=True)
    files = {name: str(home.folder / name) for name in home.files}
    for name, path in home.files.items():
        if path != files[name]:
            Path(files[name]).write_bytes(Path(path).read_bytes())
    wanted = home.request(*blocks, codec="int8", **settings)
    return wanted.model_copy(update={"files": files, "visit": "asg/1", "delta_path": str(folder / "outbox" / "delta.safetensors")})


def used_by(pid: int) -> bool:
    """Whether a process has anything on a card."""
    try:
        return any("nvidia" in m.path for m in psutil.Process(pid).memory_maps())
    except psutil.NoSuchProcess:
        return False


def test_a_card_that_is_full_is_out_of_memory_and_the_next_visit_is_done(home: Home) -> None:
    visitor = Visitor("cuda", options())
    wanted = home.request("layers.1", codec="int8")
    expected = train(wanted, visitor)
    limit_card(DRIVERS_OWN + torch.cuda.memory_allocated() + (24 << 20))
    try:
        event = trainer._visit(lambda: visitor, wanted, io.StringIO(), lambda: False)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (event.event, event.reason, event.spoilt) == ("failed", "out_of_memory", False)
    assert event.facts is not None
    assert event.facts.text().startswith("OutOfMemoryError")
    assert same(expected, train(wanted, visitor))


def test_the_owners_limit_holds_on_the_card(home: Home, tmp_path: Path) -> None:
    tight = process(tmp_path, home, memory_gb=4, gpu_memory_gb=0.85)
    try:
        with pytest.raises(VisitFailed) as failed:
            tight.train(request(home, tmp_path, "layers.1"), lambda _: None, threading.Event())
    finally:
        tight.close()
    assert failed.value.reason == "out_of_memory"


LOSES_ITS_CARD = """
import torch
from fedcybgd.agent.training.failures import failure_of
try:
    torch.zeros(4, device="cuda")[torch.tensor([7], device="cuda")].sum().item()
except Exception as error:
    print(failure_of(error, None).model_dump_json())
try:
    torch.zeros(4, device="cuda").sum().item()
except RuntimeError:
    print("lost")
"""


def test_a_process_that_has_lost_its_card_says_that_it_is_spoilt() -> None:
    done = subprocess.run([sys.executable, "-c", LOSES_ITS_CARD], capture_output=True, text=True, check=True, timeout=START_S)
    said, after = done.stdout.splitlines()
    event = json.loads(said)
    assert (event["reason"], event["spoilt"]) == ("other", True), event
    assert after == "lost", "it would fail in every later visit"


def test_a_killed_process_leaves_the_card_and_the_next_one_makes_the_same(home: Home, tmp_path: Path) -> None:
    child = process(tmp_path, home)
    wanted = request(home, tmp_path, "layers.1", steps=4)
    long = request(home, tmp_path, "layers.1", steps=100_000)
    try:
        child.train(wanted, lambda _: None, threading.Event())
        expected = Path(wanted.delta_path).read_bytes()
        assert child._process is not None
        pid = child._process.pid
        assert used_by(pid)
        stepped = threading.Event()
        killer = threading.Thread(target=lambda: (stepped.wait(START_S), os.kill(pid, signal.SIGKILL)))
        killer.start()
        with pytest.raises(VisitFailed) as failed:
            child.train(long, lambda progress: stepped.set() if progress.step else None, threading.Event())
        killer.join()
        assert failed.value.reason == "trainer_died"
        wait_for(lambda: not used_by(pid), limit=10)
        child.train(wanted, lambda _: None, threading.Event())
        assert Path(wanted.delta_path).read_bytes() == expected
    finally:
        child.close()
