"""Real agents behind a real site cache that speaks HTTPS: a run that fetches each shard once, also when the cache is killed in it."""

import json
import re
from pathlib import Path

import httpx
import pytest
import trustme

from fedcybgd import Agent, Coordinator
from fedcybgd.agent import sent
from fedcybgd.agent.settings import Home
from tests.e2e.conftest import spec, write_rows
from tests.support.processes import ENVIRONMENT, wait_for
from tests.support.site import SiteProcess, site_cache


def count(cache: SiteProcess, series: str) -> int:
    text = httpx.get(re.findall(r"metrics at (\S+)", cache.log)[-1]).text
    return next((int(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"fedagent_cache_{series} ")), 0)


def test_a_run_fetches_each_shard_once_and_outlasts_the_cache(tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    pem = str(tmp_path / "cert.pem")
    with (
        Coordinator.local(tmp_path / "coordinator", environment=ENVIRONMENT) as coordinator,
        site_cache(coordinator.url, tmp_path / "cache", "--tls-certificate", pem, "--tls-key", pem, "--metrics", "0") as cache,
    ):
        assert cache.url.startswith("https://")
        client = coordinator.client
        client.models.add(bert, "tiny")
        agents = [
            Agent.local(
                coordinator.url, coordinator.token(), f"agent-{n}", data=write_rows(tmp_path / f"rows-{n}.jsonl", n), runs=["*"],
                home=tmp_path / f"agent-{n}", settings={"device": {"threads": 1}, "site_cache": {"url": cache.url}}, environment=ENVIRONMENT,
            )
            for n in range(2)
        ]  # fmt: skip
        try:
            values = spec("site") | {
                "method": "whole",
                "whole": {"weights": "equal"},
                "schedule": {"cycles": 3, "always": ["pooler", "head"]},
            }
            run = client.runs.create(values)
            client.runs.start(run.id)
            client.runs.wait(run.id, lambda view: view.rounds_done >= 1, every_s=0.1)
            ledgers = [sent.read(Home(agent.home).sent)[0] for agent in agents]
            assert all(one.bytes_of_site > 0 for one in ledgers)
            # What is fetched is counted when it is whole, what is served as it goes.
            wait_for(lambda: count(cache, 'bytes_total{direction="served"}') > 1.5 * count(cache, 'bytes_total{direction="fetched"}') > 0)
            cache.kill()
            assert client.runs.wait(run.id).state == "completed"
            status = json.loads(Home(agents[0].home).status.read_text())
            assert status["site_cache"]["url"] == cache.url
        finally:
            for agent in agents:
                agent.stop()
