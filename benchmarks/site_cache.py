"""Bytes that leave a coordinator for ten agents of one site: each by itself, and by way of a site cache, in one run.

    python -m benchmarks.site_cache [--json FILE] [--agents N]

Ten agents that sign have an assignment each of one round over a whole model, from a real `fedcoord serve`, and fetch all that is in their
manifests at the same time: first from the coordinator, then, with empty caches, by way of a real `fedagent serve-cache`. A relay before the
coordinator counts every byte that it sends, heads and refusals too.
"""

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from benchmarks.import_memory import write_checkpoint
from benchmarks.report import arguments, finish
from benchmarks.serving import cpu
from benchmarks.system import ENVIRONMENT
from benchmarks.watched import Relay
from fedcybgd import Coordinator
from fedcybgd.agent.client import Client
from fedcybgd.shared.contract.agents import ClaimRequest, DeviceInfo, EnrolRequest, RunReadiness
from fedcybgd.shared.contract.assignments import LeasedAssignment
from tests.support.processes import wait_for
from tests.support.site import SiteAgent, site_cache

SIZES = {
    "vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
RUN = {
    "name": "site", "model": "large", "task": {"kind": "causal-lm", "max_length": 16}, "schedule": {"cycles": 1}, "method": "whole",
    "whole": {"weights": "equal"}, "train": {"steps": 1, "learning_rate": 1e-4},
}  # fmt: skip
MOST = 0.12
"""Of the bytes without a cache: a tenth, and what asking costs"""


def enrolled(coordinator: Coordinator, agent: SiteAgent, name: str) -> None:
    agent.signer._ahead = 1.5  # what is signed in the second in which a coordinator began is refused once
    request = EnrolRequest(
        token=coordinator.token(), name=name, device=DeviceInfo(), version="benchmark", public_key=agent.signer.public_key
    )
    Client(coordinator.url).enrol(request)
    agent.client.me()


def claimed(agent: SiteAgent) -> LeasedAssignment:
    while (assignment := agent.client.claim(ClaimRequest(runs=["*"]), wait=30)) is None:
        pass
    return assignment


def fetched(agents: Sequence[SiteAgent], assignments: Sequence[LeasedAssignment]) -> int:
    """Everything of all manifests, by all agents at once; the bytes that they have then."""

    def fetch(agent: SiteAgent, assignment: LeasedAssignment) -> int:
        manifest = assignment.manifest
        refs = {ref.digest: ref.size for ref in (*manifest.files, *manifest.blocks)}
        return sum(len(agent.fetch(digest, size, assignment.assignment_id)) for digest, size in refs.items())

    with ThreadPoolExecutor(len(agents)) as pool:
        return sum(pool.map(fetch, agents, assignments))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--agents", type=int, default=10)
    given = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_checkpoint(folder / "model", SIZES)
        with Coordinator.local(folder / "home", log=folder / "log", environment=ENVIRONMENT) as coordinator:
            relay = Relay(int(coordinator.url.rpartition(":")[2]))
            web = psutil.Process(coordinator.pid)
            coordinator.client.models.add(folder / "model", "large")
            agents = [SiteAgent(relay.url, None, folder / "plain" / str(n)) for n in range(given.agents)]
            for n, agent in enumerate(agents):
                enrolled(coordinator, agent, f"agent-{n}")
            run = coordinator.client.runs.create(RUN)
            for agent in agents:
                agent.client.say_ready([RunReadiness(run_id=run.id, fits=True)])
            coordinator.client.runs.start(run.id)
            assignments = [claimed(agent) for agent in agents]

            def measured(side: str, readers: Sequence[SiteAgent]) -> float:
                before, burnt, asked, began = relay.down, cpu([web]), relay.connections, time.monotonic()
                held = fetched(readers, assignments)
                figures[f"{side}_seconds"] = time.monotonic() - began
                time.sleep(0.5)  # what is counted after an answer
                figures[f"{side}_sent_mb"] = (relay.down - before) / 1e6
                figures[f"{side}_web_cpu_s"] = cpu([web]) - burnt
                print(
                    f"{side}: {len(readers)} agents have {held / 1e6:,.1f} MB, {figures[f'{side}_sent_mb']:,.1f} left the coordinator by "
                    f"{relay.connections - asked} new connections, in {figures[f'{side}_seconds']:.1f} s",
                    flush=True,
                )
                return figures[f"{side}_sent_mb"]

            fetched([SiteAgent(relay.url, None, folder / "warm", agents[0].signer)], assignments[:1])  # digests are known, files in memory
            alone = measured("without", agents)
            with site_cache(relay.url, folder / "site") as cache:
                readers = [
                    SiteAgent(relay.url, cache.url, folder / "site-readers" / str(n), agent.signer) for n, agent in enumerate(agents)
                ]
                for reader, agent in zip(readers, agents, strict=True):
                    reader.client.coordinator = agent.client.coordinator
                shared, process = measured("with", readers), psutil.Process(cache.pid)
                figures["cache_cpu_s"] = cpu([process])
                wait_for(lambda: all(reader.site.is_asked for reader in readers))
                figures["from_the_cache"] = sum(r.site.bytes_fetched for r in readers) / sum(r.cache.fetched_in_all for r in readers)
            figures["with_of_without"] = shared / alone
    finish(figures, {"with_of_without": MOST}, given.json)


if __name__ == "__main__":
    main()
