"""What the owner's policy forbids is refused before anything is fetched, with the rule and the value; bounds hold without one too."""

import json
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fedcybgd.agent import lengths, policy, reaching
from fedcybgd.agent.assignment_run import Tools, fetch, send
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import ConfigError, VisitFailed
from fedcybgd.agent.messages import Bounds, DataSource
from fedcybgd.agent.outbox import Outbox
from fedcybgd.agent.policy import Policy, PolicyRefused, check_assignment, fingerprint, load_policy
from fedcybgd.agent.residuals import Residuals
from fedcybgd.agent.rooms import asking
from fedcybgd.agent.settings import Config, Home
from fedcybgd.agent.trainer_process import TrainerProcess
from fedcybgd.agent.training.bounds import check_rows, check_tensors, check_used
from fedcybgd.agent.training.errors import PolicyBroken
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.host.bodies import BodyInvalid, whole

SAMPLE = json.loads((Path(__file__).parents[1] / "wire" / "samples" / "LeasedAssignment.json").read_text())["full"]


def asked(**changes: Any) -> LeasedAssignment:
    """An assignment; names with two underscores go into a field of `train`, as in train__steps."""
    said = json.loads(json.dumps(SAMPLE))
    for name, value in changes.items():
        part, _, inner = name.rpartition("__")
        (said[part] if part else said)[inner] = value
    return LeasedAssignment.model_validate_json(json.dumps(said))


def rules(**sections: dict[str, Any]) -> Policy:
    return Policy.model_validate(sections)


def groups(*blocks: str) -> list[dict[str, Any]]:
    return [{"blocks": list(blocks), "learning_rate": 0.001}]


def corrected(*matrices: str, block: str = "layers.0") -> dict[str, Any]:
    said = SAMPLE["train"]["corrections"] | {"matrices": list(matrices)}
    return {"train__corrections": said, "manifest__blocks": [SAMPLE["manifest"]["blocks"][0] | {"block": block}]}


def judged(policy: Policy, assignment: LeasedAssignment, rows: int | None) -> str | None:
    """The message of a refusal, if there is one."""
    try:
        check_assignment(policy, assignment, rows)
    except PolicyRefused as error:
        return error.message
    return None


def test_without_a_policy_whatever_the_protocol_allows_is_done() -> None:
    assert judged(Policy(), asked(), 3) is None


@pytest.mark.parametrize(
    ("rule", "value", "changes", "says"),
    [
        ("work.runs", ["bank-*"], {}, "run intents"),
        ("work.runs", [], {}, "none"),
        ("work.tasks", ["causal-lm"], {}, "task text-classification"),
        ("work.models", ["0" * 64], {}, "fingerprint"),
        ("work.never_train", ["embeddings"], {"train__groups": groups("layers.0", "embeddings")}, "block embeddings"),
        ("work.never_train", ["layers"], {}, "layers.0"),
        ("work.never_train", ["layers.0-3"], {"train__groups": groups("layers.2-5")}, "layers.2-5"),
        ("work.never_train", ["he*"], {}, "head"),
        ("work.never_train", ["all"], {}, "layers.0"),
        ("work.never_train", ["layers.1"], {}, "layers.1 would be corrected"),
        ("work.never_train", ["layers.11-20"], corrected("h.12.mlp.c_fc.weight", "h.3.mlp.c_fc.weight"), "layers.12 would be corrected"),
        ("work.never_train", ["layers.4-*"], corrected("layers.5.mlp.w.weight", block="layers.4-5"), "layers.4-5 would be corrected"),
        ("most.steps", 39, {}, "40 steps"),
        ("least.batch_size", 9, {}, "batch of 8"),
        ("least.rows", 321, {}, "320 different rows"),
        ("least.rows", 11, {}, "10 different rows"),
        ("least.rows", 11, {"train__steps": None}, "10 different rows"),
    ],
)  # fmt: skip
def test_each_rule_is_held_against_an_assignment(rule: str, value: Any, changes: dict[str, Any], says: str) -> None:
    section, name = rule.split(".")
    rows = 10 if value == 11 else None
    with pytest.raises(PolicyRefused, match=says) as refused:
        check_assignment(rules(**{section: {name: value}}), asked(**changes), rows)
    assert refused.value.reason == "policy_refused"
    assert refused.value.message.startswith(f"{rule}: ")
    assert "owner's policy" in refused.value.message


@pytest.mark.parametrize(
    "sections",
    [
        {"work": {"runs": ["int*"], "tasks": ["text-classification"], "models": [fingerprint(asked().manifest.files)]}},
        {"work": {"never_train": ["embeddings", "layers.2-9", "pooler"]}},
        {"most": {"steps": 40, "seconds": 60}, "least": {"batch_size": 8, "rows": 320}},
    ],
)
def test_what_keeps_to_the_rules_is_done(sections: dict[str, Any]) -> None:
    assert judged(rules(**sections), asked(), None) is None


