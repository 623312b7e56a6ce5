"""Looks at everything that a visit needs, before there is one, and says what to do where something is wrong."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedcybgd.agent import credentials, reaching
from fedcybgd.agent.client import Client
from fedcybgd.agent.consent import Ambiguous, NotConsented, chosen, patterns, source_of
from fedcybgd.agent.device import GpuMissing, cards_visible, find_device, why_none
from fedcybgd.agent.errors import AgentError
from fedcybgd.agent.lengths import TokenizerSlow, standing, token_lengths
from fedcybgd.agent.policy import fingerprint, in_force
from fedcybgd.agent.readiness import Verdict, judge, report, rows_of
from fedcybgd.agent.rooms import asking
from fedcybgd.agent.sandbox.walls import Walls
from fedcybgd.agent.settings import Config, DataSection, Home, within_hours
from fedcybgd.agent.site.asking import SiteCache
from fedcybgd.agent.telling import what_counts_tell, what_deltas_tell
from fedcybgd.agent.trainer_process import STARTS_WITHIN, TrainerProcess
from fedcybgd.agent.watch import START_S
from fedcybgd.shared.contract.agents import DeviceInfo, RunOffer
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.sizes import in_units
from fedcybgd.shared.contract.versions import VERSION
from fedcybgd.shared.contract.words import CLASSIFICATIONS
from fedcybgd.shared.files.tables import EVERY_FIELD, Row, column_names, named_in, read_rows
from fedcybgd.shared.host import machine

FEW_FILES = 128
"""A daemon and its training process have some 60 files open; a model in many files has more."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` says what to do. `ok` is None where nothing is wrong, and nothing is done either."""

    ok: bool | None
    what: str
    found: str
    advice: str = ""
    note: bool = False
    """what its owner should know before the rows are lent"""


def check(home: Home) -> Iterator[Finding]:
    """Findings one by one, as they are made; a later one may depend on an earlier one."""
    try:
        config, policy = reaching.load(home)
    except AgentError as error:
        missing = not home.config.exists()
        yield Finding(
            False, "configuration", error.message, "enrol it, or give its --home" if missing else "correct agent.toml or policy.toml"
        )
        return
    yield Finding(True, "configuration", str(home.config))
    yield Finding(True, "policy", in_force(home, policy))
    yield from _device(home, config)
    unread = set()
    for name, data in config.data.items():
        found = list(_data(name, data, home.data_path(data)))
        unread |= {name for finding in found if not finding.ok}
        yield from found
    if not patterns(config):
        said = 'write the names of runs into it: runs = ["intents"]; * and ? are wildcards'
        yield Finding(False, "consent", "no run may use any of the data: `runs` is empty everywhere", said)
    mine = None
    try:
        mine = credentials.load(home)
    except AgentError as error:
        yield Finding(False, "key", error.message, "ask the operator for a token: fedcoord agents token")
    try:
        client = reaching.client(home, config, policy, mine, who_answers=True)
        health = client.health()
        known = f", id {client.coordinator}" if client.coordinator else ""
        signed = f", its answers signed with the key {client.proof.key}" if client.proof.key else ""
        yield Finding(True, "coordinator", f"{config.coordinator} answers, version {health.version}{known}{signed}")
        if not client.headings_come:
            text = f"answers come without the heading {VERSION}: something on the way takes it out, or the coordinator is an early one"
            yield Finding(
                False, "headings", text, "let headings that begin with FedCyBGD- pass, both ways; most runs give this agent no work else"
            )
        if mine is None:
            return
        me = client.me()
        yield Finding(True, "key", f"valid: agent {me.name}, {me.state}")
        yield from _site_cache(config, client)
    except AgentError as error:
        yield Finding(False, "coordinator", error.message, "is the URL right, is the coordinator up, is the key still valid?")
        return
    if not me.runs:
        yield Finding(True, "runs", "none is open to this agent at present")
    verdicts = [judge(home, config, policy, run) for run in me.runs]
    waiting: dict[str, list[str]] = {}
    for run, verdict in zip(me.runs, verdicts, strict=True):
        if verdict.reason == "data_missing" and verdict.data in unread:
            waiting.setdefault(verdict.data, []).append(run.name)  # what is wrong with the file has been said
        else:
            yield _run(home, config, run, verdict, client)
        if verdict.reason != "not_consented":
            yield from _room(config, run)
        if verdict.reason != "not_consented":
            yield from (Finding(None, f"run {run.name}", sentence, note=True) for sentence in what_deltas_tell(run))
            yield from _counts(home, config, run, verdict)
    for name, runs in waiting.items():
        yield Finding(None, f"run{'s' if len(runs) > 1 else ''} {', '.join(runs)}", f"no work is taken until data {name} can be read")
    try:
        report(client, config, verdicts)
    except AgentError as error:
        yield Finding(False, "report", error.message, "the coordinator was not told which runs the data fit; try again")
    home.checked.touch()  # a daemon that runs takes runs again that it refused


