"""How many bytes something has, and how many there are of it, for people."""


def in_units(number: float | None) -> str:
    """In the unit that fits, so that nothing that is there reads as 0."""
    if number is None:
        return "–"
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= least:
            return f"{number / least:,.1f} {unit}"
    return f"{number:.0f} B"


def counted(number: int, what: str) -> str:
    """As in 1 round, 1000 rounds, 12,000 rounds."""
    return f"{number if abs(number) < 10_000 else f'{number:,}'} {what}{'' if number == 1 else 's'}"
