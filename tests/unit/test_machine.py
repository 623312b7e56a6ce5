"""Limits of a container and of the environment are what an agent declares and obeys."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcybgd.agent import check, device, enrolment, settings
from fedcybgd.agent.device import GpuMissing, cards_visible, find_device
from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.settings import Config, Home, declared
from fedcybgd.agent.trainer_process import TrainerProcess
from fedcybgd.coordinator.engine import threads
from fedcybgd.shared.contract.agents import DeviceInfo
from fedcybgd.shared.host import machine
from fedcybgd.shared.host.machine import Limits, cores, limits, memory_available, memory_total

GIB = 1 << 30
V1 = "12:pids:/docker/abc\n5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"


def tree(root: Path, mine: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        (root / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "cgroup" / name).write_text(text + "\n")
    (root / "self").write_bytes(os.fsencode(mine))
    return root / "cgroup", root / "self"


TREES: dict[str, tuple[str, dict[str, str], Limits]] = {
    "v2, its own group": (
        "0::/docker/abc\n", {"docker/abc/memory.max": str(2 * GIB), "docker/abc/cpu.max": "150000 100000"}, Limits(2 * GIB, 2 * GIB, 1.5),
    ),
    "v2, a namespace": ("0::/\n", {"memory.max": str(2 * GIB), "cpu.max": "50000 100000"}, Limits(2 * GIB, 2 * GIB, 0.5)),
    "v2, the host's path in a container": (
        "0::/kubepods/pod1/x\n", {"memory.max": str(GIB), "cpu.max": "400000 100000"}, Limits(GIB, GIB, 4.0),
    ),
    "v2, a parent is stricter": (
        "0::/user/a/b\n",
        {"user/a/b/memory.max": "max", "user/a/memory.max": str(3 * GIB), "user/memory.max": str(GIB), "user/a/cpu.max": "max 100000"},
        Limits(GIB, GIB, None),
    ),
    "v2, memory.high": ("0::/a\n", {"a/memory.max": "max", "a/memory.high": str(GIB)}, Limits(GIB, GIB, None)),
    "v2, some is in use": (
        "0::/a\n",
        {"a/memory.max": str(GIB), "a/memory.current": str(600 << 20), "a/memory.stat": f"anon 1\ninactive_file {100 << 20}"},
        Limits(GIB, 524 << 20, None),
    ),
    "v2, no limits": ("0::/a\n", {"a/memory.max": "max", "a/cpu.max": "max 100000"}, Limits()),
    "v1": (
        V1,
        {"memory/docker/abc/memory.limit_in_bytes": str(2 * GIB), "memory/docker/abc/memory.usage_in_bytes": str(GIB),
         "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"},
        Limits(2 * GIB, GIB, 2.5),
    ),
    "v1, mounted at the top, under one name": (
        V1,
        {"memory/memory.limit_in_bytes": str(GIB), "cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
        Limits(GIB, GIB, 1.0),
    ),
    "v1, no limits": (
        V1, {"memory/docker/abc/memory.limit_in_bytes": "9223372036854771712", "cpu/docker/abc/cpu.cfs_quota_us": "-1"}, Limits(),
    ),
    "both": ("5:memory:/x\n0::/x\n", {"memory/x/memory.limit_in_bytes": str(GIB), "x/cpu.max": "200000 100000"}, Limits(GIB, GIB, 2.0)),
    "v1, a group above that is not seen": (
        V1, {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.stat": f"cache 1\nhierarchical_memory_limit {GIB}"},
        Limits(GIB, GIB, None),
    ),
    "v2 beside v1": (
        "5:memory:/x\n0::/x\n", {"unified/x/memory.max": str(GIB), "unified/x/cpu.max": "200000 100000"}, Limits(GIB, GIB, 2.0),
    ),
    "no number of bytes": ("0::/a\n", {"a/memory.max": "-1", "a/memory.high": "0"}, Limits()),
    "a name that is no UTF-8": ("0::/caf\udce9\n", {"memory.max": str(GIB)}, Limits(GIB, GIB, None)),
    "nonsense": ("garbage\n0::/a\n", {"a/memory.max": "lots", "a/cpu.max": "x y z"}, Limits()),
    "nothing": ("", {}, Limits()),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_the_strictest_limit_of_all_groups_counts(name: str, tmp_path: Path) -> None:
    mine, files, right = TREES[name]
    place = tree(tmp_path, mine, files)
    assert limits(*place) == right
    if right.memory_bytes is not None:
        assert memory_total(*place) == min(right.memory_bytes, psutil.virtual_memory().total)
        assert memory_available(*place) <= (right.memory_left or 0)
    if right.cores is not None:
        assert cores(*place) == max(1, min(len(os.sched_getaffinity(0)), int(right.cores)))


def test_a_machine_without_groups_is_as_psutil_says(tmp_path: Path) -> None:
    assert limits(tmp_path / "none", tmp_path / "none") == Limits()
    assert memory_total(tmp_path / "none", tmp_path / "none") == psutil.virtual_memory().total


@pytest.mark.parametrize("text", [None, "", "MemTotal: lots\n", "garbage\n"])
def test_a_machine_that_does_not_tell_its_memory_in_a_file_is_asked_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    """As in a container of LXC whose lxcfs has ended."""
    total, proc = psutil.virtual_memory().total, tmp_path / "proc"
    proc.mkdir()
    if text is not None:
        (proc / "meminfo").write_text(text)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(proc))
    assert abs(memory_total(tmp_path, tmp_path / "none") - total) < GIB
    assert 0 < memory_available(tmp_path, tmp_path / "none") <= total


def test_an_engine_spreads_a_job_over_no_more_cores_than_the_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "limits", lambda *_: Limits(cores=1.5))
    assert threads.cores() == 1


def config(**more: Any) -> Config:
    return Config.model_validate({"coordinator": "http://c", "data": {"rows": {"path": "rows.csv", "runs": []}}, **more})


@pytest.mark.parametrize(
    ("own", "group", "said"), [(None, None, 0), (None, 2 * GIB, 2 * GIB), (1.0, 2 * GIB, 10**9), (8.0, GIB, GIB), (1.0, None, 10**9)]
)
def test_the_limit_of_the_container_is_declared(monkeypatch: pytest.MonkeyPatch, own: float | None, group: int | None, said: int) -> None:
    monkeypatch.setattr(machine, "limits", lambda: Limits(memory_bytes=group))
    assert declared(config(limits={"memory_gb": own}), "cpu").memory_bytes == said
    on_card = config(limits={"memory_gb": own, "gpu_memory_gb": 3})
    assert declared(config(limits={"disk_gb": 70.5}), "cpu").disk_bytes == 70_500_000_000
    assert declared(on_card, "cuda").memory_bytes == 3_000_000_000, "a card's memory is not the container's"


# ---- cards -------------------------------------------------------------------------------------------------------------

ONE = "NVIDIA H100 80GB HBM3, 81559"
TWO = "NVIDIA T400, 4096\n" + ONE
UUIDS = "GPU-aaaa-1, NVIDIA T400, 4096\nGPU-bbbb-2, " + ONE


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def say(output: str, status: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        plain = "\n".join(line.split(", ", 1)[1] if line.startswith("GPU-") else line for line in output.splitlines())
        program.write_text(f"#!/bin/sh\ncase \"$*\" in *uuid*) echo '{output}';; *) echo '{plain}';; esac\nexit {status}\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return say


CARDS: list[tuple[str, str | None, int | str | None, str, str]] = [
    (ONE, None, None, "cuda", "H100"), (ONE, "", None, "cpu", ""), (ONE, "-1", None, "cpu", ""), (ONE, "NoDevFiles", None, "cpu", ""),
    (ONE, "0", None, "cuda", "H100"), (ONE, "5", None, "cpu", ""), (TWO, None, None, "cuda", "T400"), (TWO, "1", None, "cuda", "H100"),
    (TWO, "1,0", None, "cuda", "H100"), (TWO, " 0 , 1", None, "cuda", "T400"), (TWO, None, 1, "cuda", "H100"), (TWO, "0", 1, "cuda", "H100"),
    (UUIDS, "GPU-bbbb-2", None, "cuda", "H100"), (UUIDS, "GPU-bbbb", None, "cuda", "H100"), (UUIDS, "GPU-cccc", None, "cpu", ""),
    (UUIDS, None, "GPU-aaaa-1", "cuda", "T400"), (UUIDS, "MIG-1234", None, "cuda", "T400"), (ONE, "GPU-bbbb", None, "cuda", "H100"),
    ("NVIDIA GB10, [N/A]", None, None, "cuda", "GB10"), ("Orin (nvgpu), [N/A]", None, None, "cuda", "Orin"),
    ("NVIDIA Thor, [Not Supported]", "0", None, "cuda", "Thor"), ("NVIDIA, Model X, 100", None, None, "cuda", "Model X"),
    ("No devices were found", None, None, "cpu", ""), ("", None, None, "cpu", ""), ("NVIDIA L4, 100 MiB", None, None, "cuda", "L4"),
    ("NVIDIA A100, [GPU is lost]", None, None, "cpu", ""), ("NVIDIA A100, [Unknown Error]\n" + ONE, None, None, "cuda", "H100"),
    (ONE, "²", None, "cpu", ""), ("\ufeffNVIDIA L4, 100\r\n", None, None, "cuda", "NVIDIA L4"), ("NVIDIA H100, 81,559", None, None, "cuda", "H100"),
    ("NVIDIA H100, 81.559 MiB", None, None, "cuda", "H100"), ("NVIDIA H100, 81559.00", None, None, "cuda", "H100"),
    ("NVIDIA H100, " + "9" * 5000, None, None, "cpu", ""), ("NVIDIA \u202eL4, 100", None, None, "cuda", "NVIDIA L4"),
]  # fmt: skip


@pytest.mark.parametrize(("output", "visible", "gpu", "kind", "name"), CARDS)
def test_the_card_that_training_will_see(
    smi: Any, monkeypatch: pytest.MonkeyPatch, output: str, visible: str | None, gpu: int | str | None, kind: str, name: str
) -> None:
    smi(output)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_device("auto", gpu)
    assert found.kind == kind
    if kind == "cuda":
        assert name in found.name
        assert found.name.isprintable()
        unified = "[" in output and "H100" not in found.name
        assert found.accelerator_bytes == (memory_total() if unified else {"T400": 4096, "H100": 81559}.get(name, 100) << 20)


PARTS = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 1g.5gb      Device  0: (UUID: MIG-1111)
  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-aaaa/2/0)
GPU 1: NVIDIA T400 (UUID: GPU-bbbb)
"""


