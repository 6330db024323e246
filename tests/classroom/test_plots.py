"""Figures: one look, nothing global, no figure without labels and a text for those who cannot see it."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from kdlib.classroom import plots

ROLES = (plots.TEACHER, plots.STUDENT, plots.DISTILLED, plots.NEUTRAL, plots.FIRST, plots.SECOND, plots.THIRD)
OKABE_ITO = {"#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict, dict]]:
    """What a notebook would be given to display."""
    IPython = pytest.importorskip("IPython")
    calls: list[tuple[dict, dict]] = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, raw: calls.append((data, metadata)))
    return calls


def labelled() -> tuple[Any, Any]:
    fig, axes = plots.figure()
    axes.plot([1, 2], [3, 4], **plots.TEACHER.line())
    axes.set(xlabel="epoch", ylabel="loss (nats)")
    return fig, axes


def test_importing_the_plots_and_explorers_loads_neither_matplotlib_nor_ipywidgets() -> None:
    code = "import sys; from kdlib.classroom import plots, explorers; "
    code += "print([name for name in ('matplotlib', 'ipywidgets', 'IPython', 'scipy') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_pyplot_is_never_loaded() -> None:
    code = "import sys; from kdlib.classroom import plots; fig, axes = plots.figure(); plots.png(fig); "
    code += "print('matplotlib.pyplot' in sys.modules)"
    environment = {**os.environ, "MPLBACKEND": "agg"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "False"


# Roles.


def test_each_role_differs_from_every_other_in_colour_line_and_marker() -> None:
    for look in ("colour", "marker", "label"):
        assert len({getattr(role, look) for role in ROLES}) == len(ROLES), look
    students = (plots.TEACHER, plots.STUDENT, plots.DISTILLED)
    assert len({role.dash for role in students}) == len({role.hatch for role in students}) == 3
    assert {role.colour for role in ROLES} - {plots.NEUTRAL.colour} == OKABE_ITO


def test_the_students_look_as_in_the_picture_that_kdlib_distill_draws() -> None:
    from kdlib import distill

    source = Path(distill.__file__).read_text()
    for role, name in ((plots.DISTILLED, "run"), (plots.STUDENT, "baseline")):
        assert f'({name}, "{role.colour}", "{role.dash}", "{role.marker}")' in source


def test_a_role_gives_arguments_and_takes_another_label() -> None:
    fig, axes = plots.figure()
    (line,) = axes.plot([1, 2], [1, 2], **plots.STUDENT.line("ResNet-8", linewidth=1))
    assert (line.get_color(), line.get_linestyle(), line.get_marker()) == ("#D55E00", "--", "s")
    assert (line.get_label(), line.get_linewidth()) == ("ResNet-8", 1)
    bars = axes.bar([1], [1], **plots.DISTILLED.bar())
    assert bars[0].get_facecolor()[:3] == to_rgb("#0072B2")
    assert (bars[0].get_hatch(), bars.get_label()) == ("..", "distilled")


# Figures.


def test_figures_leave_matplotlibs_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    fig, axes = labelled()
    plots.png(fig)
    assert dict(matplotlib.rcParams) == before


def test_figures_do_not_depend_on_the_readers_settings() -> None:
    def drawn() -> bytes:
        fig, axes = labelled()
        plots.legend(axes)
        return plots.png(fig)

    plain = drawn()
    with matplotlib.rc_context({"figure.facecolor": "black", "text.color": "white", "font.size": 20}):
        assert drawn() == plain
    assert drawn() == plain


def test_figure_gives_one_axes_or_an_array() -> None:
    fig, axes = plots.figure()
    assert fig.axes == [axes]
    assert fig.get_size_inches().tolist() == [7.0, 3.4]
    fig, grid = plots.figure(9, 4, rows=2, columns=3, sharex=True)
    assert grid.shape == (2, 3)


def test_the_png_is_twice_as_fine_as_it_is_shown() -> None:
    fig, _ = labelled()
    assert Image.open(io.BytesIO(plots.png(fig))).size == (1260, 612)


def test_few_colours_keep_the_picture_in_half_of_the_bytes() -> None:
    fig, axes = labelled()
    axes.imshow(torch.rand(12, 12, generator=torch.Generator().manual_seed(0)).numpy(), aspect="auto")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=2 * plots.DPI)
    many, few = buffer.getvalue(), plots.few_colours(buffer.getvalue())
    before, after = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) for data in (many, few))
    assert Image.open(io.BytesIO(few)).mode == "P"
    assert np.abs(before - after).mean() < 0.1  # of 255
    assert np.abs(before - after).max() <= 48
    assert after[0, 0].tolist() == [255, 255, 255]  # white like the page around it
    assert len(few) < 0.6 * len(many)


# show.


def test_show_gives_the_picture_with_its_alt_text(shown: list[tuple[dict, dict]]) -> None:
    fig, _ = labelled()
    plots.show(fig, alt="  The loss rises\n from 3 to 4 nats. ")
    ((data, metadata),) = shown
    text = "The loss rises from 3 to 4 nats."
    assert data.keys() == {"image/png", "text/plain"}
    assert data["text/plain"] == text
    assert metadata == {"image/png": {"alt": text, "width": 630}}
    assert base64.b64decode(data["image/png"]) == plots.png(fig)
    json.dumps(data)


def test_show_prints_the_text_where_there_is_no_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("IPython")
    fig, _ = labelled()
    plots.show(fig, alt="The loss rises.")
    assert capsys.readouterr().out == "The loss rises.\n"


@pytest.mark.parametrize("alt", ["", "  \n", None])
def test_show_refuses_a_figure_without_text(alt: Any, shown: list[tuple[dict, dict]]) -> None:
    fig, _ = labelled()
    with pytest.raises(ValueError, match="no alt text. Say in a sentence"):
        plots.show(fig, alt=alt)
    assert not shown


@pytest.mark.parametrize("side", ["x", "y"])
def test_show_names_the_axis_that_has_no_label(side: str, shown: list[tuple[dict, dict]]) -> None:
    fig, axes = labelled()
    axes.set(**{f"{side}label": " "})
    with pytest.raises(ValueError, match=f"The {side} axis of plot 1 has no label.*axes.set_{side}label"):
        plots.show(fig, alt="A line.")
    assert not shown


def test_show_names_the_plot_that_has_no_label(shown: list[tuple[dict, dict]]) -> None:
    fig, (left, right) = plots.figure(columns=2)
    left.set(xlabel="epoch", ylabel="loss (nats)")
    right.set(xlabel="epoch")
    with pytest.raises(ValueError, match="The y axis of plot 2"):
        plots.show(fig, alt="Two plots.")


def test_show_takes_axes_that_need_no_label(shown: list[tuple[dict, dict]]) -> None:
    fig, grid = plots.figure(rows=2, columns=2, sharex=True, sharey=True)
    grid[0, 0].set(ylabel="loss (nats)")
    grid[1, 0].set(xlabel="epoch", ylabel="loss (nats)")
    grid[1, 1].set(xlabel="epoch")
    plots.show(fig, alt="Shared axes.")
    fig, axes = plots.figure()
    axes.axis("off")
    plots.show(fig, alt="A picture.")
    fig, axes = plots.figure(columns=2)
    fig.supxlabel("epoch")
    fig.supylabel("loss (nats)")
    plots.show(fig, alt="Common labels.")
    fig, axes = plots.figure()
    axes.set(xlabel="probability", yticks=[])
    plots.show(fig, alt="No numbers at one side.")
    assert len(shown) == 4


def test_show_refuses_an_empty_figure(shown: list[tuple[dict, dict]]) -> None:
    with pytest.raises(ValueError, match="empty"):
        plots.show(plots.blank(3, 2), alt="Nothing.")


# What lessons draw.


def test_probability_bars_show_the_probabilities_and_are_labelled(shown: list[tuple[dict, dict]]) -> None:
    fig, axes = plots.figure()
    rows = {"T = 1": torch.tensor([0.9, 0.1, 0.0]), "T = 4": [0.5, 0.3, 0.2]}
    bars = plots.probability_bars(axes, ("Shirt", "Coat", "Bag"), rows)
    assert [patch.get_width() for patch in bars["T = 4"]] == [0.5, 0.3, 0.2]
    assert [patch.get_width() for patch in bars["T = 1"]] == pytest.approx([0.9, 0.1, 0.0])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["Shirt", "Coat", "Bag"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # first class on top
    first, second = (patches[0] for patches in bars.values())
    assert first.get_y() + first.get_height() == pytest.approx(second.get_y())  # beside each other
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["T = 1", "T = 4"]
    plots.show(fig, alt="Bars.")


def test_one_row_of_bars_needs_no_legend() -> None:
    _, axes = plots.figure()
    plots.probability_bars(axes, ("a", "b"), {"p": [0.4, 0.6]})
    assert axes.get_legend() is None


def test_class_matrix_has_names_numbers_and_a_colour_bar(shown: list[tuple[dict, dict]]) -> None:
    fig, axes = plots.figure(7, 6)
    matrix = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.9, 0.0], [0.0, 0.25, 0.75]])
    plots.class_matrix(axes, matrix, ("Shirt", "Coat", "Bag"), label="mean probability")
    assert [text.get_text() for text in axes.texts][:3] == ["0.80", "0.20", "0.00"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["Shirt", "Coat", "Bag"]
    assert axes.get_xlabel() == "answered class"
    assert fig.axes[1].get_ylabel() == "mean probability"
    dark, light = axes.texts[2], axes.texts[4]
    assert (dark.get_color(), light.get_color()) == ("white", plots.INK)  # readable on its cell
    plots.show(fig, alt="A matrix.")


def test_class_matrix_refuses_names_that_do_not_fit() -> None:
    _, axes = plots.figure()
    with pytest.raises(ValueError, match="2 classes need a matrix of 2 x 2"):
        plots.class_matrix(axes, np.eye(3), ("a", "b"), label="x")


def test_pictures_are_laid_out_in_rows(shown: list[tuple[dict, dict]]) -> None:
    images = torch.arange(7 * 16, dtype=torch.uint8).reshape(7, 1, 4, 4)
    fig = plots.pictures(images, [f"number {i}" for i in range(7)], columns=4)
    assert len(fig.axes) == 8
    assert fig.axes[6].get_title() == "number 6"
    assert (fig.axes[6].images[0].get_array() == images[6, 0].numpy()).all()
    assert not fig.axes[7].images
    plots.show(fig, alt="Seven pictures.")
    assert len(plots.pictures(torch.randn(2, 4, 4)).axes) == 2


@pytest.mark.parametrize(("images", "captions"), [(np.zeros((0, 4, 4)), ()), (np.zeros((2, 4, 4)), ("one",))])
def test_pictures_refuses_what_does_not_fit(images: Any, captions: Any) -> None:
    with pytest.raises(ValueError, match="a caption for each or for none"):
        plots.pictures(images, captions)


def test_loglog_draws_lines_in_roles(shown: list[tuple[dict, dict]]) -> None:
    fig, axes = plots.figure()
    x = 2.0 ** np.arange(20)
    series = {"with T²": x**0, "without": torch.from_numpy(x**-2)}
    lines = plots.loglog(axes, x, series, xlabel="temperature T (no unit)", ylabel="length of the gradient (1)")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert lines["without"].get_color() == plots.SECOND.colour
    assert lines["without"].get_ydata()[1] == 0.25
    plots.show(fig, alt="Two lines.")
