"""Which of the owner's rows a run may use: those that agent.toml ties to its name, and no others."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from fedcybgd.agent.errors import AgentError
from fedcybgd.agent.messages import DataSource
from fedcybgd.agent.settings import Config, DataSection, Home


class NotConsented(AgentError):
    """The owner has tied no data to this run, or not said which."""

    code = "not_consented"


class Ambiguous(NotConsented):
    """Several data sets could be meant."""


def chosen(sets: Mapping[str, DataSection], run: str) -> str:
    """The name of the data set that a run may use. A name that is written out goes before a pattern."""
    matching = [name for name, data in sets.items() if run in data.runs]
    matching = matching or [name for name, data in sets.items() if any(fnmatchcase(run, pattern) for pattern in data.runs)]
    if not matching:
        where = f"[data.{next(iter(sets))}]" if len(sets) == 1 else "one of the data sets"
        raise NotConsented(f'no data may be used for run {run}; if they may, add "{run}" to `runs` of {where} in agent.toml')
    if len(matching) > 1:
        raise Ambiguous(
            f"the patterns of several data sets ({', '.join(matching)}) match run {run}; write its name into `runs` of the one that is meant"
        )
    return matching[0]


def source_of(home: Home, data: DataSection) -> DataSource:
    images = home.images_path(data)
    return DataSource(
        path=str(home.data_path(data)), columns=data.columns, images=None if images is None else str(images), tell_labels=data.tell_labels,
        **dict(data.table_format()),
    )  # fmt: skip


def source_for(home: Home, config: Config, run: str) -> DataSource:
    """Where the rows are that a run may use. Raises `NotConsented`."""
    return source_of(home, config.data[chosen(config.data, run)])


def patterns(config: Config) -> list[str]:
    """All names and patterns of runs that some data are tied to."""
    return sorted({pattern for data in config.data.values() for pattern in data.runs})