@pytest.mark.parametrize(
    ("visible", "name", "gib"),
    [(None, "MIG 1g.5gb", 5), ("0", "MIG 1g.5gb", 5), ("MIG-1111", "MIG 1g.5gb", 5), ("MIG-GPU-aaaa/2/0", "MIG 3g.20gb", 20),
     ("GPU-aaaa", "MIG 1g.5gb", 5), ("1", "NVIDIA T400", 4), ("MIG-9", None, 0), ("MIG-GPU-cccc/1/0", "MIG 1g.5gb", 5)],
)  # fmt: skip
@pytest.mark.parametrize("said", ["40960", "[Insufficient Permissions]"])
def test_of_a_divided_card_a_part_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, name: str | None, gib: int, said: str
) -> None:
    (tmp_path / "parts").write_text(PARTS)
    first, second = f"NVIDIA A100-SXM4-40GB, {said}", "NVIDIA T400, 4096"
    (tmp_path / "nvidia-smi").write_text(
        f"#!/bin/sh\ncase \"$*\" in -L) cat {tmp_path}/parts;; *uuid*) echo 'GPU-aaaa, {first}\nGPU-bbbb, {second}';; "
        f"*) echo '{first}\n{second}';; esac\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_device()
    assert (found.kind == "cuda") is (name is not None)
    assert name is None or name in found.name
    assert found.accelerator_bytes == (4096 << 20 if gib == 4 else int(gib * 0.9 * GIB))


def device_findings(home: Path, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, check.Finding]:
    monkeypatch.setattr(check, "_trial", lambda *_: check.Finding(None, "training", "not tried here"))
    return {one.what: one for one in check._device(Home(home), config(device=wanted))}


@pytest.mark.parametrize(
    ("output", "status", "kind", "told"),
    [("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver", 9, "cpu", "communicate"),
     ("Failed to initialize NVML: Driver/library version mismatch", 0, "cpu", "mismatch"), ("", 139, "cpu", "status 139"),
     ("Unable to determine the device handle for GPU0000:02:00.0: GPU is lost", 15, "cpu", "is lost"),
     (ONE + "\nWARNING: infoROM is corrupted at gpu 0000:01:00.0", 14, "cuda", None), ("No devices were found", 6, "cpu", None)],
)  # fmt: skip
def test_what_keeps_a_driver_from_listing_cards_is_told(
    smi: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, status: int, kind: str, told: str | None
) -> None:
    smi(output, status)
    assert find_device().kind == kind
    found = device_findings(tmp_path, {}, monkeypatch).get("GPU")
    assert (found is None) is (told is None)
    if found is not None and told is not None:
        assert (found.ok, told in found.found, "mend the driver" in found.advice) == (None, True, True)
        with pytest.raises(GpuMissing, match=f"lists none: .*{told}"):
            find_device("auto", 0)
    assert "GPU" not in device_findings(tmp_path, {"kind": "cpu"}, monkeypatch), "who wants none is not told"


def test_a_driver_in_which_nvidia_smi_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the kernel no signal reaches it."""
    started: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: started.append(process))
    monkeypatch.setattr(device, "ANSWERS_WITHIN_S", 0.1)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began = time.monotonic()
    found = find_device()
    for process in started:
        process.send_signal(signal.SIGKILL)
    assert (found.kind, bool(started)) == ("cpu", True)
    assert time.monotonic() - began < 30


def test_the_chosen_card_is_the_one_that_the_training_process_sees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for gpu, seen in ((1, "1"), ("GPU-ab12", "GPU-ab12"), (None, "0")):
        environment = TrainerProcess(config(device={} if gpu is None else {"gpu": gpu}), Home(tmp_path))._environment
        assert environment["CUDA_VISIBLE_DEVICES"] == seen
        assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID", "numbers mean what nvidia-smi means by them"


@pytest.mark.parametrize("gpu", [-1, "first", "GPU-;rm", 1.5])
def test_what_is_no_card_is_refused(gpu: object) -> None:
    with pytest.raises(ValueError, match="gpu"):
        config(device={"gpu": gpu})


def test_a_card_that_is_not_there_is_refused_and_nothing_else_taken(smi: Any) -> None:
    for output, gpu, there in ((TWO, 2, "lists 2"), (UUIDS, "GPU-cccc", "lists 2"), ("No devices were found", 0, "lists none")):
        smi(output)
        for wanted in ("auto", "cuda"):
            with pytest.raises(GpuMissing, match=there) as refused:
                find_device(wanted, gpu)
            assert refused.value.code == "gpu_missing"
        assert find_device("cpu", gpu).kind == "cpu", "which no card is wanted for"


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("1", 1), ("1,0", 2), ("", 0)])
def test_check_says_that_an_agent_takes_one_card_of_several(
    smi: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str | None, count: int
) -> None:
    smi(TWO)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cards_visible() == count
    monkeypatch.setattr(check, "_trial", lambda *_: check.Finding(None, "training", "not tried here"))
    for section, told in (({}, count > 1), ({"gpu": 1}, False), ({"kind": "cpu"}, False)):
        found = [one for one in check._device(Home(tmp_path), config(device=section)) if one.what == "GPUs"]
        assert bool(found) is told, section
        assert all("one of 2" in one.found and "--gpu" in one.advice and one.ok is None for one in found)


def test_check_names_a_card_that_is_not_there(smi: Any, tmp_path: Path) -> None:
    smi(TWO)
    (found,) = check._device(Home(tmp_path), config(device={"gpu": 4}))
    assert (found.ok, found.what) == (False, "device")
    assert "device.gpu = 4 is no GPU of this machine" in found.found


def test_an_agent_is_enrolled_for_one_card_and_says_which(smi: Any, tmp_path: Path) -> None:
    """The coordinator plans with what it is told then."""
    smi(TWO)
    assert "T400" in enrolment.device_of(Home(tmp_path)).name
    for given, gpu in (("1", 1), ("GPU-ab12", "GPU-ab12"), (None, None)):
        assert enrolment.chosen_gpu(given) == gpu
    for wrong in ("first", "-1", "cuda:1", "", "²", "1" * 5000):
        with pytest.raises(ConfigError, match="is no GPU"):
            enrolment.chosen_gpu(wrong)
    assert "H100" in enrolment.device_of(Home(tmp_path), 1).name
    with pytest.raises(GpuMissing):
        enrolment.device_of(Home(tmp_path), 2)
    home = Home(tmp_path)
    home.config.write_text(settings.template("http://127.0.0.1:1", None, [], gpu=1))
    assert home.load_config().device.gpu == 1
    assert "H100" in enrolment.device_of(home, 0).name, "an agent.toml that is there counts"


# ---- the agent's directory ---------------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_used_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Home(tmp_path / "new").ready()
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--home"):
        Home(tmp_path / "file" / "home").ready()
    for number, advice in ((28, "its disk is full"), (30, "cannot be written"), (13, "cannot be written")):
        monkeypatch.setattr(
            settings.Path, "write_bytes", lambda *_, number=number: (_ for _ in ()).throw(OSError(number, os.strerror(number)))
        )
        with pytest.raises(ConfigError, match=advice):
            Home(tmp_path / "new").ready()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a card here")
def test_check_says_that_a_card_was_found_and_cannot_be_used(tmp_path: Path) -> None:
    """Which the coordinator would go on planning with."""
    found = DeviceInfo(kind="cuda", name="NVIDIA H100", cores=2, memory_bytes=1, accelerator_bytes=1)
    said = check._trial(Home(tmp_path), config(), found)
    assert said.ok is False
    assert "this torch cannot use the NVIDIA H100" in said.found
    assert 'set device.kind = "cpu"' in said.advice