class Asked(Exception):
    """The coordinator would have been asked."""


def tools_with(tmp_path: Path, most: dict[str, Any]) -> Tools:
    """No coordinator listens there: whoever asks it is found out when he waits for it."""

    def pause(_: float) -> None:
        raise Asked

    url, home = "http://127.0.0.1:9", Home(tmp_path)
    trainer = TrainerProcess(Config.model_validate({"coordinator": url, "data": {"rows": {"path": "rows.jsonl"}}}), home)
    cache, outbox, residuals = ShardCache(home.cache, 1 << 30), Outbox(home.outbox), Residuals(home.residuals)
    return Tools(Client(url), cache, outbox, trainer, DataSource(path="rows.jsonl"), residuals, rules(most=most), pause=pause)


METRICS = TrainMetrics(steps=1, rows=1, tokens=1, loss_first=1, loss_last=1, seconds=1, tokens_per_s=1)
SHARD = b"x" * 1000
TO_FETCH = 600 + 700
"""Bytes of the sample: its file, and its shard, packed"""


def with_shard() -> LeasedAssignment:
    """The sample, with a shard whose bytes are known."""
    block = SAMPLE["manifest"]["blocks"][0] | {"digest": digest_of(SHARD), "size": len(SHARD)}
    return asked(manifest__blocks=[block])


@pytest.mark.parametrize(
    ("gb", "cached", "asks"), [(TO_FETCH, False, True), (TO_FETCH - 1, False, False), (600, True, True), (599, True, False)]
)
def test_more_than_may_be_fetched_is_refused_before_a_byte_is(tmp_path: Path, gb: float, cached: bool, asks: bool) -> None:
    """What the cache has costs nothing; the coordinator is not asked for what would be within the limit either."""
    tools = tools_with(tmp_path, {"fetch_gb": gb / 1e9})
    if cached:
        tools.cache.path(digest_of(SHARD)).write_bytes(SHARD)
    with pytest.raises(Asked if asks else PolicyRefused) as stopped:
        fetch(tools, with_shard())
    assert asks or str(stopped.value).startswith("most.fetch_gb: ")


@pytest.mark.parametrize(
    ("task", "rows", "limit", "refused"),
    [
        ("image-classification", 400, 3 * 224 * 224 * 400 + TO_FETCH + 1000, None), ("image-classification", 700, 1 << 20, "shards, residuals and pixels"),
        ("image-classification", 400, 1 << 20, None), ("image-classification", None, 1 << 20, None), ("text-classification", 10**9, 1 << 20, None),
        ("image-classification", 10**9, 1 << 40, "needs 150,528.0 GB"),
    ],
)  # fmt: skip
def test_pixels_take_of_the_disk_what_the_cache_may_not_have(
    tmp_path: Path, task: str, rows: int | None, limit: int, refused: str | None
) -> None:
    """A byte for each channel of 224 × 224: 400 images have 60 MB, which lie in memory, and 700 have 105. Only the configuration was fetched."""
    config = b'{"model_type": "vit", "image_size": 224}'
    files = [{"name": "config.json", "digest": digest_of(config), "size": len(config)}]
    assignment = asked(train__task=task, manifest__files=files, manifest__blocks=with_shard().model_dump(mode="json")["manifest"]["blocks"])
    tools = tools_with(tmp_path, {})
    tools = replace(tools, cache=ShardCache(Home(tmp_path).cache, limit), rows=rows)
    tools.cache.path(digest_of(config)).write_bytes(config)
    tools.cache.path(digest_of(SHARD)).write_bytes(SHARD)
    if refused is None:
        assert fetch(tools, assignment).disk_bytes == limit - len(config) - len(SHARD)
        return
    with pytest.raises(VisitFailed, match=refused) as failed:
        fetch(tools, assignment)
    assert failed.value.reason == "disk_limit"
    assert failed.value.message.startswith("this visit needs ")


@pytest.mark.parametrize(("limit", "ends"), [(2300, Asked), (2299, PolicyRefused), (1600, PolicyRefused), (1599, VisitFailed)])
def test_what_has_no_room_beside_its_packed_form_is_fetched_as_it_is(tmp_path: Path, limit: int, ends: type[Exception]) -> None:
    """A file of 600 bytes, a shard of 1,000, packed 700. No more may be fetched than the file and what is packed, so that it shows."""
    tools = replace(tools_with(tmp_path, {"fetch_gb": TO_FETCH / 1e9}), cache=ShardCache(Home(tmp_path).cache, limit))
    with pytest.raises(ends) as stopped:
        fetch(tools, with_shard())
    assert not isinstance(stopped.value, VisitFailed) or stopped.value.reason in ("disk_limit", "policy_refused")


