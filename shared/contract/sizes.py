"""How many bytes something has, for people."""


def in_units(number: float | None) -> str:
    """In the unit that fits, so that nothing that is there reads as 0."""
    if number is None:
        return "–"
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= least:
            return f"{number / least:,.1f} {unit}"
    return f"{number:.0f} B"
