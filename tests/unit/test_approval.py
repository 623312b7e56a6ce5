"""A run's name comes into agent.toml, and nothing else of it is changed; where that cannot be, nothing is."""

import tomllib

import pytest

from fedcybgd.agent.approval import with_run
from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.settings import ONLY, template

TWO = """coordinator = "https://a.example"  # runs = []
[data.mine]
path = "a.jsonl"
runs = [
  "one",   # the first
  "two-*",
]
tell_rows = "no"

[ data . "yours" ] # others'
runs=["x"]     # who
path = "b.jsonl"
"""


@pytest.mark.parametrize("runs", [[], ["intents"], ["a", "b-*"]])
def test_of_the_first_agent_toml(runs: list[str]) -> None:
    before = template("http://127.0.0.1:1", "rows.jsonl", runs)
    after = with_run(before, ONLY, "sentiment")
    data = next(iter(tomllib.loads(after)["data"].values()))
    assert data["runs"] == [*runs, "sentiment"]
    assert after.replace('"sentiment"', "").replace(", ]", "]") == before


def test_comments_lines_and_other_data_sets_stay() -> None:
    after = with_run(TWO, "mine", "three")
    assert tomllib.loads(after)["data"]["mine"]["runs"] == ["one", "two-*", "three"]
    assert "# the first" in after
    assert after.endswith(TWO[TWO.index("tell_rows") :])
    other = with_run(TWO, "yours", "three")
    assert tomllib.loads(other)["data"]["yours"]["runs"] == ["x", "three"]
    assert "# who" in other
    assert other.startswith(TWO[: TWO.index("runs=")])


def test_the_only_data_set_may_stand_under_data_itself() -> None:
    after = with_run('coordinator = "http://127.0.0.1:1"\n[data]\npath = "a.jsonl"\nruns = []\n', ONLY, "one")
    assert tomllib.loads(after)["data"]["runs"] == ["one"]


@pytest.mark.parametrize(
    "text",
    [
        '[data.mine]\npath = "a"\n', '[data]\nmine = {path = "a", runs = ["x"]}\n', 'data.mine.runs = ["x"]\n',
        '[data.mine]\nruns = ["a]", "b"]\n', '[data.mine]\nruns = [["a"]]\n', '[data.mine]\nnote = """\nruns = []\n"""\nruns_ = 1\n', "[data.mine\nruns = []",
    ],
)  # fmt: skip
def test_what_is_written_another_way_is_left_to_its_owner(text: str) -> None:
    with pytest.raises(ConfigError, match="yourself"):
        with_run(text, "mine", "one")
