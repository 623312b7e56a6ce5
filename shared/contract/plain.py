"""Makes text of others plain: what steers a terminal, or turns the order of its characters around, is taken out."""

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator

SEQUENCES = re.compile(
    r"(?:\x1b\]|\x9d)[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # operating system commands: title, clipboard, links
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c\n]*(?:\x1b\\|\x9c)"  # device control, private messages
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # cursor, colours, erasing
    r"|\x1b[ -/]+[0-~]|\x1b[0-Z\\-~]"
)
BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
KEPT = frozenset("\n\t")


def plain(text: str) -> str:
    """`text` without escape sequences and marks of direction; what is left of control characters and half characters is shown as �.

    Line breaks and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(_shown(c) for c in SEQUENCES.sub("", text) if c not in BIDIRECTIONAL)


def one_line(text: object) -> str:
    """The same on one line: whoever reads a list must not take half an entry for the next one."""
    return " ".join(plain(str(text)).split())


def _shown(character: str) -> str:
    if character in KEPT or character.isprintable():
        return character
    return (
        " "
        if character in "\u2028\u2029"
        else "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(character) in ("Cc", "Cs")
        else character
    )


PlainText = Annotated[str, AfterValidator(plain)]
"""What people read. A message is worth more than its control characters, of which PostgreSQL could not store each."""
