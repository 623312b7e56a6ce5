"""`client.runs`: create, steer, follow and export runs. A run is named by its id, or by a name: that means its newest run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedcybgd.client import exports
from fedcybgd.client.connection import DAY_S, Connection, segment
from fedcybgd.client.errors import RunStopped
from fedcybgd.client.exports import ModelVersion
from fedcybgd.client.held_out import HeldOutFiles
from fedcybgd.client.plots import Against, Of, draw
from fedcybgd.client.run_files import Given, read
from fedcybgd.client.trackers.base import Tracker
from fedcybgd.shared.contract.explanations import ExplanationView
from fedcybgd.shared.contract.manifests import ExportView
from fedcybgd.shared.contract.operators import AgentRequest, RollbackRequest, StartRequest
from fedcybgd.shared.contract.plans import PlanView
from fedcybgd.shared.contract.provenance import Provenance
from fedcybgd.shared.contract.run_views import ExportEntry, SeriesView
from fedcybgd.shared.contract.views import (
    AssignmentView,
    EvaluationView,
    LabelScoresView,
    MemberView,
    RoundView,
    RunSummary,
    RunView,
    TrafficView,
)
from fedcybgd.shared.contract.words import FINAL, ExportForm, LabelOrder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def has_ended(run: RunView) -> bool:
    """In a state that it does not leave, with nothing left to measure."""
    return run.state in FINAL and not run.pending_jobs


class Runs:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # ---- before it begins -------------------------------------------------------------------------------------------------

    def create(self, run: Given, *, wait_s: float = DAY_S) -> RunView:
        """Create a run of a `RunFile`, a mapping with its fields, or the path of a run file; upload its held-out file; wait until it is prepared.

        `evaluate.held_out` is relative to the run file, else to the present directory. With `wait_s=0` the answer comes at once.
        Raises `RunFileInvalid`, `FileUnusable`, `Refused`, `RunStopped`, `TimedOut`.
        """
        spec, folder = read(run)
        if spec.evaluate is not None and spec.evaluate.digest is None:
            digest = self.upload_held_out(folder / spec.evaluate.held_out)
            spec = spec.model_copy(update={"evaluate": spec.evaluate.model_copy(update={"digest": digest})})
        made = self._connection.do(RunView, "/runs", spec)
        return self._prepared(made, wait_s) if wait_s else made

    def anchor(self, run: str, *, wait_s: float = DAY_S) -> RunView:
        """Create the run that trains the pooler and head of another alone, as often on as many rows; start it as any run. Agents' owners must let
        their rows be used by a run of its name. Raises `Refused` (`no_anchor`, `anchor_there`, …), `RunStopped`, `TimedOut`.
        """
        made = self._connection.do(RunView, f"/runs/{segment(run)}/anchor")
        return self._prepared(made, wait_s) if wait_s else made

    def _prepared(self, made: RunView, wait_s: float) -> RunView:
        run = self._connection.wait(lambda: self.get(made.id), lambda r: r.prepared or r.state in FINAL, limit=wait_s)
        if not run.prepared:
            raise RunStopped(f"run {run.name} could not be prepared: {run.reason}", run=run.id, state=run.state)
        return run

    def upload_held_out(self, path: Path | str) -> str:
        """As `client.held_out.upload`."""
        return HeldOutFiles(self._connection).upload(path)

    def plan(self, run: Given, *, tokens_per_s: float | None = None, rows: int | None = None) -> PlanView:
        """What a run would ask of each agent: bytes of memory, bytes moved, codecs, hours. Nothing is changed.

        `tokens_per_s` is the speed of training, `rows` the number of each agent's rows. Raises `RunFileInvalid`, `Refused`.
        """
        spec, _ = read(run)
        return self._connection.ask(PlanView, "/plan", spec, {"tokens_per_s": tokens_per_s, "rows": rows})

    # ---- steering -----------------------------------------------------------------------------------------------------------

    def start(self, run: str, *, anyway: bool = False) -> RunView:
        """Open the first round with the agents that are there; `anyway` counts all in. Raises `Refused` (`nobody_ready`, …)."""
        return self._connection.do(RunView, f"/runs/{segment(run)}/start", StartRequest.model_construct(anyway=anyway))

    def pause(self, run: str) -> RunView:
        """Begin no further round; what is being trained is finished and applied. Raises `Refused`."""
        return self._connection.do(RunView, f"/runs/{segment(run)}/pause")

    def resume(self, run: str) -> RunView:
        """Go on with a paused run. Raises `Refused`."""
        return self._connection.do(RunView, f"/runs/{segment(run)}/resume")

    def cancel(self, run: str) -> RunView:
        """End a run for good; its model so far can still be exported. Raises `Refused`."""
        return self._connection.do(RunView, f"/runs/{segment(run)}/cancel")

    def delete(self, run: str) -> None:
        """Delete all that is kept of a run that has ended, and the model that it made. Raises `Refused` (`run_not_over`, `run_busy`)."""
        self._connection.send("POST", f"/runs/{segment(run)}/delete")

    def rollback(self, run: str, after_rounds: int | None = None, *, best: bool = False, wait_s: float = DAY_S) -> RunView:
        """Take a run back to what it was after some rounds, or when it scored best (`best=True`): it is paused, and `reason` says what was
        done. `resume` goes on from there.

        Raises `Refused` (`round_unknown`, `versions_not_kept`, `never_scored`, …), `TimedOut`.
        """
        asked = RollbackRequest(after_rounds=after_rounds, best=best)
        return self._taken_back(self._connection.do(RunView, f"/runs/{segment(run)}/rollback", asked), wait_s)

    def without(self, run: str, agent: str, *, wait_s: float = DAY_S) -> RunView:
        """Take an agent's deltas out of a run: it is paused, and `reason` says what was done. Raises `Refused` (`nothing_to_undo`, …), `TimedOut`."""
        return self._taken_back(self._connection.do(RunView, f"/runs/{segment(run)}/without", AgentRequest(agent=agent)), wait_s)

    def _taken_back(self, run: RunView, wait_s: float) -> RunView:
        if wait_s:
            self._connection.wait(lambda: self.get(run.id), lambda view: not view.pending_jobs, limit=wait_s)
        return self.get(run.id)  # once more: a view is not one snapshot

    # ---- looking ------------------------------------------------------------------------------------------------------------

    def get(self, run: str) -> RunView:
        """Where a run stands. Raises `Refused` with `not_found`."""
        return self._connection.read(RunView, f"/runs/{segment(run)}")

    def explain(self, run: str) -> ExplanationView:
        """Where a run stands and why: what it waits for, what is unusual about it, and what helps. Raises `Refused` with `not_found`."""
        return self._connection.read(ExplanationView, f"/runs/{segment(run)}/explanation")

    def list(self) -> Iterator[RunSummary]:
        """All runs, the newest first."""
        return self._connection.pages(RunSummary, "/runs")

    def rounds(self, run: str) -> Iterator[RoundView]:
        """The rounds, the newest first."""
        return self._connection.pages(RoundView, f"/runs/{segment(run)}/rounds")

    def evaluations(self, run: str) -> Iterator[EvaluationView]:
        """Every score so far, the oldest first, each with what the model had cost by then."""
        return self._connection.pages(EvaluationView, f"/runs/{segment(run)}/evaluations")

    def label_scores(self, run: str, after_rounds: int, *, order: LabelOrder = "worst", skip: int = 0, limit: int = 100) -> LabelScoresView:
        """Recall, precision and F1 of single labels in one of the evaluations: a thousand a call at the most, the lowest recall first or by label."""
        place = f"/runs/{segment(run)}/evaluations/{after_rounds}/labels"
        return self._connection.read(LabelScoresView, place, {"order": order, "skip": skip, "limit": limit})

    def assignments(self, run: str) -> Iterator[AssignmentView]:
        """Every visit so far, the oldest first."""
        return self._connection.pages(AssignmentView, f"/runs/{segment(run)}/assignments")

    def series(self, run: str, *, points: int = 1000) -> SeriesView:
        """The scores and losses for its curves, thinned to about so many points, a thousand at the most."""
        return self._connection.read(SeriesView, f"/runs/{segment(run)}/series", {"points": points})

    def members(self, run: str) -> Iterator[MemberView]:
        """The agents that the run is open to: who is there, and whose data fit."""
        return self._connection.pages(MemberView, f"/runs/{segment(run)}/readiness")

    def traffic(self, run: str) -> Iterator[TrafficView]:
        """Bytes that crossed the wire, by round, agent and kind."""
        return self._connection.pages(TrafficView, f"/runs/{segment(run)}/traffic")

    def wait(self, run: str, until: Callable[[RunView], bool] | None = None, *, timeout_s: float = DAY_S, every_s: float = 0.5) -> RunView:
        """The run, once `until` holds of it; by default once it has completed and everything is measured.

        Raises `TimedOut` after `timeout_s` seconds, and `RunStopped` when it cannot come any more: the run has ended otherwise, or (by
        default) was paused. One that waits for agents that are silent goes on when they are back, and is waited for.
        """

        def stopped(view: RunView) -> bool:
            waits = view.waits_for_agents and view.readiness.get("silent", 0) > 0
            return has_ended(view) or (until is None and view.state == "paused" and not waits)

        def done(view: RunView) -> bool:
            return until(view) if until is not None else view.state == "completed" and has_ended(view)

        view = self._connection.wait(lambda: self.get(run), lambda v: done(v) or stopped(v), every_s, timeout_s)
        if not done(view):
            why = f": {view.reason}" if view.reason else ""
            raise RunStopped(f"run {view.name} is {view.state}{why}", run=view.id, state=view.state)
        return view

    def track(self, run: str, *trackers: Tracker, follow: bool = True, labels: bool = True, every_s: float = 2.0) -> tuple[RunView, int]:
        """Write the series of a run into trackers (`fedcybgd.client.trackers`): what there is so far and then, with `follow`, what comes until
        it ends, looking every so many seconds, and down to an eighth as often while nothing moves; with `labels` those of single labels too.
        The run as it was last, and how many points were new.

        Points that a tracker has are not written again. Raises `PackageMissing`, `TrackerFailed`, `FileUnusable`, `Refused`.
        """
        from fedcybgd.client.tracking import track

        return track(self._connection, run, trackers, follow, labels, every_s)

    def plot(self, *runs: str, y: Of = "quality", x: Against = "rounds", axes: "Axes | None" = None) -> "Axes":
        """Draw the held-out scores of runs beside each other, with their standard errors, in axes of matplotlib: those given, or new ones.

        `quality` is accuracy, or F1 of answers; of text it is the loss. `bytes` are all that had crossed the wire, `time` is since the start.
        Raises `PackageMissing`, `Refused`.
        """
        views = [self.get(run) for run in runs]
        return draw([(view, self.series(view.id)) for view in views], y, x, axes)

    # ---- its model ------------------------------------------------------------------------------------------------------------

    def export(
        self,
        run: str,
        directory: Path | str,
        *,
        form: ExportForm = "merged",
        version: ModelVersion | None = None,
        force: bool = False,
        timeout_s: float = DAY_S,
    ) -> ExportView:
        """Write the present model as a directory that transformers loads; `force` writes over what another run left there.

        `version` is a number of rounds, for the model as it was after them, or "best", for the one that scored best.
        Of a run with adapters the form `peft` is a directory of these alone, which peft loads beside the base model.

        Raises `DirectoryTaken`, `FileUnusable`, `AnswerInvalid`, `Refused`, `TimedOut`.
        """
        made_by, directory = self.get(run), Path(directory)
        before = exports.claim(directory, made_by, force)
        view = exports.export(self._connection, made_by.id, directory, form, version, timeout_s)
        exports.clear(directory, before, view.files)
        exports.write_card(directory, made_by, view.after_rounds, view.files)
        exports.write_provenance(directory, self._connection, made_by.id, view.export_id)
        return view

    def exports(self, run: str) -> Iterator[ExportEntry]:
        """The exports that were asked for, the newest first; their files are there for a day."""
        return self._connection.pages(ExportEntry, f"/runs/{segment(run)}/exports")

    def delete_export(self, run: str, export_id: str) -> None:
        """Delete an export at the coordinator. Raises `Refused` (`export_busy`)."""
        self._connection.send("POST", f"/runs/{segment(run)}/exports/{segment(export_id)}/delete")

    def provenance(self, run: str, *, names: bool = False) -> Provenance:
        """How the present model came to be, signed by the coordinator; agents have pseudonyms, unless `names` is given. Raises `Refused`."""
        return self._connection.read(Provenance, f"/runs/{segment(run)}/provenance", {"names": names})
