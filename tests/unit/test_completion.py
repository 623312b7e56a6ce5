"""Both programs complete themselves in a real bash: commands, options, and names that the coordinator knows."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedcybgd.shared.contract.words import API
from tests.support.hostile import Answer, Asked, serving

ROOT = Path(__file__).parents[2]
SCRIPT = """#!{python}
from fedcybgd.{package}.cli import main
main()
"""
ASK = """
eval "$({program} --show-completion)"
COMP_WORDS=({words}) COMP_CWORD={last}
_{program}_completion {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
NAMES = {"runs": ["intents", "intents-head", "$(touch made)", "other"], "models": ["minilm", "mini$HOME"], "agents": ["berlin", "oslo"]}


@pytest.fixture(autouse=True)
def programs(tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash was not found: install it to run this test")
    for program, package in (("fedcoord", "coordinator"), ("fedagent", "agent")):
        file = tmp_path / program
        file.write_text(SCRIPT.format(python=sys.executable, package=package))
        file.chmod(0o755)


def completed(folder: Path, line: str, url: str = "http://127.0.0.1:9") -> list[str]:
    """What bash offers at the end of a line; an empty word is written ''."""
    words = line.split()
    script = ASK.format(program=words[0], words=" ".join(words), last=len(words) - 1)
    environment = {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "FEDCOORD_URL": url, "FEDCOORD_OPERATOR_KEY": "fco_x",
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_and_options_are_completed_without_anybody(tmp_path: Path) -> None:
    assert sorted(completed(tmp_path, "fedcoord run st")) == ["start", "status"]
    assert completed(tmp_path, "fedcoord run track --ten") == ["--tensorboard"]
    assert completed(tmp_path, "fedagent rep") == ["report"]
    assert completed(tmp_path, "fedagent run --pa") == ["--page"]
    assert completed(tmp_path, "fedcoord run status int") == [], "nobody answers, and no error spoils the line"


def test_names_are_those_of_the_coordinator(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Answer:
        kind = asked.path.removeprefix(f"{API}/").partition("?")[0]
        return Answer.json([{"name": name} for name in NAMES[kind]])

    with serving(answer) as server:
        found = {line: completed(tmp_path, f"fedcoord {line}", server.url) for line in (
            "run status int", "run track ''", "explain inte", "compare other int", "predict oth", "models show mini", "agents revoke b",
            "run without intents o",
        )}  # fmt: skip
    assert found == {
        "run status int": ["intents", "intents-head"], "run track ''": ["intents", "intents-head", "other"], "explain inte": ["intents", "intents-head"],
        "compare other int": ["intents", "intents-head"], "predict oth": ["other"], "models show mini": ["minilm"], "agents revoke b": ["berlin"],
        "run without intents o": ["oslo"],
    }  # fmt: skip
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("answer", [Answer.page(502), Answer.json({"code": "forbidden", "message": "no"}, 403), Answer.json([1, None])])
def test_what_is_no_list_of_names_completes_nothing(tmp_path: Path, answer: Answer) -> None:
    with serving(lambda _: answer) as server:
        assert completed(tmp_path, "fedcoord run status int", server.url) == []


def test_a_coordinator_that_does_not_answer_holds_nobody_up(tmp_path: Path) -> None:
    over = threading.Event()

    def hang(_: Asked) -> Answer:
        over.wait(100)
        return Answer.json([])

    with serving(hang) as server:
        try:
            assert completed(tmp_path, "fedcoord run status int", server.url) == []
            assert not over.is_set()
            assert len(server.asked) == 1
        finally:
            over.set()