def _site_cache(config: Config, client: Client) -> Iterator[Finding]:
    if (url := config.site_cache.url) is not None:
        wrong = SiteCache(client, url).probe()
        advice = (
            "bring `fedagent serve-cache` back there, or correct [site_cache] in agent.toml; until then shards come from the coordinator"
        )
        yield Finding(
            wrong is None,
            "site cache",
            f"{url}: {wrong}" if wrong else f"{url} answers, and reaches the coordinator",
            advice if wrong else "",
        )


def _device(home: Home, config: Config) -> Iterator[Finding]:
    wanted = config.device.kind
    try:
        device = find_device(wanted, config.device.gpu)
    except GpuMissing as error:
        yield Finding(False, "device", error.message, "nvidia-smi -L lists the GPUs by number and UUID")
        return
    memory = f"{in_units(device.memory_bytes)} of memory, {in_units(machine.memory_available())} free"
    accelerator = f", {in_units(device.accelerator_bytes)} on it" if device.kind == "cuda" else ""
    found = f"{device.kind} ({device.name}), {device.cores} cores, {memory}{accelerator}"
    if wanted in ("cuda", "mps") and device.kind != wanted:
        yield Finding(False, "device", f"{wanted} was asked for, found only {found}", "set device.kind to auto, or install the driver")
    else:
        yield Finding(True, "device", found)
    if device.kind == "cpu" and wanted != "cpu" and (why := why_none()) is not None:
        advice = "mend the driver (after an update of it start the machine again); until then this machine trains without a GPU"
        yield Finding(None, "GPU", f"nvidia-smi lists none: {why}", advice)
    if device.kind == "cuda" and config.device.gpu is None and (count := cards_visible()) > 1:
        said = f"one of {count}, the first; a visit is on one and never spread over several"
        yield Finding(None, "GPUs", said, "to use them all run an agent for each, with a --home of its own: fedagent enroll --gpu N")
    try:
        home.ready()
    except AgentError as error:
        yield Finding(False, "directory", error.message, "see there")
        return
    try:
        walls = standing(asking(home))
        yield Finding(True, "training process", walls.text())
    except AgentError as error:
        yield Finding(False, "training process", error.message, "report it; the agent would not work either")
    if wanted in ("cuda", "mps") or device.kind != "cpu" or 0 < (config.limits.memory_gb or 0) * 1e9 <= STARTS_WITHIN:
        yield _trial(home, config, device)
    if (files := machine.raise_open_files()) < FEW_FILES:
        yield Finding(
            False, "open files", f"this process may have {files} files open", "raise it: ulimit -n 1024, or LimitNOFILE= of its service"
        )
    free = psutil.disk_usage(str(home.path)).free
    wants = config.limits.disk_gb * 1e9
    advice = "" if free >= wants else f"only {in_units(free)} are free: lower limits.disk_gb or free space"
    yield Finding(free >= wants, "disk", f"cache of up to {in_units(wants)}, {in_units(free)} free", advice)
    if config.limits.hours:
        from datetime import datetime

        inside = within_hours(config.limits.hours, datetime.now())
        yield Finding(True, "hours", f"{', '.join(config.limits.hours)}; {'now is inside' if inside else 'now is outside: it would wait'}")


def _trial(home: Home, config: Config, found: DeviceInfo) -> Finding:
    """Whether a training process begins, and gets hold of the device that was found, within its walls: a daemon's own may run beside it."""
    aside = Home(home.path)
    aside.work = asking(home).work
    process = TrainerProcess(config, aside)
    try:
        said = process.until_ready(START_S)
    finally:
        process.close()
    what, else_cpu = "training", 'or set device.kind = "cpu": until then the coordinator plans for a device that is not used'
    if said is None:
        text, small = "the training process ended before it was ready; what it wrote stands above", (config.limits.memory_gb or 0) * 1e9
        return Finding(False, what, text, "raise limits.memory_gb" if 0 < small <= STARTS_WITHIN else "report it")
    if not said.device:
        return Finding(False, what, said.message, f"install the driver and a torch for it, {else_cpu}")
    if said.device.split(",")[0] != found.kind:
        return Finding(False, what, f"on {said.device}: this torch cannot use the {found.name}", f"install a torch for it, {else_cpu}")
    return Finding(True, what, f"on {said.device}")


