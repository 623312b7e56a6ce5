"""How much disk an agent and a coordinator take, with all that they need.

    python -m benchmarks.install_size [--json FILE]

What a wheel asks for is followed from package to package by the metadata of the environment at hand, and the files that pip wrote down of
each (RECORD) are added up, with the compiled files that it made of them. Only what is installed here counts: of torch the build that is.
"""

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.report import arguments, finish

OURS = "fedcybgd"
TARGETS: dict[str, tuple[str, ...]] = {"agent": (), "agent with images": ("parquet", "images"), "coordinator": ("coordinator",)}
"""What is installed → the extras that are asked for"""
ACCELERATOR = re.compile(r"torch$|triton$|nvidia-|cuda-")
ROOT = Path(__file__).parents[1]


def needed(name: str, extras: Iterable[str]) -> set[str]:
    """The packages that one asks for here, itself included, by their canonical names."""
    found: dict[str, set[str]] = {}
    waiting = [(canonicalize_name(name), frozenset(extras))]
    while waiting:
        package, wanted = waiting.pop()
        if package in found and wanted <= found[package]:
            continue
        found.setdefault(package, set()).update(wanted)
        for line in distribution(package).requires or ():
            asked = Requirement(line)
            if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                waiting.append((canonicalize_name(asked.name), frozenset(asked.extras)))
    return set(found)


def size(package: str) -> int:
    """Bytes of the files of an installed package; of ourselves what a wheel has, for a checkout is installed by a link."""
    if package == OURS:
        return sum(path.stat().st_size for folder in (ROOT / OURS, *(ROOT / OURS).iterdir()) for path in files_under(folder))
    installed = distribution(package)
    paths = (Path(str(installed.locate_file(file))) for file in installed.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


def files_under(folder: Path) -> Iterator[Path]:
    """Where it is a link, of the folder that it leads to."""
    return (path for path in folder.resolve().rglob("*") if path.is_file())


def main() -> None:
    options = arguments(__doc__).parse_args()
    figures: dict[str, float] = {}
    for target, extras in TARGETS.items():
        sizes = {package: size(package) / 1e6 for package in needed(OURS, extras)}
        torch = sum(mb for package, mb in sizes.items() if ACCELERATOR.match(package))
        others = sorted(((mb, package) for package, mb in sizes.items() if not ACCELERATOR.match(package)), reverse=True)
        print(f"{target}: {len(sizes)} packages; largest beside torch: " + ", ".join(f"{package} {mb:.0f}" for mb, package in others[:6]))
        figures |= {f"{target}_MB": sum(sizes.values()), f"{target}_torch_MB": torch}
    print(f"\ntorch {distribution('torch').version}")
    finish(figures, {}, options.json)


if __name__ == "__main__":
    main()
