"""README itself: links that lead somewhere. What it tells to type is run in `test_examples`."""

import re

import pytest
from pages import ROOT, Page

README = Page(ROOT / "README.md")


@pytest.mark.parametrize("page", [README, *map(Page, sorted((ROOT / "data").glob("*.md")))], ids=str)
def test_links_within_the_repository_lead_somewhere(page):
    """Each linked file and picture exists, and each anchor is that of a heading in it."""
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.prose)

    assert page is not README or len(links) > 3
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.path.parent / path if path else page.path
        assert target.exists(), link
        assert not anchor or anchor in Page(target).headings, link


def test_the_readme_leads_to_the_documentation():
    """A reader of README finds the pages of `docs`."""
    links = re.findall(r"\]\((docs/[\w/-]+\.md)", README.text)

    assert links
