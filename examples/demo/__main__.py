"""`python -m examples.demo banking77|shakespeare`: the whole story in a few minutes."""

import argparse
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from examples.demo import report, tasks
from examples.demo.measure import in_process
from examples.demo.system import DemoFailed, System
from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands.following import followed
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.path.open_round import train_settings
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.manifests import Manifest, ShardRef
from fedcybgd.shared.contract.views import EvaluationView, RunView
from fedcybgd.shared.host.terminal import Terminal

console = Console(soft_wrap=True)
terminal = Terminal()
# One agent trains at a time, so it may have the machine; a model of 260,000 parameters only loses by a second thread.
THREADS = {"banking77": min(4, os.cpu_count() or 1), "shakespeare": 1}
MAKERS: dict[str, Callable[[Path], tuple[tasks.DemoTask, list[Path]]]] = {"banking77": tasks.banking77, "shakespeare": tasks.shakespeare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(MAKERS))
    parser.add_argument("--folder", type=Path, help="where to work; default: demo-TASK here")
    parser.add_argument("--threads", type=int, help="of each training process")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(f"demo-{arguments.task}")).resolve()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with System(folder) as system:
            _demo(system, arguments.task, arguments.threads or THREADS[arguments.task], arguments.json)
    except (DemoFailed, FedError) as error:
        console.print(f"the demo failed: {error}", style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nstopped; everything the demo made is in " + str(folder))
        sys.exit(130)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _demo(system: System, name: str, threads: int, json_path: Path | None) -> None:
    began = time.monotonic()
    task, partitions = MAKERS[name](system.folder / "data")
    rows = sum(path.read_bytes().count(b"\n") for path in partitions)
    console.print(f"[bold]{task.title}[/]\n{rows:,} rows, dealt out to {len(partitions)} agents; no row leaves its agent.\n")
    client = system.start_coordinator()
    console.print(
        f"coordinator at {system.coordinator.url}, status page {system.coordinator.url}/admin\n  operator's key of this demo: {system.coordinator.key}\n",
        highlight=False,
    )
    for path in partitions:
        system.start_agent(path.stem, path, task.runs, threads)
    with console.status("adding the model, block by block"):
        client.models.add(task.model, task.model_name)
        run = client.runs.create(task.run_file)
    console.print(f"{len(run.blocks)} blocks, {run.rounds_total} rounds; {len(partitions)} agents are enrolled and wait for work")
    with console.status("measuring the memory of full fine-tuning, for comparison"):
        full = in_process(
            "full_memory", _as_assignment(run), str(system.folder / "coordinator" / "blobs"), str(partitions[0]), str(threads)
        )

    anchor = None
    if task.anchor_file is not None:
        console.print("\n[bold]The anchor:[/] the head alone, on the frozen model")
        anchor = _follow(system, client, client.runs.create(task.anchor_file))
    console.print("\n[bold]The run:[/] all parameters, block by block")
    run = _follow(system, client, run)

    with console.status("exporting the model, and loading it as anybody would"):
        exported = system.folder / "exported"
        client.runs.export(run.id, exported)
        spec = RunFile.model_validate(run.spec)
        assert spec.evaluate is not None
        held_out = task.run_file.parent / spec.evaluate.held_out
        reloaded = in_process("score", str(exported), spec.task.kind, str(held_out), str(spec.task.max_length))
        texts = [in_process("sample", str(where), *task.sample_prompts) for where in (task.model, exported)] if task.sample_prompts else []
    visits = list(client.runs.assignments(run.id))
    first, last = run.evaluations[0], run.evaluations[-1]
    head = anchor.evaluations[-1] if anchor else None
    peaks = [v.metrics.peak_memory_bytes for v in visits if v.metrics]
    model_bytes = sum(4 * b.num_parameters for b in run.blocks)
    metric = "accuracy" if spec.task.kind == "text-classification" else "loss"
    figures = report.Figures(
        task=name, metric=metric, rows_trained_on=rows, rows_held_out=last.rows,
        start=_score(first, metric), head_only=_score(head, metric) if head else None, final=_score(last, metric), reloaded=reloaded[metric],
        start_loss=_score(first, "loss"), head_only_loss=_score(head, "loss") if head else None, final_loss=_score(last, "loss"), reloaded_loss=reloaded["loss"],
        wall_s=time.monotonic() - began, training_s=_seconds(run),
        bytes_down=run.bytes.down, bytes_up=run.bytes.up, fedavg_bytes=2 * model_bytes * len(visits),
        visit_peak_bytes=max(peaks), visit_peak_bytes_median=int(statistics.median(peaks)), full_peak_bytes=int(full["peak_bytes"]),
        web_memory_bytes=system.memory_of_web_process(), exported=str(exported),
    )  # fmt: skip
    report.show(console, figures)
    for title, text in zip(("Before", "After"), texts, strict=False):
        console.print(f"\n[bold]{title}:[/]")
        for passage in text:
            console.print("  " + passage.replace("\n", "\n  ") + "\n", highlight=False, markup=False)
    console.print(f"\nthe fine-tuned model: {exported}", highlight=False)
    if json_path is not None:
        report.save(json_path, figures, {"digests": {b.name: b.digest for b in run.blocks}})
    if os.environ.get("KEEP"):
        console.print(
            f"\nkept alive: {system.coordinator.url}/admin with the key {system.coordinator.key}; Ctrl-C ends it", highlight=False
        )
        while True:
            system.check()
            time.sleep(1)


def _follow(system: System, client: Client, run: RunView) -> RunView:
    """Start a run and show it live until it has ended."""
    client.wait(lambda: list(client.agents.list()), lambda agents: all(agent.state == "active" for agent in agents), timeout_s=120)
    client.runs.start(run.id)
    view = followed(client, run.id, terminal, lambda _: system.check())
    if view.state != "completed":
        raise DemoFailed(f"the run ended {view.state}: {view.reason}")
    return view


def _seconds(run: RunView) -> float:
    assert run.ended_at
    assert run.started_at
    return (run.ended_at - run.started_at).total_seconds()


def _score(evaluation: EvaluationView, metric: str) -> float:
    value = evaluation.accuracy if metric == "accuracy" else evaluation.loss
    assert value is not None, evaluation.failed
    return value


def _as_assignment(run: RunView) -> str:
    """The first visit of the run as an agent would get it, for the comparison with full fine-tuning."""
    spec = RunFile.model_validate(run.spec)
    trained = [b.name for b in run.blocks if b.trained and b.name not in spec.schedule.always]
    seat = method_of(spec).seats(spec, trained, ["agent-1"], 0, spec.schedule.always)[0]
    blocks = [ShardRef(block=b.name, version=0, codec="exact", digest=b.digest, size=b.size) for b in run.blocks]
    return LeasedAssignment(
        assignment_id="asg_" + 16 * "0", attempt=1, lease_seconds=60, run_id=run.id, run_name=run.name, round=0, cycle=0, block="all",
        manifest=Manifest(files=run.files, blocks=blocks), train=train_settings(spec, seat), max_delta_bytes=0,
    ).model_dump_json()  # fmt: skip


if __name__ == "__main__":
    main()
