"""Colours, line styles and markers of kdlib's figures: those of the course, where a colour has one meaning."""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    """How one network is drawn; the line style and the marker say without colour what the colour says."""

    colour: str
    linestyle: str
    marker: str


TEACHER = Look("#009E73", "-.", "^")
BASELINE = Look("#D55E00", "--", "s")
DISTILLED = Look("#0072B2", "-", "o")
GREY = "#6E6E6E"  # of what is no network

# Of no meaning; also with a colour-blind eye they differ from the teacher's, the baseline's and each other, and
# their lightness differs in print.
VIOLET, BROWN, LILAC, WINE, SLATE = "#332288", "#4F3A1B", "#9683EC", "#882255", "#5A6F8C"
COLOURS = (VIOLET, LILAC, BROWN, WINE, SLATE)
MARKERS = ("D", "v", "P", "X", "<", ">", "p")


def other(number: int) -> Look:
    """The look of the network of this number, from 0 on, among those that have no role; the first 35 differ."""
    return Look(COLOURS[number % len(COLOURS)], "-", MARKERS[number % len(MARKERS)])
