"""What the documents say that can be looked up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from phi_edge.image.crops import CROP_SIZE, auto_crops, count_tokens, padded_size

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(document: Path) -> set[str]:
    """The headings of a document, as links name them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_what_images_take() -> None:
    """The table of `docs/migrate.md`."""
    text = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
    cells = r"\|([^|]+)" * 4
    rows = re.findall(rf"^\| (\d+) x (\d+)[^|]*{cells}\|$", text, re.MULTILINE)
    assert len(rows) == 10
    for row in rows:
        width, height, *said = (int(cell.replace(",", "")) for cell in row)
        found = []
        for most in (auto_crops(width, height, num_images=1), 4):
            padded = padded_size(width, height, most)
            found += [padded[0] * padded[1] // CROP_SIZE**2, count_tokens(padded)]
        assert found == said
