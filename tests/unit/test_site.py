"""The pages as a site: every page is in one of its four parts, and no link leads out of it. `make docs-site` builds it, with the programs that it takes."""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from docs import site
from tests.test_docs import DOCS, ROOT, anchors

CONFIGURED = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
SOURCES = [*site.PAGES, *(str(path.relative_to(ROOT)) for path in sorted(DOCS.rglob("*.md")))]
IN_SITE = {*map(site.place, SOURCES), *site.FILES, *(path.name for path in DOCS.iterdir() if path.suffix in (".png", ".svg"))}


def navigated(entries: Any) -> Iterator[str]:
    """Every page of a part of the navigation."""
    for entry in entries:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            yield from navigated(target) if isinstance(target, list) else [target]


def test_every_page_is_in_one_of_four_parts() -> None:
    assert [next(iter(part)) for part in CONFIGURED["nav"]] == ["Tutorial", "How-to", "Reference", "Explanation"]
    assert Counter(navigated(CONFIGURED["nav"])) == Counter(map(site.place, SOURCES))


@pytest.mark.parametrize("source", SOURCES)
def test_links_lead_to_what_is_in_the_site(source: str) -> None:
    here = posixpath.dirname(site.place(source))
    links = [
        target for _, _, target in site.LINK.findall(site.turned((ROOT / source).read_text(), source)) if not re.match(r"[a-z]+:|#", target)
    ]
    assert [link for link in links if posixpath.normpath(posixpath.join(here, link.partition("#")[0])) not in IN_SITE] == []


def test_headings_have_the_anchors_that_links_name() -> None:
    for source in SOURCES:
        headings = re.findall(r"^#+ (.*)$", (ROOT / source).read_text(), re.MULTILINE)
        assert {site.slug(heading, "-") for heading in headings} == anchors(ROOT / source)


def test_nothing_is_loaded_from_elsewhere_by_its_readers() -> None:
    assert CONFIGURED["theme"]["font"] is False
    assert CONFIGURED["plugins"] == ["search"], "the one for reading from a disk loads a script"
    assert not [key for key in CONFIGURED if key.startswith("extra")]
