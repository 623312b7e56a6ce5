"""How a data file is to be read: what its owner may say of it, in agent.toml or in the run file."""

import codecs
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

Format = Literal["csv", "jsonl", "parquet"]

NOT_OF_FILES = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "mbcs", "oem", "utf-7"})


def _encoding(name: str) -> str:
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError) as error:
        raise ValueError(f"unknown encoding {name!r}; write one like utf-8, utf-16, latin-1 or cp1252") from error
    if not getattr(found, "_is_text_encoding", True) or found.name.replace("_", "-") in NOT_OF_FILES:
        raise ValueError(f"{name!r} is no encoding of a text file; write one like utf-8, utf-16, latin-1 or cp1252")
    return found.name


def _separator(text: str) -> str:
    if text in '"\r\n\0':
        raise ValueError("a separator is one character between columns, as ; or a tab (\\t)")
    return text


Encoding = Annotated[str, StringConstraints(min_length=1, max_length=40), AfterValidator(_encoding)]
Separator = Annotated[str, StringConstraints(min_length=1, max_length=1), AfterValidator(_separator)]


class TableFormat(BaseModel):
    """What is said of a data file beside its path and columns; whatever is left out is found out or has a default."""

    format: Format | None = Field(None, description="csv, jsonl or parquet; default: by the file's suffix")
    separator: Separator | None = Field(
        None, description="what parts the columns of a CSV file; default: a tab in .tsv, else whichever of , ; tab and | the heading shows"
    )
    encoding: Encoding | None = Field(
        None, description="of a CSV or JSONL file, as latin-1 or cp1252; default: by its byte-order mark, else UTF-8"
    )
    quotes: bool = Field(True, description="false: quotation marks of a CSV file are text like any other, as in many .tsv files")
    first_label: Literal[0, 1] = Field(0, description="1: labels that are numbers count from 1; not for names that are numbers")

    def table_format(self) -> "TableFormat":
        """These settings alone, of an object that has others as well."""
        return TableFormat(**{name: getattr(self, name) for name in TableFormat.model_fields})
