"""A delta is judged once and applied once, whatever is repeated: also where the fence of the job itself lets a result through again."""

import pytest
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Job
from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.domain.jobs.lease import Hold
from fedcybgd.coordinator.domain.jobs.payloads import AdmitResult
from fedcybgd.coordinator.domain.jobs.registry import ADMIT, APPLY, Done
from fedcybgd.coordinator.services import outcomes
from fedcybgd.coordinator.services.path import close_round, judge
from tests.model.world import AGENTS, NOW, OWNERS, Outside, World


@pytest.fixture
def world() -> World:
    return World(cycles=2)


class Played:
    """A run in which both agents send their deltas, job by job."""

    def __init__(self, world: World, session: Session) -> None:
        self.world, self.session, self.outside = world, session, Outside()
        self.both_send()

    def both_send(self) -> None:
        for agent in AGENTS:
            self.outside, known = self.world.do_claim(self.session, self.outside, agent)
            self.world.do_submit(self.session, self.outside, known)

    def take(self, kind: JobKind) -> Job:
        """The next job, which has to be of this kind, as one that runs."""
        before = self.outside.holds
        self.outside, _ = self.world.do_take(self.session, self.outside, OWNERS[0])
        [hold] = self.outside.holds - before
        job = self.session.get_one(Job, hold.job)
        assert job.kind == kind
        return job

    def hold_of(self, job: Job) -> Hold:
        return next(hold for hold in self.outside.holds if hold.job == job.id)

    def finish(self, job: Job) -> None:
        self.world.do_finish(self.session, self.outside, self.hold_of(job))

    def everything(self) -> list[str]:
        """All that the database holds."""
        self.session.flush()
        return list(self.world._raw.iterdump())

    def judge_again(self, job: Job, refusal: str | None = None) -> None:
        result = AdmitResult(rejected_because=refusal, norms={})
        judge.judged(self.session, Done(job.subject, ADMIT.payload_of(job.payload), result, NOW))

    def apply_again(self, job: Job) -> None:
        result = self.world._result(self.session, job)
        close_round.applied(self.session, Done(job.subject, APPLY.payload_of(job.payload), result, NOW))


@pytest.mark.parametrize("refusal", [None, "norm: too far"])
def test_a_delta_that_was_judged_is_not_judged_again(world: World, refusal: str | None) -> None:
    """Neither taken back by a second judgement, nor given a second seat."""
    with world.at(world.start) as session:
        run = Played(world, session)
        first = run.take(JobKind.ADMIT)
        run.finish(first)
        accepted = run.everything()
        run.judge_again(first, refusal)
        assert run.everything() == accepted, "while the round waits for the other"
        run.finish(run.take(JobKind.ADMIT))
        applying = run.everything()
        run.judge_again(first, refusal)
        assert run.everything() == applying, "nor is the round applied a second time"


def test_a_delta_that_was_rejected_stays_so_and_its_seat_is_given_once(world: World) -> None:
    with world.at(world.start) as session:
        run = Played(world, session)
        first = run.take(JobKind.ADMIT)
        outcomes.complete(session, run.hold_of(first), AdmitResult(rejected_because="norm: too far", norms={}), NOW)
        rejected = run.everything()
        for refusal in (None, "norm: too far"):
            run.judge_again(first, refusal)
            assert run.everything() == rejected


def test_a_round_is_applied_once_whatever_the_run_does_by_then(world: World) -> None:
    with world.at(world.start) as session:
        run = Played(world, session)
        for _ in AGENTS:
            run.finish(run.take(JobKind.ADMIT))
        first = run.take(JobKind.APPLY)
        run.finish(first)
        closed = run.everything()
        run.apply_again(first)
        assert run.everything() == closed, "the next round is open"
        run.both_send()
        for _ in AGENTS:
            run.finish(run.take(JobKind.ADMIT))
        second = run.take(JobKind.APPLY)
        applying = run.everything()
        run.apply_again(first)
        assert run.everything() == applying, "the next round is being applied"
        run.finish(second)
        assert [version for _, version, _ in world.rows().blocks if version] == [2, 2, 2]


def test_a_round_that_was_taken_back_is_not_applied_in_place_of_the_one_that_took_its_number(world: World) -> None:
    """Its engine was at work when the operator took the run back, and comes to an end when the deltas of the new round are being applied."""
    with world.at(world.start) as session:
        run = Played(world, session)
        for _ in AGENTS:
            run.finish(run.take(JobKind.ADMIT))
        first = run.take(JobKind.APPLY)
        run.outside, _ = world.do_rollback(session, run.outside, 0)
        run.finish(run.take(JobKind.RESTORE))
        world.do_resume(session, run.outside)
        run.both_send()
        for _ in AGENTS:
            run.finish(run.take(JobKind.ADMIT))
        second = run.take(JobKind.APPLY)
        applying = run.everything()
        run.apply_again(first)
        assert run.everything() == applying
        run.finish(second)
        assert world.rows().run.rounds_done == 1
        wanted = sorted(str(visit.delta) for visit in world.rows().assignments.values() if visit.applied)
        [(_, _, head)] = [block for block in world.rows().blocks if block[0] == "head"]
        assert sorted(digest for step in world.history(head) for digest in step) == wanted


def test_a_result_that_is_written_again_after_the_commit_changes_nothing(world: World) -> None:
    """The lane dies, or its connection does, between the commit and its acknowledgement: it writes the same once more."""
    with world.at(world.start) as session:
        run = Played(world, session)
        for kind in (JobKind.ADMIT, JobKind.ADMIT, JobKind.APPLY):
            job = run.take(kind)
            run.finish(job)
            session.commit()
            written = run.everything()
            run.finish(job)
            session.commit()
            assert run.everything() == written
            outcomes.fail(session, run.hold_of(job), "worker_died", "killed", NOW, engine_died=True)
            assert run.everything() == written, "nor can it fail by now"


def test_a_result_whose_commit_fails_is_written_as_if_for_the_first_time(world: World) -> None:
    with world.at(world.start) as session:
        run = Played(world, session)
        for kind in (JobKind.ADMIT, JobKind.ADMIT, JobKind.APPLY):
            job = run.take(kind)
            session.commit()
            before = run.everything()
            run.finish(job)
            session.rollback()
            assert run.everything() == before, "all of it is undone"
            run.finish(job)
            session.commit()
        assert (world.rows().run.rounds_done, world.rows().run.state) == (1, "running")
