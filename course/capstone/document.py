"""The report as its parts: front matter, sections, tables, lists and blocks of commands."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

FRONT_MATTER = ("title", "study", "student", "export", "cost")
SECTIONS = ("Question", "Data", "Method", "Results", "Cost", "Conclusion", "Limits", "Repeat")
PLACEHOLDER = "TODO"
LARGEST = 100_000  # characters of a report


@dataclass(frozen=True)
class Report:
    """A report that has all its parts.

    front: the front matter by name. heading: what stands before the first section. sections: their text by heading.
    """

    path: Path
    front: dict[str, str]
    heading: str
    sections: dict[str, str]

    def file(self, name: str) -> Path:
        """A file that the front matter names, as it is found from the folder of the report."""
        return self.path.parent / self.front[name]

    def bullets(self, section: str) -> dict[str, str]:
        """The items "- name: text" of a section, by name in small letters."""
        found = re.findall(r"^[-*] +([^:\n]+):[ \t]*(.*(?:\n[ \t]+\S.*)*)", self.sections[section], re.MULTILINE)
        return {name.strip().lower(): " ".join(text.split()) for name, text in found}

    def tables(self, section: str) -> list[list[dict[str, str]]]:
        """The tables of a section, each a list of rows by the names of the columns, in small letters."""
        blocks = re.findall(r"(?:^\|.*\|[ \t]*\n?)+", self.sections[section], re.MULTILINE)
        return [_rows(block) for block in blocks]

    def prose(self, section: str) -> str:
        """A section without its tables and blocks of code."""
        return re.sub(r"^\|.*$", "", without_code(self.sections[section]), flags=re.MULTILINE)

    def commands(self, section: str) -> list[str]:
        """The lines in the blocks of code of a section; a backslash at the end joins a line to the next."""
        blocks = re.findall(r"^```\w*\n(.*?)^```", self.sections[section], re.MULTILINE | re.DOTALL)
        joined = re.sub(r"\\\n\s*", " ", "\n".join(blocks))
        lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
        return [line for line in lines if line and not line.startswith("#")]

    def changed(self, section: str, old: str, new: str) -> Report:
        """The report with one text of a section for another; ValueError if it is not there."""
        if old not in self.sections[section]:
            raise ValueError(f"{old!r} is not in the section {section}.")
        return replace(self, sections={**self.sections, section: self.sections[section].replace(old, new)})

    @property
    def words(self) -> int:
        """The number of words, commands left out; bars, dashes and other signs that stand alone are none."""
        text = " ".join(without_code(section) for section in self.sections.values())
        return sum(any(map(str.isalnum, word)) for word in text.split())


def without_code(text: str) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def _rows(block: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.strip().splitlines()]
    head = [cell.lower() for cell in lines[0]]
    body = [cells for cells in lines[1:] if not all(re.fullmatch(r":?-+:?", cell) for cell in cells)]
    return [dict(zip(head, cells, strict=False)) for cells in body]


def read_report(path: str | Path) -> Report:
    """Read a report; ValueError if a part is missing, OSError if there is no such file."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a report" if path.is_dir() else "is no file"
        raise FileNotFoundError(f"{path} {what}. python -m course.capstone draft writes a report to begin with.")
    try:
        text = path.read_text(encoding="utf-8-sig")[:LARGEST].replace("\r\n", "\n")  # some editors begin with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8. Save it with this encoding.") from error
    opening = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if opening is None:
        raise ValueError(
            f"{path} has no front matter: it begins with a line ---, then lines such as 'study: runs/study/FILE.csv', "
            "then --- again. python -m course.capstone draft writes one."
        )
    pairs = (line.partition(":") for line in opening[1].splitlines() if line.strip())
    front = {name.strip().lower(): value.strip() for name, _, value in pairs}
    missing = [name for name in FRONT_MATTER if not front.get(name)]
    if missing:
        raise ValueError(f"The front matter of {path} does not say: {', '.join(missing)}.")
    heading, found = _split(text[opening.end() :])
    for name, count in Counter(name for name, _ in found).items():
        if count > 1:
            raise ValueError(f"{path} has the section ## {name} twice. Keep one.")
    sections = dict(found)
    absent = [name for name in SECTIONS if not sections.get(name, "").strip()]
    if absent:
        raise ValueError(
            f"{path} has no section {', '.join(f'## {name}' for name in absent)}, or nothing in it. A report has: "
            f"{', '.join(SECTIONS)}."
        )
    return Report(path, front, heading, sections)


def _split(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands before the first heading, and each heading with its text; "## " in a block of code is none."""
    without = re.sub(
        r"^```.*?^```", lambda block: re.sub(r"[^\n]", " ", block[0]), text, flags=re.MULTILINE | re.DOTALL
    )
    headings = list(re.finditer(r"^## +(.+?)[ \t]*$", without, flags=re.MULTILINE))
    ends = [*(one.start() for one in headings), len(text)]
    return text[: ends[0]], [(one[1], text[one.end() : end]) for one, end in zip(headings, ends[1:], strict=True)]
