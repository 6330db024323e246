"""Numbers as they stand in a report, compared with measured ones to the digits that are written."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER, _UNIT = r"[+\-−]?\d[\d,]*(?:\.\d+)?", r"(?:%|(?:percentage )?points?\b|per ?cent\b)"
NUMBER = re.compile(_NUMBER)
# "6.4 points", "0.3 to 1.2 points", and with an interval behind it, "6.4 points (0.3 to 1.2)". In "resnet20 to 28.6 %"
# and "ResNet-20 to 28.6 %" the first number belongs to a name.
WITH_UNIT = re.compile(
    rf"(?:(?<![\w.])(?<![A-Za-z]-)({_NUMBER}) *%? *to *)?"
    rf"({_NUMBER}) *{_UNIT}(?: *\(({_NUMBER}) *(?:{_UNIT} *)?to *({_NUMBER}))?"
)


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
    """The numbers that stand before % or points, with their intervals; a hyphen between two numbers is no sign."""
    found = WITH_UNIT.findall(_without_hyphens(text))
    return [_written(number) for numbers in found for number in numbers if number]


def _without_hyphens(text: str) -> str:
    return re.sub(r"(?<=\d)[-–](?=\d)", " ", text)


def _written(text: str) -> Written:
    plain = text.replace(",", "").replace("−", "-")
    return Written(text, float(plain), len(plain.partition(".")[2]), plain[0] in "+-")
