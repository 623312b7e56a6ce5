"""What lies in deploy/ and the Dockerfile fits the programs: a file that is only read by other people's tools goes stale unseen."""

import json
import re
import shutil
import subprocess
import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from docs import generate
from fedcybgd.agent import cli as agent_cli
from fedcybgd.agent.retry import LONG_WAIT_S
from fedcybgd.agent.status import HANGS_AFTER_S
from fedcybgd.agent.worker import WAIT_S
from fedcybgd.coordinator import cli as coordinator_cli
from fedcybgd.coordinator.app import create_app
from fedcybgd.coordinator.serve import check_listening, configured
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.walls.rules import rule_for
from tests.test_docs import NAMED, ROOT, options_of

DEPLOY = ROOT / "deploy"
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
COMPOSED = {
    name: yaml.safe_load((DEPLOY / name).read_text()) for name in ("compose.yaml", "compose.postgres-tls.yaml", "compose.replicas.yaml")
}
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes-agent.yaml").read_text()))
THEIRS = {"./models", "./rows", "./tls"}
"""Folders that a person fills, beside the compose files"""
OPTIONS = {
    f"{program} {name}": options
    for program, app in (("fedcoord", coordinator_cli.app), ("fedagent", agent_cli.app))
    for name, options in options_of(typer.main.get_command(app))
}
every_composition = pytest.mark.parametrize("composed", COMPOSED.values(), ids=COMPOSED)
every_unit = pytest.mark.parametrize("unit", sorted(DEPLOY.glob("*.service")), ids=lambda path: path.stem)


def stages() -> dict[str, list[tuple[str, str]]]:
    """Name → instruction and arguments of each stage, with those of the stages that it is made from before its own."""
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    found: dict[str, list[tuple[str, str]]] = {}
    for instruction, rest in (line.split(" ", 1) for line in lines if line and not line.startswith("#")):
        if instruction == "FROM":
            source, _, name = rest.partition(" AS ")
            found[name] = [*found.get(source, []), (instruction, rest)]
        else:
            found[name].append((instruction, rest))
    return found


STAGES = stages()


def said(stage: str, instruction: str) -> list[str]:
    return [rest for name, rest in STAGES[stage] if name == instruction]


def is_command(words: list[str]) -> bool:
    """Whether a program of ours takes these words."""
    return (
        words[0] in SCRIPTS
        and " ".join(words[:2]) in OPTIONS
        and {w for w in words[2:] if w.startswith("-")} <= OPTIONS[" ".join(words[:2])]
    )


def test_every_command_that_is_named_exists_with_its_options() -> None:
    found, wrong = 0, []
    for path in [ROOT / "Dockerfile", *(path for path in DEPLOY.iterdir() if path.suffix != ".json")]:
        for program, first, _, rest in NAMED.findall(
            re.sub(r'[\\"]?\n +(?=--)', " ", path.read_text()).replace('bin/fedagent"', "bin/fedagent")
        ):
            command, given = f"{program} {first}", set(re.findall(r"(?<!\S)--[a-z][a-z-]+", rest))
            found += 1
            if not any(real.startswith(command) and given <= options for real, options in OPTIONS.items()):
                wrong.append((path.name, command, given))
    assert found > 8
    assert wrong == []


@pytest.mark.parametrize("image", ["coordinator", "agent"])
def test_an_image_is_made_of_what_is_there_and_runs_as_nobody_special(image: str) -> None:
    for sources in said(image, "COPY"):
        assert [name for name in sources.split()[:-1] if not (ROOT / name).exists()] == []
    for folder in ("fedcybgd", *(link.resolve().name for link in (ROOT / "fedcybgd").iterdir() if link.is_symlink())):
        assert f"{folder} {folder}" in said(image, "COPY"), folder
    assert said(image, "USER")[-1] == "1000:1000"
    assert STAGES[image].index(("USER", "1000:1000")) > max(n for n, (name, _) in enumerate(STAGES[image]) if name == "RUN")
    (entry,), (command,) = (list(map(json.loads, said(image, name))) for name in ("ENTRYPOINT", "CMD"))
    assert is_command([*entry, *command])
    (health,) = said(image, "HEALTHCHECK")
    assert is_command(json.loads(health.partition(" CMD ")[2]))
    names = [word.split("=")[0] for line in [*said(image, "ENV"), *said(image, "ARG")] for word in line.split()]
    assert [name for name in names if re.search("KEY|TOKEN|PASSWORD|SECRET", name)] == []
    assert [name for name in names if name.startswith("FEDCOORD_") and not is_setting(name)] == []


