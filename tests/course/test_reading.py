"""The map of what to read next: real references, each with a reason, and known to the lessons that it names."""

from __future__ import annotations

import re

import pytest

from course import notebooks

TEXT = (notebooks.NOTEBOOKS_DIR / "what_to_read_next.md").read_text(encoding="utf-8")
ITEMS = [" ".join(item.split()) for item in re.findall(r"^- (.+(?:\n +.+)*)", TEXT, re.MULTILINE)]
ARXIV = re.compile(r"\[arXiv:(\d{4}\.\d{5}|\d{4}\.\d{4})\]\(https://arxiv\.org/abs/\1\)")


def lesson(number: str) -> str:
    return next(path for path in notebooks.list_notebooks() if path.stem.startswith(f"{number}_")).read_text("utf-8")


def test_it_is_grouped_by_questions() -> None:
    headings = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    assert len(headings) >= 8
    assert all(heading.endswith("?") for heading in headings)
    assert len(TEXT.split()) < 1_200  # one page


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item[2:30])
def test_an_item_has_a_title_a_year_and_a_reason(item: str) -> None:
    titles = re.findall(r"\*\*(.+?)\*\*", item)
    assert titles
    assert len(re.findall(r"\b(?:19|20)\d\d\b", re.sub(r"arXiv:\S+", "", item))) >= len(titles)
    reason = re.split(r"\)\)?\. ", re.sub(r" \[[\d, ]+\]$", "", item))[-1]
    assert 5 <= len(reason.split()) <= 45
    assert reason.endswith((".", "?"))


@pytest.mark.parametrize(
    "item", [item for item in ITEMS if re.search(r"\[\d\d[\d, ]*\]$", item)], ids=lambda i: i[2:30]
)
def test_the_lessons_that_an_item_names_know_it(item: str) -> None:
    numbers = re.findall(r"\d\d", re.search(r"\[([\d, ]+)\]$", item)[1])
    papers = [*ARXIV.findall(item), *re.findall(r"\*\*(\w+)", item)]
    for number in numbers:
        assert any(paper in lesson(number) for paper in papers), number


def test_every_arxiv_number_is_linked_to_itself_and_stands_once() -> None:
    linked = ARXIV.findall(TEXT)
    assert len(linked) == len(re.findall(r"arXiv:", TEXT))
    assert len(linked) == len(set(linked))
