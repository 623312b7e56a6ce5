"""Metrics: what is counted, in a form that a reader of Prometheus itself takes, and never more series than are bounded."""

import json
import re
import time
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fedcybgd.agent import metrics as agent_metrics
from fedcybgd.agent.errors import ConfigError
from fedcybgd.coordinator.db.base import Base, Database, utcnow
from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.domain.metrics import COUNTED, METRICS
from fedcybgd.coordinator.services.read import gauges
from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo
from fedcybgd.shared.contract.metrics import SECONDS, Metric, MetricEntry, text
from fedcybgd.shared.host.counters import MOST_SERIES, Counters

TABLE = (
    Metric("x_total", "counter", "with\na line and a \\", ("why",)),
    Metric("x_seconds", "histogram", "how long"),
    Metric("x_now", "gauge", "now"),
)


def read(written: str) -> dict[str, float]:
    """Series → value, as Prometheus' own client reads it."""
    return {
        sample.name + "".join(f"|{k}={v}" for k, v in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(written)
        for sample in family.samples
    }


def test_what_is_counted_is_read_as_it_was() -> None:
    counters = Counters(TABLE)
    counters.add("x_total", 2, ('a "quoted" \\ word\n',))
    counters.add("x_total", 1, ('a "quoted" \\ word\n',))
    for seconds in (0.05, 0.1, 3, 1e9):
        counters.add("x_seconds", seconds)
    found = read(text(TABLE, [*counters.entries(), MetricEntry("x_now", float("nan"))]))
    assert found['x_total|why=a "quoted" \\ word\n'] == 3
    assert [found[f"x_seconds_bucket|le={le}"] for le in ("0.1", "1", "5", "14400", "+Inf")] == [2, 2, 3, 3, 4]
    assert (found["x_seconds_count"], found["x_seconds_sum"]) == (4, pytest.approx(1e9 + 3.15))
    assert found["x_now"] != found["x_now"]


def test_a_counter_without_labels_is_0_from_the_start() -> None:
    assert read(text(COUNTED, Counters(COUNTED).entries()))["fedcoord_leases_total"] == 0


def test_series_are_bounded_whatever_words_come() -> None:
    counters = Counters(TABLE)
    for number in range(3 * MOST_SERIES):
        counters.add("x_total", 1, (f"word-{number}",))
    found = read(text(TABLE, counters.entries()))
    assert len(found) == MOST_SERIES + 1
    assert found["x_total|why=other"] == 2 * MOST_SERIES


def test_no_metric_tells_of_an_agent_by_name() -> None:
    assert {label for metric in METRICS for label in metric.labels} <= {
        "reason",
        "verdict",
        "kind",
        "state",
        "lane",
        "level",
        "run",
        "version",
    }
    assert sorted(SECONDS) == list(SECONDS)


NAMED = re.compile(r"\b(?:fedcoord|fedagent)_[a-z_]+")
DEPLOYED = Path(__file__).parents[2] / "deploy"


def expressions() -> dict[str, list[str]]:
    """Every expression of the files for Prometheus and Grafana."""
    board = json.loads((DEPLOYED / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((DEPLOYED / "alerts.yaml").read_text())
    return {
        "grafana-dashboard.json": [target["expr"] for panel in board["panels"] for target in panel["targets"]],
        "alerts.yaml": [rule["expr"] for group in rules["groups"] for rule in group["rules"]],
    }


def test_dashboard_and_alerts_ask_for_metrics_and_labels_that_there_are() -> None:
    tables = (*METRICS, *agent_metrics.METRICS)
    series = {f"{m.name}{suffix}": m for m in tables for suffix in (("_bucket", "_sum", "_count") if m.kind == "histogram" else ("",))}
    found = {file: [name for expr in some for name in NAMED.findall(expr)] for file, some in expressions().items()}
    assert all(len(names) > 10 for names in found.values())
    assert {file: [name for name in names if name not in series] for file, names in found.items()} == {file: [] for file in found}
    assert {m.name for m in tables} - {series[name].name for name in found["grafana-dashboard.json"]} == set(), "nobody looks at these"
    for expr in (expr for some in expressions().values() for expr in some):
        labels = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expr) for label in group.split(",")} - {"le", "instance", "job"}
        named = [series[name] for name in NAMED.findall(expr)]
        assert labels <= {label for metric in named for label in metric.labels}, expr
        assert expr.count("(") == expr.count(")"), expr
        # What stands on both sides of `and` is matched by all labels: one side more of them, and nothing ever matches.
        sides = [re.findall(r"^max by \(([^)]*)\)", side.strip()) for side in expr.split(" and ")]
        assert len(sides) == 1 or (sides[0] and sides.count(sides[0]) == len(sides)), expr


def test_every_metric_is_documented() -> None:
    pages = {"operating.md": METRICS, "running-an-agent.md": agent_metrics.METRICS}
    for page, table in pages.items():
        written = (DEPLOYED.parent / "docs" / page).read_text()
        assert [metric.name for metric in table if f"| `{metric.name}` |" not in written] == []


def test_the_agents_port_answers_this_machine_alone_and_by_its_name_alone() -> None:
    port = agent_metrics.MetricsPort(0, lambda: text(TABLE, [MetricEntry("x_now", 1)]))
    try:
        with httpx.Client(verify=False, trust_env=False) as http:
            assert read(http.get(port.url).text) == {"x_now": 1}
            assert http.get(port.url, headers={"Host": "evil.example"}).status_code == 404
            assert http.get(port.url + "/other").status_code == 404
        assert port.url.startswith("http://127.0.0.1:")
        with pytest.raises(ConfigError, match="--metrics"):
            agent_metrics.MetricsPort(int(port.url.split(":")[2].split("/")[0]), str)
    finally:
        port.close()


def test_a_thousand_agents_cost_ten_milliseconds_at_the_most(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    Base.metadata.create_all(database.engine)
    with database.transaction() as session:
        for number in range(1000):
            session.add(Agent(
                id=f"agt_{number}", name=f"agent-{number}", key_hash=f"{number:064}", state="silent", device=DeviceInfo(), limits=DeclaredLimits(),
                version="1", enrolled_at=utcnow(),
            ))  # fmt: skip
    took = []
    with database.reading() as session:
        for _ in range(5):
            began = time.process_time()
            written = text(METRICS, [*Counters(COUNTED).entries(), *gauges.of(session, utcnow())])
            took.append(time.process_time() - began)
    assert read(written)["fedcoord_agents|state=silent"] == 1000
    assert min(took) < 0.010, took
    database.close()
