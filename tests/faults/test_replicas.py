"""Two real coordinators behind a balancer: one is killed while it judges, and the database; the run goes on without a hand, to the same bits."""

import time

import pytest

from fedcybgd.client.errors import ClientError
from tests.faults.chaos import started
from tests.faults.fleet import Fleet
from tests.faults.judged import Outcome, ended, judge, undisturbed
from tests.faults.spec import spec
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for

JUDGES = "web coordinator.jobs.taking:Queue.complete(admit) commit before"
AGENTS, REPLICAS = 2, 2
GOES_ON_WITHIN_S = 60.0
"""Ten seconds are the lease of a job; the rest is for a machine with other work."""


def has_closed_one(fleet: Fleet, run_id: str) -> bool:
    """What was asked of the coordinator that is killed meanwhile has no answer, and is asked again."""
    try:
        return int(fleet.view(run_id)["rounds_done"]) >= 1
    except ClientError:
        return False


@pytest.mark.database_decides
@pytest.mark.postgresql
@pytest.mark.timeout(900)  # on a machine with other work
def test_no_coordinator_that_is_killed_holds_a_run_up() -> None:
    server = PostgresServer()
    try:
        with started(server.new_database(), agents=AGENTS, replicas=REPLICAS) as fleet, fleet.kept_down(*fleet.names):
            values = spec("short", "replicas", 7)
            fleet.arm(JUDGES)
            run_id = fleet.begin(values)
            wait_for(fleet.hit, GOES_ON_WITHIN_S)
            wait_for(lambda: [one.running for one in fleet.coordinators].count(False) == 1)
            killed = time.monotonic()
            wait_for(lambda: has_closed_one(fleet, run_id), GOES_ON_WITHIN_S)
            print(f"a round was closed {time.monotonic() - killed:.1f} s after its coordinator was killed")
            with server.killed():
                time.sleep(1)
            outcome = Outcome(7, "short")
            judge(outcome, fleet, run_id, ended(fleet, run_id), undisturbed(fleet.model, fleet.partitions, values), exact=True)
            assert outcome.well, outcome
            assert outcome.identical
            assert [one.running for one in fleet.coordinators].count(False) == 1, "nobody started it again"
    finally:
        server.stop()
