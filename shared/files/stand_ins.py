"""Recognises by its first bytes what lies in the place of a file: a pointer to it, a page that came instead, another format."""

import re

HEAD = 512
"""Bytes that are enough to tell"""
LFS = "a git-lfs pointer, not the file itself; fetch it with `git lfs pull`"
ANNEX = "a git-annex pointer, not the file itself; fetch it with `git annex get`"
LINK = "the text of a symbolic link, not the file that it leads to; download it again, or copy that file here"
PAGE = "a page of a web server, which came in the place of the file: perhaps it needs a login; download it again"
PACKED = "packed with gzip"
MARK = b"\xef\xbb\xbf"
POINTERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"version https?://(git-lfs\.github\.com|hawser\.github\.com|git-media\.io)/"), LFS),
    (re.compile(rb"(/|\S{0,200}\.git/)annex/objects/"), ANNEX),
    (re.compile(rb"(\.\./){1,8}(blobs/)[0-9a-f]{8,64}\s*\Z"), LINK),
    (re.compile(rb"\s*<(!doctype\s+html|html|head|body|\?xml)[\s>]", re.IGNORECASE), PAGE),
)
FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b\x08", PACKED),
    (b"\x28\xb5\x2f\xfd", "packed with zstd"),
    (b"BZh", "packed with bzip2"),
    (b"\xfd7zXZ\x00", "packed with xz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"PK\x03\x04", "a zip archive, as pickles of torch and files of Office are"),
    (b"GGUF", "a GGUF file, made for llama.cpp"),
    (b"\x89HDF\r\n", "an HDF5 file, as TensorFlow writes"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"%PDF-", "a PDF file"),
    (b"\xd0\xcf\x11\xe0", "an old file of Office"),
)


def pointer(head: bytes) -> str | None:
    """What a file is, and what to do, that holds nothing of what it is called: no format begins so."""
    bare = head.removeprefix(MARK)
    return next((what for pattern, what in POINTERS if pattern.match(bare)), None)


def other_format(head: bytes) -> str | None:
    """Which format a file has by its beginning; numbers may begin so too, as the length of a safetensors header."""
    return next((what for begin, what in FORMATS if head.startswith(begin)), None)


def stand_in(head: bytes) -> str | None:
    """What a file is instead of what its reader has just failed at: a pointer, another format, zeros, or a short text."""
    if (found := pointer(head) or other_format(head)) is not None:
        return found
    if head and not head.strip(b"\0"):
        return "nothing but zeros: its download, or its copy, was not finished"
    text = head.decode("utf-8", errors="replace").strip()
    return f"text, which begins with {text[:60]!r}" if text and "\ufffd" not in text[:60] and text[:60].isprintable() else None