@pytest.mark.parametrize(("gb", "asks"), [(50, True), (49, False)])
def test_more_than_may_be_sent_is_refused_before_a_byte_is(tmp_path: Path, gb: float, asks: bool) -> None:
    tools = tools_with(tmp_path, {"send_gb": gb / 1e9})
    (tmp_path / "delta").write_bytes(b"x" * 50)
    with pytest.raises(Asked if asks else PolicyRefused) as stopped:
        send(tools, asked(), tmp_path / "delta", METRICS)
    assert asks or str(stopped.value).startswith("most.send_gb: ")


def test_the_fingerprint_is_of_names_and_contents_in_any_order() -> None:
    files = asked().manifest.files
    other = files[0].model_copy(update={"name": "tokenizer.json"})
    assert fingerprint([files[0], other]) == fingerprint([other, files[0]]) != fingerprint(files)
    assert fingerprint([other]) != fingerprint(files)


# ---- bounds of the protocol: no policy is needed for these ------------------------------------------------------------

NUMBERS = [
    ("attempt",), ("lease_seconds",), ("stall_s",), ("round",), ("cycle",), ("max_delta_bytes",), ("train", "steps"), ("train", "epochs"),
    ("train", "batch_size"), ("train", "warmup_steps"), ("train", "weight_decay"), ("train", "max_grad_norm"), ("train", "num_labels"),
    ("train", "max_length"), ("train", "seed"), ("train", "corrections", "rank"), ("train", "corrections", "scale"), ("train", "corrections", "learning_rate"),
    ("train", "groups", 0, "learning_rate"), ("manifest", "files", 0, "size"),
    ("manifest", "blocks", 0, "version"), ("manifest", "blocks", 0, "size"), ("manifest", "blocks", 0, "packed", "size"),
    ("manifest", "blocks", 0, "patches", 0, "size"), ("manifest", "blocks", 0, "patches", 0, "weight"),
]  # fmt: skip


def numbers_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in numbers_in(inner, (*path, key))]
    if isinstance(value, list):
        return [found for index, inner in enumerate(value) for found in numbers_in(inner, (*path, index))]
    return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_the_list_of_numbers_is_whole() -> None:
    assert sorted(map(str, numbers_in(SAMPLE))) == sorted(map(str, NUMBERS))


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_no_number_of_an_assignment_is_without_bounds(path: tuple[Any, ...]) -> None:
    for wrong in ("-1e300", "-2000000", "NaN", "Infinity", "-Infinity", "1e999", "1e300", "9" * 400, '"many"', "[]"):
        said = json.loads(json.dumps(SAMPLE))
        place = said
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "HERE"
        with pytest.raises(ValidationError):
            LeasedAssignment.model_validate_json(json.dumps(said).replace('"HERE"', wrong))


def test_lists_of_an_assignment_have_an_end() -> None:
    block, patch = SAMPLE["manifest"]["blocks"][0], SAMPLE["manifest"]["blocks"][0]["patches"][0]
    for manifest in (
        {"blocks": [block] * 10_001, "files": []}, {"blocks": [], "files": SAMPLE["manifest"]["files"] * 101},
        {"blocks": [{**block, "patches": [patch] * 17}], "files": []}, {"blocks": [], "files": [], "dropped": ["layers.0"] * 10_001},
    ):  # fmt: skip
        with pytest.raises(ValidationError, match="at most"):
            asked(manifest=manifest)
    with pytest.raises(ValidationError, match="at most"):
        asked(train__groups=groups(*["layers.0"] * 10_001))