def _data(name: str, data: DataSection, path: Path) -> Iterator[Finding]:
    what = f"data {name}"
    try:
        columns = column_names(path, data)
        if columns is None:
            raise DataError(f"{path} has no rows")
        fields = {field: named_in(columns, data.columns.get(field, field)) for field in EVERY_FIELD}
        count = sum(1 for _ in read_rows(path, data, fields.values(), [fields["answers"]]))
        if missing := sorted(c for c in data.columns.values() if named_in(columns, c) not in columns):
            raise DataError(f"{path.name} has no column {', '.join(missing)}; its columns are {', '.join(columns)}")
    except DataError as error:
        yield Finding(False, what, error.message, f"correct [data.{name}] in agent.toml, or the file")
        return
    runs = f"for runs {', '.join(data.runs)}" if data.runs else "for no run"
    yield Finding(True, what, f"{path.name}: {count:,} rows, columns {', '.join(columns)}; {runs}")


def _run(home: Home, config: Config, run: RunOffer, verdict: Verdict, client: Client) -> Finding:
    what = f"run {run.name}"
    if verdict.reason == "not_consented":
        try:
            chosen(config.data, run.name)
        except Ambiguous as error:
            return Finding(False, what, "several data sets could be meant", error.message)
        except NotConsented as error:
            return Finding(None, what, error.message)
    if verdict.reason in ("policy_refused", "rows_hidden"):
        return Finding(None, what, f"{verdict.reason}: {verdict.message}")
    data = config.data.get(verdict.data)
    if verdict.reason or data is None:
        advice = f"it needs {' or '.join(run.fields)}; correct [data.{verdict.data}] in agent.toml (columns map its fields), or the rows"
        return Finding(False, what, verdict.message, advice)
    found = f"{verdict.rows:,} rows of data {verdict.data} fit; fingerprint of the model {fingerprint(run.files)}"
    examples = rows_of(source_of(home, data), run, f"[data.{verdict.data}.columns]")
    if run.task == "image-classification":
        sizes = [example["image"].check() for example in examples]
        (low, lowest), (high, highest) = min(sizes, key=math.prod), max(sizes, key=math.prod)
        return Finding(True, what, f"{found}; images of {low} × {lowest} to {high} × {highest} pixels, of which the headers were read")
    try:
        lengths = _token_lengths(run, list(examples), client, asking(home))
    except TokenizerSlow as error:
        return Finding(False, what, f"tokenizer_slow: {error.message}", "do not take part in this run; ask its operator")
    if lengths is None:
        return Finding(True, what, f"{found}; its tokenizer has no tokenizer.json, so tokens were not counted")
    cut = sum(n > run.max_length for n in lengths)
    found += f"; tokens a row: median {statistics.median(lengths):.0f}, longest {max(lengths)}, in all {sum(lengths):,}"
    if cut and run.task == "text-classification":
        found += f"; {cut:,} rows are longer than {run.max_length} and would be cut"
    if cut and run.task == "extractive-qa":
        found += f"; contexts of {cut:,} rows are cut into windows of {run.max_length} tokens"
    return Finding(True, what, found)


def _room(config: Config, run: RunOffer) -> Iterator[Finding]:
    """Whether the disk that is allowed can hold the model at all."""
    least, may = run.visits and run.visits.least_disk_bytes, int(config.limits.disk_gb * 1e9)
    if least and least > may:
        text = f"its model takes {in_units(least)} of disk at the least, and limits.disk_gb allows {in_units(may)}"
        yield Finding(
            False, f"run {run.name}", text, "raise limits.disk_gb in agent.toml; until then its visits are given back (disk_limit)"
        )


def _counts(home: Home, config: Config, run: RunOffer, verdict: Verdict) -> Iterator[Finding]:
    """What would be told of the labels of the rows."""
    data = config.data.get(verdict.data)
    if verdict.reason is None and data is not None and data.tell_labels and run.task in CLASSIFICATIONS:
        rows = rows_of(source_of(home, data), run, f"[data.{verdict.data}.columns]")
        yield Finding(None, f"run {run.name}", what_counts_tell(Counter(row["label"] for row in rows), run.num_labels), note=True)


def _token_lengths(run: RunOffer, examples: list[Row], client: Client, walls: Walls) -> list[int] | None:
    if (ref := next((f for f in run.files if f.name == "tokenizer.json"), None)) is None:
        return None
    tokenizer = client.run_file(run.run_id, ref).decode("utf-8", "replace")
    texts = [" ".join(str(v) for k, v in e.items() if k not in ("label", "answers")) for e in examples]
    return token_lengths(walls, tokenizer, texts)
