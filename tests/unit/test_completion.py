"""Both programs complete themselves in a real bash: commands, options, and names that the coordinator knows."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fedcybgd.shared.contract.words import API
from tests.support.hostile import Answer, Asked, serving

ROOT = Path(__file__).parents[2]
SCRIPT = """#!{python}
from fedcybgd.{package}.cli import main
main()
"""
SHOW = """
set -e
for program in fedcoord fedagent; do
    shown="$("$program" --show-completion)"
    printf '%s\\n' "$shown" > "$program.bash"
done
"""
ASK = """
source {folder}/{program}.bash
COMP_WORDS=({words}) COMP_CWORD={last}
_{program}_completion {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
NAMES = {"runs": ["intents", "intents-head", "$(touch made)", "other"], "models": ["minilm", "mini$HOME"], "agents": ["berlin", "oslo"]}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both programs are, and what each gives to a shell: the same for every line."""
    if shutil.which("bash") is None:
        pytest.skip("bash was not found: install it to run this test")
    folder = tmp_path_factory.mktemp("programs")
    for program, package in (("fedcoord", "coordinator"), ("fedagent", "agent")):
        file = folder / program
        file.write_text(SCRIPT.format(python=sys.executable, package=package))
        file.chmod(0o755)
    assert in_bash(SHOW, folder, folder) == ""
    return folder


def in_bash(script: str, programs: Path, folder: Path, url: str = "http://127.0.0.1:9") -> str:
    environment = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "FEDCOORD_URL": url, "FEDCOORD_OPERATOR_KEY": "fco_x",
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def completed(programs: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """What bash offers at the end of a line; an empty word is written ''."""

    def of(line: str, url: str = "http://127.0.0.1:9") -> list[str]:
        words = line.split()
        script = ASK.format(program=words[0], words=" ".join(words), last=len(words) - 1, folder=programs)
        return in_bash(script, programs, tmp_path, url).split()

    return of


def test_commands_and_options_are_completed_without_anybody(completed: Callable[..., list[str]]) -> None:
    assert sorted(completed("fedcoord run st")) == ["start", "status"]
    assert completed("fedcoord run track --ten") == ["--tensorboard"]
    assert completed("fedagent rep") == ["report"]
    assert completed("fedagent run --pa") == ["--page"]
    assert completed("fedcoord run status int") == [], "nobody answers, and no error spoils the line"


def test_names_are_those_of_the_coordinator(completed: Callable[..., list[str]], tmp_path: Path) -> None:
    def answer(asked: Asked) -> Answer:
        kind = asked.path.removeprefix(f"{API}/").partition("?")[0]
        return Answer.json([{"name": name} for name in NAMES[kind]])

    with serving(answer) as server:
        found = {line: completed(f"fedcoord {line}", server.url) for line in (
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
def test_what_is_no_list_of_names_completes_nothing(completed: Callable[..., list[str]], answer: Answer) -> None:
    with serving(lambda _: answer) as server:
        assert completed("fedcoord run status int", server.url) == []


def test_a_coordinator_that_does_not_answer_holds_nobody_up(completed: Callable[..., list[str]]) -> None:
    over = threading.Event()

    def hang(_: Asked) -> Answer:
        over.wait(100)
        return Answer.json([])

    with serving(hang) as server:
        try:
            assert completed("fedcoord run status int", server.url) == []
            assert not over.is_set()
            assert len(server.asked) == 1
        finally:
            over.set()