def is_setting(variable: str) -> bool:
    return variable.removeprefix("FEDCOORD_").lower() in Settings.model_fields


def test_torch_and_python_are_the_same_everywhere() -> None:
    places = [
        "Makefile",
        "requirements/lock.py",
        "requirements/torch.lock",
        "requirements/torch-cpu.lock",
        "docs/operating.md",
        "docs/running-an-agent.md",
    ]
    versions = {place: set(re.findall(r"\btorch==([0-9.]+[0-9])", (ROOT / place).read_text())) for place in places}
    assert set(map(frozenset, versions.values())) == {frozenset(versions["Makefile"])}, versions
    (image,) = said("base", "FROM")
    python = re.match(r"python:([0-9.]+)-slim ", image)
    assert python is not None
    assert f'"{python[1]}"' in (ROOT / "requirements/lock.py").read_text()


@every_composition
def test_a_composition_is_of_real_parts(composed: dict[str, Any]) -> None:
    services, volumes = composed["services"], composed.get("volumes", {})
    used = set()
    for name, service in services.items():
        assert set(service) <= {
            "image", "build", "restart", "environment", "ports", "volumes", "networks", "depends_on", "profiles", "healthcheck",
            "read_only", "tmpfs", "cap_drop", "security_opt", "stop_grace_period", "command",
        }, name  # fmt: skip
        ours = "build" in service
        if ours:
            assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
            made = [line.split()[-1] for line in said(service["build"]["target"], "RUN") if line.startswith("install --directory")]
            assert service["build"]["target"] in STAGES
            assert "command" not in service or is_command(
                [*json.loads(said(service["build"]["target"], "ENTRYPOINT")[0]), *service["command"]]
            )
        for variable in service.get("environment", {}):
            assert not ours or is_setting(variable) or variable == "PGPASSWORD", variable
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            healthy = services[other]
            assert "healthcheck" in healthy or said(healthy["build"]["target"], "HEALTHCHECK")
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            used |= {source} - THEIRS if not source.startswith("./") else set()
            assert source in volumes or source in THEIRS or (DEPLOY / source).is_file(), volume
            assert not ours or source.startswith("./") or target in said(service["build"]["target"], "VOLUME") + made
        for port in service.get("ports", []):
            assert not ours or port == f"127.0.0.1:{said('coordinator', 'EXPOSE')[0]}:{Settings().port}", (
                "beyond this machine only through a proxy"
            )
        assert set(service.get("networks", [])) <= set(composed.get("networks", {}))
    assert used == set(volumes)


