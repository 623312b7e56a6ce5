"""How a run ends: when its rounds are done, or no better score comes; with its last version, or with a better one where its file asks for that."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Block, Evaluation, Run
from fedcybgd.coordinator.domain.averages import averaged_rounds, stood
from fedcybgd.coordinator.domain.candidates import RunCandidate, candidate_block, chosen, without_improvement
from fedcybgd.coordinator.domain.history import VersionOrigin
from fedcybgd.coordinator.domain.jobs.candidates import AverageTerm, CalibrateResult, CandidatePayload, ConcludePayload, ConcludeResult
from fedcybgd.coordinator.domain.jobs.registry import CONCLUDE, RESTORE, Done, Failed
from fedcybgd.coordinator.domain.round import RoundState
from fedcybgd.coordinator.domain.run import RUN
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.verification import KeptVersion, lineages
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.records import jobs, versions
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import runs
from fedcybgd.shared.contract.measured import Conclusion, HeadCalibrationScores, Score
from fedcybgd.shared.contract.sizes import counted

Lines = Mapping[str, list[KeptVersion]]
"""Block → what its present version is made of, the youngest first"""
ORIGINS = {RunCandidate.AVERAGE: VersionOrigin.AVERAGED, RunCandidate.BEST: VersionOrigin.BEST}


class _VersionsGone(Exception):
    """What it takes to make versions of this block again is not kept."""


def depends_on_scores(spec: RunFile) -> bool:
    """Whether scores have a say in when a run ends, or with what."""
    return spec.average_versions is not None or spec.keep_best or spec.calibrate or spec.stop is not None


def is_over(session: Session, run: Run) -> bool:
    """Whether no round is left to do: all are done, or the last scores were no better than the best."""
    return run.rounds_done >= run.rounds_total or _stopped(session, run) is not None


def _stopped(session: Session, run: Run) -> str | None:
    """Why the run ends before its rounds are done, if it does."""
    stop = run.spec.stop
    if stop is None or not run.rounds_done:
        return None
    since = without_improvement([e.metrics for e in scores.of_run(session, run)])
    last = queries.last_round(session, run.id)
    if since < stop.patience or (last is not None and last.state != RoundState.CLOSED):
        return None
    best = scores.best_of(session, run)
    assert best is not None
    than = f"the one after {counted(best.after_rounds, 'round')} ({best.metrics.in_words()})"
    those = f"the last {counted(since, 'score')} {'was' if since == 1 else 'were'}"
    return f"ended early, after {run.rounds_done} of {counted(run.rounds_total, 'round')}: {those} no better than {than}"


def go_on(session: Session, run: Run, now: datetime) -> None:
    """End a run whose rounds are done; where there may be something better than its last version, have that made and scored before."""
    if run.spec.average_versions is not None or run.spec.keep_best or run.spec.calibrate:
        if _is_taken_back(session, run):
            return
        if scores.is_awaited(session, run) or jobs.facts_of_unfinished(session, CONCLUDE, run.id, "after_rounds"):
            return  # what comes of it leads here again
        if (payload := _candidates(session, run, now)) is not None:
            jobs.enqueue(session, CONCLUDE, run.id, payload, now)
            return
    _finish(session, run, "", now)


def _is_taken_back(session: Session, run: Run) -> bool:
    """Whether rounds of it are just being undone: it does not end then, whatever else comes."""
    return bool(jobs.facts_of_unfinished(session, RESTORE, run.id, "after_rounds"))


def _candidates(session: Session, run: Run, now: datetime) -> ConcludePayload | None:
    """What may be better than the last version; None where there is nothing, or it cannot be made."""
    spec, present = run.spec, queries.blocks_of(session, run.id)
    lines = _lines(session, run, present)
    best = scores.best_of(session, run) if spec.keep_best else None
    best_after = best.after_rounds if best is not None else run.rounds_done
    rounds = averaged_rounds(spec.average_versions.last, run.rounds_done) if spec.average_versions is not None else 1
    average = best_before = CandidatePayload(terms={}, blocks=[])
    try:
        average = _candidate(lines, lambda line: stood([row.facts for row in line], run.rounds_done, rounds))
        best_before = _candidate(lines, lambda line: stood([row.facts for row in line], best_after, 1))
    except _VersionsGone as gone:
        text = f"run {run.name} ends with its last version: what it takes to make versions of block {gone} again is not kept"
        record(session, now, "warning", "versions_not_kept", text, run_id=run.id)
        average = best_before = CandidatePayload(terms={}, blocks=[])
    if not (average.blocks or best_before.blocks or spec.calibrate):
        return None
    known = {RunCandidate.LAST: _score_after(session, run, run.rounds_done), RunCandidate.BEST: _score_after(session, run, best_after)}
    return ConcludePayload(
        after_rounds=run.rounds_done, versions={block.name: block.version for block in present}, average=average, best=best_before,
        best_after=best_after, scoring=None if spec.evaluate is None else scores.scoring_of(session, run, run.rounds_done),
        scores={str(name): score for name, score in known.items() if score is not None},
        keep_average=spec.average_versions is not None and spec.average_versions.keep == "average", calibrate=spec.calibrate,
    )  # fmt: skip


def _lines(session: Session, run: Run, present: Sequence[Block]) -> Lines:
    known: dict[str, dict[int, KeptVersion]] = {}
    for row in versions.of_run(session, run.id):
        known.setdefault(row.block, {})[row.version] = versions.as_kept(row)
    return lineages(known, [(block.name, block.version) for block in present])


def _candidate(lines: Lines, terms_of: Callable[[list[KeptVersion]], list[AverageTerm]]) -> CandidatePayload:
    """Of the blocks that are not their last versions in it. Raises `_VersionsGone`."""
    found = CandidatePayload(terms={}, blocks=[])
    for name, line in lines.items():
        terms = terms_of(line)
        if [term.version for term in terms] != [line[0].facts.version]:
            block = candidate_block(line, terms, lambda row: row.kept and row.facts.exact) if terms else None
            if block is None:
                raise _VersionsGone(name)
            found.terms[name] = terms
            found.blocks.append(block)
    return found


def concluded(session: Session, done: Done[ConcludePayload, ConcludeResult]) -> None:
    """Exactly once, whatever is repeated: the model is the best candidate, and the run has ended, in one transaction."""
    run, payload, result = session.get_one(Run, done.subject, with_for_update=True), done.payload, done.result
    if RUN.is_final(run.state) or _is_taken_back(session, run):
        return
    blocks = {block.name: block for block in queries.blocks_of(session, run.id)}
    if {name: block.version for name, block in blocks.items()} != payload.versions or not is_over(session, run):
        return  # rounds of it were taken back meanwhile
    average = run.spec.average_versions
    found = {RunCandidate.LAST: _score_after(session, run, run.rounds_done)}
    if payload.average.blocks:
        found[RunCandidate.AVERAGE] = scores.score_of(result.score) if result.score is not None else None
    if payload.best.blocks:
        found[RunCandidate.BEST] = _score_after(session, run, payload.best_after)
    choice = chosen(found, average is not None and average.keep == "average")
    for candidate, terms, made in (
        (RunCandidate.AVERAGE, payload.average.terms, result.average), (RunCandidate.BEST, payload.best.terms, result.best),
    ):  # fmt: skip
        for ref in made if candidate == choice else ():
            versions.ended_with(
                session, run.id, blocks[ref.block], ORIGINS[candidate], terms[ref.block], ref, run.rounds_done - 1, done.now
            )
    calibrated = result.calibrated if result.calibrated is not None and result.calibrated.of == choice else None
    if calibrated is not None and calibrated.head is not None:
        head = blocks[calibrated.head.block]
        versions.calibrated(session, run.id, head, calibrated.calibration, calibrated.head, run.rounds_done - 1, done.now)
    run.conclusion = Conclusion(
        kept=choice, best_after=payload.best_after, without=[str(name) for name in found if name != choice],
        rounds=averaged_rounds(average.last, run.rounds_done) if average is not None else 0,
        scores={str(name): score for name, score in found.items() if score is not None},
        calibration=_told(calibrated) if calibrated is not None else None,
    )  # fmt: skip
    if run.spec.calibrate and not run.conclusion.is_calibrated:
        why = "there are too few held-out rows, or its logits are not finite, or it has no matrix of labels"
        why = run.conclusion.calibration.in_words() if run.conclusion.calibration is not None else why
        record(session, done.now, "warning", "not_calibrated", f"run {run.name} ends with its head as it was trained: {why}", run_id=run.id)
    if (score := run.conclusion.score) is not None and score.is_by_majority:
        text = (
            f"run {run.name} ends with {score.in_words()}; saying the commonest label of the held-out rows always has an accuracy of {score.majority:.2%}: "
            "nothing there says that the model has learned more; try more rows, here or at the agents, or other rates"
        )
        record(session, done.now, "warning", "no_better_than_majority", text, run_id=run.id)
    _finish(session, run, f"; {run.conclusion.in_words()}", done.now)


def _told(made: CalibrateResult) -> HeadCalibrationScores:
    return HeadCalibrationScores(
        temperature=1 / made.calibration.scale, kept=made.head is not None, before=scores.score_of(made.before), after=scores.score_of(made.after)
    )  # fmt: skip


def _score_after(session: Session, run: Run, rounds: int) -> Score | None:
    found = session.get(Evaluation, (run.id, rounds))
    return found.metrics if found is not None else None


def failed(session: Session, failed: Failed[ConcludePayload]) -> None:
    """What could not be made is not missed: the run ends with its last version."""
    run = session.get_one(Run, failed.subject, with_for_update=True)
    if RUN.is_final(run.state) or _is_taken_back(session, run) or not is_over(session, run):
        return  # nobody waits for it any more
    text = f"what the run could have ended with could not be made: {failed.message}; it ends with its last version"
    record(session, failed.now, "error", failed.code, text, run_id=run.id)
    _finish(session, run, "", failed.now)


def _finish(session: Session, run: Run, how: str, now: datetime) -> None:
    early = _stopped(session, run) if run.rounds_done < run.rounds_total else None
    after = f"completed after {counted(run.rounds_done, 'round')}"
    runs.finish(run, early, now)
    unmeasured = queries.failed_measurements(session, run.id)
    text = f"; {counted(unmeasured, 'measurement')} failed, the events before say why" if unmeasured else ""
    record(
        session, now, "warning" if unmeasured else "info", "run_completed",
        f"run {run.name} {early or after}{how}{text}", run_id=run.id,
    )  # fmt: skip
