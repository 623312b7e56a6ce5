"""What other schedules than the strict ascending cycle would gain: `python -m benchmarks.schedules`.

stories260K (0.26 M parameters) on Shakespeare: whole plays stay with six agents, windows of 32 tokens, eight a step, 480 steps of agents
in all where nothing else is said; the embeddings and five layers are visited, the final norm along. Several seeds (of who has which plays, and of the
order of rows). All arms are trained by `benchmarks.schedule_trial` in one process, and scored on the same 600 held-out windows.

orders    which block comes when: by the norm of its gradient on calibration rows, measured before every cycle or once, against fixed orders
first     a short first cycle, strict or in wide damped waves, and longer visits afterwards
parts     attention and MLP of a layer by themselves; two layers a visit, with and without overlap
outer     momentum over the rounds of damped waves: 5 steps a visit, 16 visits a block
late      waves in which a third of the deltas comes one or two rounds too late: lost, trained again, or added with a factor

`20 x 4` are four cycles of visits of 20 steps, in the strict ascending order where nothing else is said.
Every arm is tried at every learning rate of `--rate`, and told of at the one that does best for it: a damped wave bears a higher one than the strict cycle.
With `--results` what was measured is kept, and not measured again.
"""

import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import arguments
from benchmarks.schedule_trial import Outer, Trial, Visit, Wave, write_rows

AGENTS = 6
RATES = (1e-3, 2e-3, 3e-3)


@dataclass(frozen=True)
class Arm:
    """One way to spend the steps."""

    waves: Callable[[Trial], Iterator[Wave]]
    outer: Outer | None = None
    factors: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cycles:
    """So many cycles over `units`, in waves, `steps` a visit. Unit i goes to agent i + cycle."""

    steps: int
    cycles: int = 1
    wave: int = 1
    damping: float = 1.0
    order: str = "ascending"
    units: Sequence[str] = ("embeddings", *(f"layers.{i}" for i in range(5)))

    def waves(self, trial: Trial, first: int = 0) -> Iterator[Wave]:
        norms: dict[str, float] = {}
        for cycle in range(first, first + self.cycles):
            if self.order.startswith("importance") and (not norms or "once" not in self.order):
                norms = trial.gradient_norms(self.units)
            order = self._ordered(trial.seed, cycle, norms)
            for start in range(0, len(order), self.wave):
                chosen = order[start : start + self.wave]
                yield Wave([Visit(unit, (self.units.index(unit) + cycle) % AGENTS, self.steps) for unit in chosen], self.damping)

    def _ordered(self, seed: int, cycle: int, norms: Mapping[str, float]) -> list[str]:
        order = list(self.units)
        if self.order == "descending":
            order.reverse()
        elif self.order == "random":
            random.Random(f"{seed}:{cycle}").shuffle(order)
        elif norms:
            order.sort(key=lambda unit: -norms[unit])
        return order


def of(*parts: Cycles, **more: Any) -> Arm:
    """The parts one after another."""

    def waves(trial: Trial) -> Iterator[Wave]:
        done = 0
        for part in parts:
            yield from part.waves(trial, done)
            done += part.cycles

    return Arm(waves, **more)


def late(cycles: Cycles, most: int, factors: Mapping[int, float], again: bool = False, none: bool = False) -> Arm:
    """A third of the visits comes late, by 1 to `most` rounds; `again`: it is trained again by the same agent before the next round."""

    def waves(trial: Trial) -> Iterator[Wave]:
        draw = random.Random(f"late:{trial.seed}")
        for wave in cycles.waves(trial):
            ages = [draw.randint(1, most) if draw.random() < 1 / 3 else 0 for _ in wave.visits]
            if none:
                yield wave
            elif not again:
                yield Wave(wave.visits, wave.damping, ages)
            else:
                for part in ([v for v, a in zip(wave.visits, ages, strict=True) if bool(a) is missed] for missed in (False, True)):
                    if part:
                        yield Wave(part, wave.damping)

    return Arm(waves, factors=factors)


HALVES = ("embeddings", *(f"layers.{i}:{half}" for i in range(5) for half in ("attention", "mlp")))
PAIRS = ("embeddings", "layers.0+layers.1", "layers.2+layers.3", "layers.4")
WINDOWS = ("embeddings", *(f"layers.{i}+layers.{i + 1}" for i in range(4)))
WAVES = Cycles(20, 4, wave=3, damping=0.5)
STRICT, LONG, IN_WAVES = "20 x 4", "80 x 1", "waves of 3, 20 x 4"


def _momentum(momentum: float, damping: float, nesterov: bool = False) -> Arm:
    return of(Cycles(5, 16, wave=3, damping=damping), outer=Outer(momentum, nesterov) if momentum else None)


