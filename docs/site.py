"""What `mkdocs` needs beyond docs/ to make a site of the pages as they are: pages and files from the top of the checkout, and links to them.

Pages link as a repository shows them, relative to their own place. Here those links are turned to where the same thing stands in the site.
"""

import os.path
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
"""At the top of the checkout → in the site"""
FILES = ("LICENSE", *(f"deploy/{path.name}" for path in sorted((ROOT / "deploy").iterdir()) if path.is_file()))
"""Shown as they are"""
SOURCES = ("tests/", "benchmarks/", "examples/", "coordinator/", "agent/", "shared/", "migrations/")
"""What is only in the checkout: a link to it becomes plain text"""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def place(source: str) -> str:
    """Where a file of the checkout stands in the site."""
    return PAGES.get(source, source.removeprefix("docs/"))


def turned(text: str, source: str) -> str:
    """The page with links that lead to the same things in the site. `source`: its place in the checkout."""
    here = posixpath.dirname(place(source)) or "."

    def turn(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, mark, anchor = target.partition("#")
        meant = os.path.normpath(posixpath.join(posixpath.dirname(source), path))
        if f"{meant}/".startswith(SOURCES) or meant == "docs/decisions":
            return words
        return f"{picture}[{words}]({posixpath.relpath(place(meant), here)}{mark}{anchor})"

    return LINK.sub(turn, text)


def slug(heading: str, separator: str) -> str:
    """The anchor of a heading, as repositories make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_config(config: Any) -> Any:
    config["mdx_configs"].setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    for source in FILES:
        files.append(File.generated(config, source, content=(ROOT / source).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    sources = {name: source for source, name in PAGES.items()}
    uri = page.file.src_uri
    return turned(markdown, sources.get(uri, f"docs/{uri}"))