# ---- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[most]\nsteps = 0", "most.steps"), ("[most]\nsteps = 100001", "most.steps"), ("[most]\nseconds = nan", "most.seconds"),
        ("[most]\nsecond = 5", "most.second: there is no such rule"), ("[work]\nmodels = ['x']", "work.models"),
        ("[work]\nnever_train = ['layers.x']", "no block"), ("[work]\nnever_train = ['../x']", "work.never_train"),
        ("[work]\ntasks = ['dancing']", "work.tasks"), ("[least]\nrows = -1", "least.rows"), ("steps = 5", "there is no such rule"),
        ("[most", "no TOML"), ("a = " + "[" * 100_000, "no TOML"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_named_and_nothing_is_in_force_without_it(tmp_path: Path, text: str, says: str) -> None:
    home = Home(tmp_path)
    home.policy.write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        load_policy(home)
    assert str(home.policy) in error.value.message


def test_a_file_that_cannot_be_read_does_not_count_as_none(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.policy.mkdir()
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        load_policy(home)


def test_the_first_file_forbids_nothing_and_names_every_rule(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.policy.write_text(policy.template())
    assert load_policy(home) == Policy()
    uncommented = "\n".join(line[2:] if " = " in line and line.startswith("# ") else line for line in policy.template().splitlines()[2:])
    uncommented = "\n".join(line for line in uncommented.splitlines() if line.startswith("[") or tomllib_line(line))
    said = Policy.model_validate(tomllib.loads(uncommented))
    for title, field in Policy.model_fields.items():
        assert getattr(said, title).model_fields_set == set(field.annotation.model_fields)  # type: ignore[union-attr]


def tomllib_line(line: str) -> bool:
    try:
        return bool(tomllib.loads(line))
    except tomllib.TOMLDecodeError:
        return False


def write(home: Home, url: str, rules: str, limits: str = "") -> None:
    home.config.write_text(f'coordinator = "{url}"\n[data]\npath = "rows.jsonl"\n[limits]\n{limits}\n')
    home.policy.write_text(rules)


@pytest.mark.parametrize(
    ("url", "rule", "says"),
    [
        ("https://evil.example", 'url = "https://good.example"', "coordinator.url"),
        ("http://good.example", "plain_http = false", "coordinator.plain_http"),
        ("http://127.0.0.1.evil.example", "plain_http = false", "coordinator.plain_http"),
        ("http://good.example", 'authority = "ca.pem"', "https"),
    ],
)
def test_agent_toml_cannot_go_beyond_the_policy(tmp_path: Path, url: str, rule: str, says: str) -> None:
    home = Home(tmp_path)
    write(home, url, f"[coordinator]\n{rule}\n")
    with pytest.raises(ConfigError, match=says):
        reaching.load(home)


@pytest.mark.parametrize("url", ["https://good.example", "http://127.0.0.1:8440", "http://[::1]:8440", "http://localhost:1"])
def test_https_and_this_machine_are_allowed(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path)
    write(home, url, "[coordinator]\nplain_http = false\n")
    assert reaching.load(home)[0].coordinator == url


def test_the_lower_of_two_limits_counts(tmp_path: Path) -> None:
    home = Home(tmp_path)
    write(home, "http://localhost", "[most]\ndisk_gb = 2\nmemory_gb = 3\n", "disk_gb = 1")
    limits = reaching.load(home)[0].limits
    assert (limits.disk_gb, limits.memory_gb) == (1, 3)


# ---- what the training process looks at ---------------------------------------------------------------------------------


def test_rows_and_steps_are_counted_where_they_are_known() -> None:
    bounds = Bounds(steps=10, seconds=60, rows=3, never=[])
    check_rows(bounds, 10, 4, 100)
    with pytest.raises(PolicyBroken, match=r"most\.steps: 11 steps"):
        check_rows(bounds, 11, 4, 100)
    with pytest.raises(PolicyBroken, match="6553600000 rows"):
        check_rows(Bounds(steps=100_000, seconds=60, rows=1, never=[]), 100_000, 65536, 10**6)
    check_used(bounds, [[0, 1], [1, 2]])
    with pytest.raises(PolicyBroken, match=r"least\.rows: 2 different"):
        check_used(bounds, [[0, 1], [1, 0], [0, 1]])


def test_the_name_of_a_block_hides_nothing() -> None:
    homes = {"embeddings.word.weight": "embeddings", "layers.0.w": "layers.0", "head.w": "head"}
    bounds = Bounds(steps=1, seconds=60, rows=1, never=["embeddings"])
    check_tensors(bounds, {"layers.0": ["layers.0.w"], "head": ["head.w"]}, homes)
    with pytest.raises(PolicyBroken, match=r"embeddings\.word\.weight.* as layers\.0"):
        check_tensors(bounds, {"layers.0": ["layers.0.w", "embeddings.word.weight"]}, homes)


# ---- answers and tokenizers without an end --------------------------------------------------------------------------------


def test_an_answer_that_drips_is_given_up() -> None:
    def dripping() -> Iterator[bytes]:
        while True:
            time.sleep(0.05)
            yield b" "

    with pytest.raises(BodyInvalid, match="no end yet"):
        whole(dripping(), "", 1 << 20, 0.3)


def test_a_tokenizer_without_an_end_does_not_hold_up_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "SECONDS", 3.0)
    slow = {
        "version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "^(\\w+\\s?)*$"}, "behavior": "Isolated", "invert": False},
    }  # fmt: skip
    walls = asking(Home(tmp_path))
    with pytest.raises(lengths.TokenizerSlow, match="did not come to an end"):
        # With more letters a row the library gives up by itself: it counts how often it tries again.
        lengths.token_lengths(walls, json.dumps(slow), 2000 * ["a" * 20 + "!"])
    monkeypatch.setattr(lengths, "SECONDS", 60.0)
    with pytest.raises(lengths.TokenizerSlow, match="cannot be used"):
        lengths.token_lengths(walls, "{}", ["a"])