@every_composition
def test_a_composed_coordinator_starts(composed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With these variables, those of the image, and whatever the operator gives for the rest."""
    environment = dict(word.split("=") for line in said("coordinator", "ENV") for word in line.split() if word.startswith("FEDCOORD_"))
    for name, value in (environment | composed["services"]["coordinator"]["environment"]).items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+(?::-(\w+))?[^}]*\}", lambda given: given[1] or "coordinator.example", value))
    settings = Settings()
    check_listening(settings, None)
    if settings.proxies is not None:
        address = ip_address(settings.proxies)
        assert composed["services"]["proxy"]["networks"]["inside"]["ipv4_address"] == str(address)
        assert address in ip_network(composed["networks"]["inside"]["ipam"]["config"][0]["subnet"])
        assert settings.through_proxies
        assert not composed["services"]["coordinator"].get("ports")


def test_the_proxy_lets_through_what_the_coordinator_takes() -> None:
    text = re.sub(r"#.*", "", (DEPLOY / "Caddyfile").read_text())
    (unbounded,) = re.findall(r"@small not path (.*)", text)
    streams = {
        re.sub(r"\{[^}]*\}", "*", path)
        for method, path, _ in generate.routes()
        if rule_for(method, re.sub(r"\{[^}]*\}", "x", path)).most is None
    }
    assert set(unbounded.split()) == streams
    assert f"reverse_proxy {{$FEDCOORD_UPSTREAMS:coordinator:{Settings().port}}} " in text
    upstreams = COMPOSED["compose.replicas.yaml"]["services"]["proxy"]["environment"]["FEDCOORD_UPSTREAMS"].split()
    assert [one for one in upstreams if one.partition(":")[0] not in COMPOSED["compose.replicas.yaml"]["services"]] == []
    (asked,) = re.findall(r"health_uri (\S+)", text)
    assert ("GET", asked) in {(method, path) for method, path, _ in generate.routes()}

    def seconds(name: str) -> int:
        return int(re.findall(rf"\b{name} (\d+)s", text)[0])

    assert seconds("response_header_timeout") > max(WAIT_S, 60)
    assert seconds("keepalive") < configured(create_app(Settings()), Settings()).timeout_keep_alive
    assert "flush_interval -1" in text
    assert not re.findall(r"\bencode\b|request_buffers|response_buffers", text)


@every_unit
def test_a_unit_is_what_systemd_takes(unit: Path, tmp_path: Path) -> None:
    if (systemd := shutil.which("systemd-analyze")) is None:
        pytest.skip("there is no systemd here")
    (program := tmp_path / unit.stem).write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (copy := tmp_path / unit.name).write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={program}", unit.read_text(), flags=re.MULTILINE))
    done = subprocess.run([systemd, "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if str(copy) in line]) == (0, [])


@every_unit
def test_a_unit_is_watched_by_what_its_program_does(unit: Path) -> None:
    said = dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE))
    assert is_command([Path(said["ExecStart"].split()[0]).name, *said["ExecStart"].split()[1:]])
    assert (said["Type"], said["Restart"]) == ("notify", "on-failure")
    seconds = 60 * int(said["WatchdogSec"].removesuffix("min"))
    # No pause that is meant is as long: of the agent the longest is that for a proxy with a limit, of the coordinator a lock on its database.
    assert seconds >= (2 * 1.2 * LONG_WAIT_S if unit.stem == "fedagent" else 4 * 30)
    assert unit.stem != "fedagent" or seconds == HANGS_AFTER_S
    assert (
        unit.stem == "fedagent-cache"
        or said["Environment"] == f"{unit.stem.partition('-')[0].upper()}_HOME=/var/lib/{said['StateDirectory']}"
    )


def test_agents_in_kubernetes_are_those_of_the_image() -> None:
    agents, walls = KUBERNETES
    pod = agents["spec"]["template"]["spec"]
    assert (agents["kind"], walls["kind"]) == ("StatefulSet", "NetworkPolicy")
    assert walls["spec"]["podSelector"] == agents["spec"]["selector"]
    (enroll,), (agent,) = pod["initContainers"], pod["containers"]
    home = dict(line.split("=") for line in said("agent", "ENV") if line.startswith("FEDAGENT"))["FEDAGENT_HOME"]
    assert f"{home}/credentials.json" in enroll["command"][-1]
    assert is_command(agent["livenessProbe"]["exec"]["command"])
    assert "command" not in agent, "the image's own"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert agent["image"] == enroll["image"] == f"fedcybgd-agent:{version}"
    volumes = {volume["name"] for volume in [*pod["volumes"], *(claim["metadata"] for claim in agents["spec"]["volumeClaimTemplates"])]}
    for container in (enroll, agent):
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container["securityContext"]["readOnlyRootFilesystem"]
        given = {variable["name"] for variable in container["env"]}
        assert set(re.findall(r"\$(?!\()(\w+)", " ".join(enroll["command"]))) <= given
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 1000)


def test_the_script_for_slurm_is_one() -> None:
    script = DEPLOY / "slurm-agent.sh"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, timeout=20).returncode == 0
    lines = script.read_text().splitlines()
    assert lines[-1].startswith("exec "), "the signal before the end is sent to the shell alone"
    assert "#SBATCH --signal=B:TERM@120" in lines
