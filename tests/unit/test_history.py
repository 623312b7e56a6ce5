"""The history of blocks: what a version is made of, which was the present one at a time, and how far back it is kept."""

from collections.abc import Iterable, Sequence

from fedcybgd.coordinator.domain.history import VersionFacts, VersionOrigin, lineage, to_keep

B, A, R = VersionOrigin.BASE, VersionOrigin.APPLIED, VersionOrigin.RESTORED


def history(*rows: tuple[VersionOrigin, int | None, int | None], exact: Sequence[int] = (0,), block: str = "x") -> dict[int, VersionFacts]:
    """Of (origin, parent, round), from version 0 on."""
    return {
        version: VersionFacts(block, version, origin, parent, round, version in exact)
        for version, (origin, parent, round) in enumerate(rows)
    }


def after_rounds(line: Iterable[VersionFacts], rounds: int) -> VersionFacts | None:
    """Of a lineage, the version that was the present one after so many rounds. None: nothing is known of that time."""
    return next((facts for facts in line if facts.round is None or facts.round < rounds), None)


STRAIGHT = history((B, None, None), (A, 0, 0), (A, 1, 2), (A, 2, 4))
UNDONE = history((B, None, None), (A, 0, 0), (A, 1, 2), (R, 1, None), (A, 3, 2), (A, 4, 4))


def test_a_lineage_leaves_out_what_was_undone() -> None:
    assert [f.version for f in lineage(STRAIGHT, 3)] == [3, 2, 1, 0]
    assert [f.version for f in lineage(UNDONE, 5)] == [5, 4, 1, 0]
    assert [f.version for f in lineage(UNDONE, 2)] == [2, 1, 0], "what was before is known as it was"
    assert [f.version for f in lineage(UNDONE, 3)] == [1, 0], "it has only the bytes of another"


def test_a_history_with_a_gap_or_that_leads_forward_ends_there() -> None:
    broken = {version: facts for version, facts in STRAIGHT.items() if version != 1}
    assert [f.version for f in lineage(broken, 3)] == [3, 2]
    assert [f.version for f in lineage(history((B, 1, None), (A, 0, 0)), 1)] == [1, 0]


def test_the_present_version_of_a_time() -> None:
    line = lineage(UNDONE, 5)
    found = [after_rounds(line, rounds) for rounds in range(6)]
    assert [f.version for f in found if f] == [0, 1, 1, 4, 4, 5]
    began_late = lineage(history((VersionOrigin.FOUND, None, 3), (A, 0, 4)), 1)
    assert [f and f.version for f in (after_rounds(began_late, 3), after_rounds(began_late, 4), after_rounds(began_late, 5))] == [
        None,
        0,
        1,
    ]


def test_deltas_of_so_many_rounds_are_kept_and_models_as_far_apart() -> None:
    """Played round by round with one block that each round changes, and one that changes once."""
    for rounds in (0, 1, 2, 3, 5):
        exact, kept = {("x", 0), ("y", 0)}, {("x", 0), ("y", 0)}
        for done in range(1, 20):
            kept |= {("x", done)} | ({("y", 1)} if done == 4 else set())
            rows = {
                "x": [VersionFacts("x", v, A if v else B, v - 1 if v else None, v - 1 if v else None, ("x", v) in exact) for v in range(done + 1)],
                "y": [VersionFacts("y", 0, B, None, None, ("y", 0) in exact)] + ([VersionFacts("y", 1, A, 0, 3, ("y", 1) in exact)] if done >= 4 else []),
            }  # fmt: skip
            lines = {name: lineage({f.version: f for f in of if (name, f.version) in kept}, of[-1].version) for name, of in rows.items()}
            keep = to_keep(lines, done, rounds)
            exact, kept = set(keep.exact), set(keep.kept)
            assert exact <= kept
            for back in range(min(rounds, done) + 1):  # there is a way to every one of the last rounds
                for name, line in lines.items():
                    wanted = after_rounds([f for f in line if (name, f.version) in kept], done - back)
                    assert wanted is not None, (rounds, done, back)
                    way = [f for f in line if f.version <= wanted.version and (name, f.version) in kept]
                    assert any((name, f.version) in exact for f in way), (rounds, done, back)
            assert len([v for _, v in kept if _ == "x"]) <= 2 * max(rounds, 1) + 1
            assert len([v for _, v in exact if _ == "x"]) <= 3
