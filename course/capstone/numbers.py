"""Numbers as they stand in a report, compared with measured ones to the digits that are written."""

from __future__ import annotations

import re
from dataclasses import dataclass

NUMBER = re.compile(r"[+\-−]?\d[\d,]*(?:\.\d+)?")
WITH_UNIT = re.compile(r"([+\-−]?\d[\d,]*(?:\.\d+)?) *(%|points?\b|per cent\b)")


@dataclass(frozen=True)
class Written:
    """A number as it is written. decimals: how many digits follow the point. signed: whether a sign stands before."""

    text: str
    value: float
    decimals: int
    signed: bool

    def agrees(self, measured: float) -> bool:
        """Whether it is the measured number, rounded to the digits that are written."""
        return abs(self.value - measured) <= 0.5 * 10**-self.decimals + 1e-9


def first_number(text: str) -> Written | None:
    """The first number in a text, None if there is none."""
    found = NUMBER.search(text)
    return None if found is None else _written(found[0])


def all_numbers(text: str) -> list[Written]:
    """All numbers in a text; a hyphen between two numbers is no sign."""
    return [_written(found) for found in NUMBER.findall(_without_hyphens(text))]


def with_units(text: str) -> list[Written]:
    """The numbers that stand before % or points; a hyphen between two numbers is no sign."""
    return [_written(number) for number, _ in WITH_UNIT.findall(_without_hyphens(text))]


def _without_hyphens(text: str) -> str:
    return re.sub(r"(?<=\d)[-–](?=\d)", " ", text)


def _written(text: str) -> Written:
    plain = text.replace(",", "").replace("−", "-")
    return Written(text, float(plain), len(plain.partition(".")[2]), plain[0] in "+-")