ARMS: dict[str, Arm] = {
    STRICT: of(Cycles(20, 4)),
    "attention and MLP apart, 22 x 2": of(Cycles(22, 2, units=HALVES)),
    "overlapping pairs, 24 x 4": of(Cycles(24, 4, units=WINDOWS)),
    IN_WAVES: of(WAVES),
    "late, counts 1/2": late(WAVES, 2, {1: 0.5, 2: 0.5}),
    "late, refused and lost": late(WAVES, 2, {}),
    "late, trained again": late(WAVES, 2, {}, again=True),
    LONG: of(Cycles(80)),
    "20 in a wave of 6, then 60": of(Cycles(20, wave=6, damping=0.3), Cycles(60)),
    f"importance, {STRICT}": of(Cycles(20, 4, order="importance")),
    f"random, {STRICT}": of(Cycles(20, 4, order="random")),
    "waves, no momentum, damping 0.5": _momentum(0.0, 0.5),
    "waves, momentum 0.5, damping 0.3": _momentum(0.5, 0.3),
    "waves, Nesterov 0.9, damping 0.05": _momentum(0.9, 0.05, True),
    "late, counts 1": late(WAVES, 2, {1: 1.0, 2: 1.0}),
    "pairs of layers, 24 x 5": of(Cycles(24, 5, units=PAIRS)),
    "10 in waves of 3, then 70": of(Cycles(10, wave=3, damping=0.5), Cycles(70)),
    f"importance once, {STRICT}": of(Cycles(20, 4, order="importance once")),
    f"descending, {STRICT}": of(Cycles(20, 4, order="descending")),
    "late, counts 1/(1+age)": late(WAVES, 2, {1: 1 / 2, 2: 1 / 3}),
    "waves, momentum 0.9, damping 0.05": _momentum(0.9, 0.05),
    "10, then 70": of(Cycles(10), Cycles(70)),
}
GROUPS: dict[str, list[str]] = {
    "late": [IN_WAVES, *(name for name in ARMS if name.startswith("late"))],
    "parts": [STRICT, *(name for name in ARMS if "apart" in name or "pairs" in name)],
    "first": [STRICT, LONG, IN_WAVES, *(name for name in ARMS if ", then" in name)],
    "orders": [STRICT, *(name for name in ARMS if name.endswith(f", {STRICT}") and name != IN_WAVES)],
    "outer": [name for name in ARMS if name.startswith("waves, ")],
}
"""Each group's first arm is what the others are held against."""


Case = tuple[str, float, int]
"""arm, learning rate, seed"""


def measure(trial: Trial, arm: Arm, rate: float) -> dict[str, float]:
    trial.reset(rate)
    loss = trial.run(arm.waves(trial), arm.outer, arm.factors)
    return {"loss": loss, "steps": trial.steps, "visits": trial.visits, "rounds": trial.rounds}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--group", choices=list(GROUPS), action="append", help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, action="append", help=f"learning rates to try; default {', '.join(map(str, RATES))}")
    parser.add_argument("--results", type=Path, help="file that every result is added to; what is in it is not repeated")
    options = parser.parse_args()
    groups = options.group or list(GROUPS)
    rates = options.rate or list(RATES)
    found: dict[Case, dict[str, float]] = {}
    if options.results is not None and options.results.exists():
        lines = [json.loads(line) for line in options.results.read_text().splitlines()]
        found = {(line["arm"], line["rate"], line["seed"]): line["result"] for line in lines}
    trials: dict[int, Trial] = {}
    wanted = {name for group in groups for name in GROUPS[group]}
    for name, rate in ((name, rate) for name in ARMS if name in wanted for rate in rates):
        for seed in range(options.seeds):
            if (name, rate, seed) in found:
                continue
            if seed not in trials:
                with tempfile.TemporaryDirectory(prefix="schedules-") as folder:
                    trials[seed] = Trial(*write_rows(Path(folder), seed), seed)
            found[name, rate, seed] = result = measure(trials[seed], ARMS[name], rate)
            print(f"{name}, rate {rate}, seed {seed}: {result}", flush=True)
            if options.results is not None:
                with options.results.open("a") as file:
                    file.write(json.dumps({"arm": name, "rate": rate, "seed": seed, "result": result}) + "\n")
    figures: dict[str, float] = {}
    for group in groups:
        figures |= report(group, found, rates, options.seeds)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def report(group: str, found: Mapping[Case, Mapping[str, float]], rates: Sequence[float], seeds: int) -> dict[str, float]:
    """Print a table, each arm at its best rate, with the difference from the group's first arm seed by seed; return its means by name."""
    print(f"\n{group:40} {'rate':>7} {'loss':>18} {'against the first':>18} {'steps':>6} {'visits':>6} {'rounds':>6}")
    figures: dict[str, float] = {}
    first: list[float] = []
    for name in GROUPS[group]:
        losses, rate = min(
            (([found[name, rate, seed]["loss"] for seed in range(seeds)], rate) for rate in rates),
            key=lambda pair: statistics.mean(pair[0]),
        )
        first = first or losses
        apart = [loss - one for loss, one in zip(losses, first, strict=True)]
        means = [statistics.mean(found[name, rate, seed][key] for seed in range(seeds)) for key in ("steps", "visits", "rounds")]
        print(f"{name:40} {rate:7.4f} {_pm(losses)} {_pm(apart, '+')} {means[0]:6.0f} {means[1]:6.1f} {means[2]:6.1f}")
        figures[name] = statistics.mean(losses)
    return figures


def _pm(values: Sequence[float], sign: str = "") -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}9.4f} ± {spread:.4f}"


if __name__ == "__main__":
    main()
