"""Figures: colours with one meaning, nothing global, no figure without axis labels and alt text."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from test_explorers import contrast

from course import plots
from course.experiments import (
    claims_results,
    clinic,
    compression_results,
    logit_mistakes,
    search_results,
    several_results,
    teacher_results,
)
from course.plots import theme
from course.plots.diagram import PARTS
from kdlib import distill, looks, study

pytestmark = pytest.mark.slow  # it draws

OKABE_ITO = {"#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict, dict]]:
    """What a notebook would be given to display."""
    IPython = pytest.importorskip("IPython")
    calls: list[tuple[dict, dict]] = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())

    def display(data: dict, metadata: dict | None = None, raw: bool = False) -> None:
        assert raw
        calls.append((data, metadata or {}))

    monkeypatch.setattr("IPython.display.display", display)
    return calls


def labelled() -> tuple[Any, Any]:
    fig, axes = plots.figure()
    axes.plot([1, 2], [3, 4], **plots.TEACHER.line())
    axes.set(xlabel="epoch", ylabel="loss (nats)")
    return fig, axes


def test_importing_the_plots_and_explorers_loads_neither_matplotlib_nor_ipywidgets() -> None:
    code = "import sys; from course import plots, explorers; "
    code += "print([name for name in ('matplotlib', 'ipywidgets', 'IPython', 'scipy') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_pyplot_is_never_loaded() -> None:
    code = "import sys; from course import plots; fig, axes = plots.figure(); plots.png(fig); "
    code += "print('matplotlib.pyplot' in sys.modules)"
    environment = {**os.environ, "MPLBACKEND": "agg"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "False"


# Roles.


def test_each_role_differs_from_every_other_in_colour_and_marker() -> None:
    for attribute in ("colour", "marker", "label"):
        assert len({getattr(role, attribute) for role in plots.ROLES}) == len(plots.ROLES), attribute
    main = (plots.TEACHER, plots.BASELINE, plots.DISTILLED)
    assert len({role.linestyle for role in main}) == len({role.hatch for role in main}) == 3
    assert {role.colour for role in plots.ROLES} - {plots.NEUTRAL.colour, plots.INK} == OKABE_ITO
    assert plots.ALERT not in {role.colour for role in plots.ROLES}


def test_every_role_is_documented_where_it_is_defined() -> None:
    names = [name for name in plots.__all__ if getattr(plots, name) in plots.ROLES]
    assert len(names) == len(plots.ROLES)
    assert all(f"    {name} " in theme.__doc__ for name in (*names, "ALERT"))


def test_variants_keep_the_colour_and_differ_in_all_else() -> None:
    for role in plots.ROLES:
        variants = [role.variant(number) for number in range(8)]
        assert variants[0] == role
        assert {variant.colour for variant in variants} == {role.colour}
        assert len({(variant.linestyle, variant.marker) for variant in variants}) == 8
        assert variants[1].linestyle != role.linestyle
        assert variants[1].hatch != role.hatch
    hatches = [role.hatch for role in plots.ROLES if role.hatch]
    assert plots.TEACHER.variant(1).hatch not in hatches  # beside the bars of any other role
    fig, axes = plots.figure()
    (line,) = axes.plot([1, 2], [1, 2], **plots.TEACHER.variant(1).line())
    assert line.get_markerfacecolor() == "white"


def test_networks_are_drawn_in_the_role_of_their_name_and_others_as_distilled() -> None:
    roles = plots.roles_for(["teacher", "hard labels", "distilled", "FSP", "similarity"])
    assert [roles[name] for name in ("teacher", "hard labels", "distilled")] == [
        plots.TEACHER,
        plots.BASELINE,
        plots.DISTILLED,
    ]
    assert [roles["FSP"], roles["similarity"]] == [plots.DISTILLED.variant(1), plots.DISTILLED.variant(2)]
    assert plots.roles_for(["student"]) == {"student": plots.DISTILLED}


def test_the_students_look_as_in_the_figure_that_kdlib_distill_draws() -> None:
    def run(values: list[float]) -> Any:
        history = pd.DataFrame({"validation_accuracy": values, "validation_loss": values}, index=[1, 2])
        return SimpleNamespace(history=history)

    fig = distill.curves(run([0.5, 0.6]), baseline=run([0.4, 0.5]))
    drawn = {line.get_label(): line for line in fig.axes[0].lines}
    for role in (plots.DISTILLED, plots.BASELINE):
        line = drawn[role.label]
        look = (to_hex(line.get_color()).upper(), line.get_linestyle(), line.get_marker())
        assert look == (role.colour, role.linestyle, role.marker)


def test_the_looks_of_kdlib_are_those_of_the_roles_and_others_have_no_roles_colour() -> None:
    pairs = ((looks.TEACHER, plots.TEACHER), (looks.BASELINE, plots.BASELINE), (looks.DISTILLED, plots.DISTILLED))
    for look, role in pairs:
        assert look == (role.colour, role.linestyle, role.marker)
    assert plots.NEUTRAL.colour == looks.GREY
    others = [looks.other(number) for number in range(35)]
    assert len(set(others)) == 35
    assert len({look.colour for look in others[:5]}) == len({look.marker for look in others[:5]}) == 5
    assert not {look.colour for look in others} & {plots.ALERT, *(role.colour for role in plots.ROLES)}
    assert not {look.marker for look in others} & {role.marker for _, role in pairs}
    assert all(contrast(look.colour) >= 3 for look in others)


def test_a_roles_text_stands_out_from_white_and_stays_what_it_is() -> None:
    for role in plots.ROLES:
        assert contrast(role.ink) >= 4.5
        assert role.variant(1).ink == role.ink
    assert len({role.ink for role in plots.ROLES}) == len(plots.ROLES)
    assert plots.DISTILLED.ink == plots.DISTILLED.colour  # as it is dark enough


def test_a_line_without_markers_stands_out_from_white() -> None:
    for role in plots.ROLES:
        assert contrast(role.line(marker="")["color"]) >= 3
        assert role.line()["color"] == role.colour


def test_markers_stand_out_from_white() -> None:
    _, axes = plots.figure()
    for role in plots.ROLES:
        for look in (role, role.variant(1)):
            (line,) = axes.plot([1, 2], [1, 2], **look.line())
            assert max(contrast(line.get_markerfacecolor()), contrast(line.get_markeredgecolor())) >= 3, role.label


def test_a_role_gives_arguments_and_takes_another_label() -> None:
    fig, axes = plots.figure()
    (line,) = axes.plot([1, 2], [1, 2], **plots.BASELINE.line("ResNet-8", linewidth=1))
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


@pytest.fixture
def own_settings() -> Iterator[None]:
    """Whatever a test does to matplotlib's settings, others do not see it."""
    with matplotlib.rc_context():
        yield


@pytest.mark.usefixtures("own_settings")
def test_threads_that_draw_at_once_leave_matplotlibs_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    first_is_in, first_may_leave, second_is_in, second_may_leave = (threading.Event() for _ in range(4))

    def draw(is_in: threading.Event, may_leave: threading.Event) -> None:
        with plots.style():
            is_in.set()
            may_leave.wait(10)

    # The second enters before the first leaves, if it may, and leaves after it.
    first = threading.Thread(target=draw, args=(first_is_in, first_may_leave))
    second = threading.Thread(target=draw, args=(second_is_in, second_may_leave))
    first.start()
    assert first_is_in.wait(10)
    second.start()
    second_is_in.wait(0.2)
    first_may_leave.set()
    first.join(10)
    assert second_is_in.wait(10)
    second_may_leave.set()
    second.join(10)
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


def test_reduced_colours_keep_the_picture_in_half_of_the_bytes() -> None:
    fig, axes = labelled()
    axes.imshow(torch.rand(12, 12, generator=torch.Generator().manual_seed(0)).numpy(), aspect="auto")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=2 * plots.DPI)
    many, few = buffer.getvalue(), plots.reduce_colours(buffer.getvalue())
    before, after = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) for data in (many, few))
    assert Image.open(io.BytesIO(few)).mode == "P"
    assert np.abs(before - after).mean() < 0.1  # of 255
    assert np.abs(before - after).max() <= 16
    assert after[0, 0].tolist() == [255, 255, 255]  # white like the page around it
    assert len(few) < 0.6 * len(many)


def test_reduced_colours_keep_small_texts_and_colour_bars() -> None:
    fig, axes = plots.figure(9.4, 3.6, 1, 3)
    roles = (plots.TEACHER, plots.BASELINE, plots.DISTILLED)
    generator = torch.Generator().manual_seed(0)
    for ax, role in zip(axes, roles, strict=True):
        values = torch.eye(10) + (1 - torch.eye(10)) * (1.1 * torch.rand(10, 10, generator=generator) - 0.5)
        shown = ax.imshow(values.numpy(), vmin=-1, vmax=1)
        ax.set_title(role.label, color=role.ink, fontweight="bold")
    fig.colorbar(shown, ax=axes)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=2 * plots.DPI)
    many, few = buffer.getvalue(), plots.reduce_colours(buffer.getvalue())
    before, after = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) for data in (many, few))
    assert np.abs(before - after).max() <= 16
    for role in roles:
        places = (before == np.round(255 * np.array(to_rgb(role.ink)))).all(axis=2)
        assert places.any()
        assert (after[places] == before[places]).all()


def test_a_picture_of_few_colours_loses_none() -> None:
    colours = np.random.default_rng(0).integers(256, size=(256, 3), dtype=np.uint8)
    before = colours[np.random.default_rng(1).integers(256, size=(60, 80))]
    buffer = io.BytesIO()
    Image.fromarray(before).save(buffer, "png")
    after = np.asarray(Image.open(io.BytesIO(plots.reduce_colours(buffer.getvalue()))).convert("RGB"))
    assert np.array_equal(before, after)


# show.


def test_show_gives_the_picture_with_its_alt_text(shown: list[tuple[dict, dict]]) -> None:
    fig, _ = labelled()
    plots.show(fig, alt="  The loss rises\n from 3 to 4 nats. ")
    (data, metadata), _ = shown
    text = "The loss rises from 3 to 4 nats."
    assert data.keys() == {"image/png", "text/plain"}
    assert data["text/plain"] == text
    assert metadata == {"image/png": {"alt": text, "width": 630}}
    assert base64.b64decode(data["image/png"]) == plots.png(fig)
    json.dumps(shown)


def test_the_page_of_a_notebook_holds_the_alt_text(shown: list[tuple[dict, dict]]) -> None:
    """JupyterLab and nbconvert read of an image's metadata its size alone."""
    nbconvert, v4 = pytest.importorskip("nbconvert"), pytest.importorskip("nbformat.v4")
    fig, _ = labelled()
    plots.show(fig, alt="The loss is < 4 nats & rises.")
    notebook = v4.new_notebook(cells=[v4.new_code_cell("plots.show(fig)")])
    outputs = [v4.new_output("display_data", data, metadata=metadata) for data, metadata in shown]
    notebook.cells[0].outputs = outputs
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert page.index("data:image/png") < page.index("The loss is &lt; 4 nats &amp; rises.")


# What the shipped rows give: a figure of each kind, and its text.
SHIPPED: dict[str, Callable[[], tuple[Any, str]]] = {
    "claim arms": lambda: both("claim_arms", claims_results.load("pictures"), "labels"),
    "compression gains": lambda: both("compression_gains", compression_results.load(images=2_000).gains()),
    "pareto": lambda: both("pareto", compression_results.load(images=2_000)),
    "faults": lambda: both("fault_effects", clinic.load()),
    "forest": lambda: both("forest", study.results("methods", student="resnet8", images=10_000)),
    "gain against": lambda: both("gain_against", teacher_results.load(), "article-student"),
    "mistakes": lambda: both("mistakes", logit_mistakes.costs(logit_mistakes.load())),
    "proxies": lambda: (
        plots.proxies_figure(search_results.load_proxies()),
        plots.proxies_alt(search_results.load_proxies()),
    ),
    "several ways": lambda: both("several_ways", several_results.load("own"), "best single"),
    "teacher gains": lambda: both("teacher_gains", teacher_results.load()),
}


def both(name: str, *given: Any) -> tuple[Any, str]:
    """A figure and its text, from the two functions of the same name."""
    return getattr(plots, name)(*given), getattr(plots, f"{name}_alt")(*given)


def texts_in(fig: Any) -> list[Any]:
    """Titles and what is written beside the data: all but axes and legends."""
    titles = [title for axes in fig.axes for title in (axes.title, axes._left_title)]
    return [*fig.texts, *titles, *(text for axes in fig.axes for text in axes.texts)]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_in_a_picture_is_in_its_text(name: str) -> None:
    fig, alt = SHIPPED[name]()
    number = re.compile(r"(?<![\w.-])[+-]?\d[\d,]*(?:\.\d+)?")
    known = set(number.findall(alt))
    drawn = [(text.get_text(), set(number.findall(text.get_text()))) for text in texts_in(fig)]
    assert [(text, numbers - known) for text, numbers in drawn if numbers - known] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_every_text_of_a_picture_stands_out_from_white(name: str) -> None:
    fig, _ = SHIPPED[name]()
    pale = [text.get_text() for text in texts_in(fig) if contrast(text.get_color()) < 4.5]
    assert pale == []


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
    assert sum("image/png" in data for data, _ in shown) == 4


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
    assert axes.get_xlabel() == "predicted class"
    assert fig.axes[1].get_ylabel() == "mean probability"
    dark, light = axes.texts[2], axes.texts[4]
    assert (dark.get_color(), light.get_color()) == ("white", "black")  # readable on its cell
    plots.show(fig, alt="A matrix.")


def test_numbers_on_heat_maps_have_contrast_on_every_colour() -> None:
    values, (_, axes) = np.linspace(-1, 1, 257)[None], plots.figure()
    image = axes.imshow(values)
    for cmap in ("cividis", "Greys", plots.diverging_cmap()):
        image.set_cmap(cmap)
        texts = plots.text_colours(image, values)
        ratios = [
            contrast(to_rgb(text), image.cmap(image.norm(value))[:3])
            for text, value in zip(texts[0], values[0], strict=True)
        ]
        assert min(ratios) >= 4.5


def test_a_diverging_class_matrix_is_white_where_nothing_changed() -> None:
    _, axes = plots.figure()
    cmap = plots.diverging_cmap().reversed()
    image = plots.class_matrix(axes, [[0.5, 1.0], [1.5, 3.0]], "ab", label="ratio", low=0, high=2, cmap=cmap)
    below, same, above, beyond = (image.cmap(image.norm(value))[:3] for value in (0.5, 1.0, 1.5, 3.0))
    assert min(same) > 0.98
    assert below[2] > below[0]  # blue
    assert above[0] > above[2]  # vermilion
    assert beyond == to_rgb(plots.BASELINE.colour)


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


# The schematic.


def patches_of(fig: Any, part: str) -> list[Any]:
    return [patch for patch in fig.axes[0].patches if patch.get_gid() == part]


def colours_of(fig: Any, part: str) -> set[Any]:
    """Edges and fillings of a part, without white and what is transparent."""
    colours = {colour for patch in patches_of(fig, part) for colour in (patch.get_facecolor(), patch.get_edgecolor())}
    return {colour[:3] for colour in colours if colour[3] > 0 and colour[:3] != (1, 1, 1)}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_lit_has_the_colour_of_its_role_and_all_others_are_grey(part: str) -> None:
    fig, dark = plots.schematic({part}), plots.schematic(())
    assert to_rgb(PARTS[part].colour) in colours_of(fig, part)
    assert not colours_of(fig, part) & colours_of(dark, part)
    for other in PARTS:
        if other != part:
            assert colours_of(fig, other) == colours_of(dark, other), other
            assert all(max(colour) - min(colour) < 0.01 for colour in colours_of(fig, other)), other
    weights = {text.get_text(): text.get_fontweight() for text in fig.axes[0].texts}
    assert weights[part] == "bold"  # not by colour alone
    assert sum(weight == "bold" for weight in weights.values()) <= 2  # T stands beside temperature


def test_the_words_of_pale_parts_stand_out_from_their_boxes() -> None:
    fig = plots.schematic(())
    backgrounds = ["white", patches_of(fig, "hard loss")[0].get_facecolor()]
    for text in fig.axes[0].texts:
        assert all(contrast(text.get_color(), one) >= 4.5 for one in backgrounds), text.get_text()


def test_lit_parts_differ_in_colour() -> None:
    fig = plots.schematic()
    edges = {part: patches_of(fig, part)[0].get_edgecolor() for part in PARTS}
    different = ("data", "teacher", "student", "feature loss", "relation loss", "soft loss", "hard loss")
    assert len({edges[part] for part in different}) == len(different)
    assert edges["projector"] == edges["feature loss"]
    assert edges["temperature"] == edges["soft loss"]
    assert edges["labels"] == edges["hard loss"]


def test_a_student_that_only_hard_labels_teach_is_the_baseline() -> None:
    fig = plots.schematic({"data", "labels", "student", "hard loss"})
    assert to_rgb(plots.BASELINE.colour) == patches_of(fig, "student")[0].get_edgecolor()[:3]
    fig = plots.schematic({"data", "labels", "student", "hard loss", "teacher", "soft loss"})
    assert to_rgb(plots.DISTILLED.colour) == patches_of(fig, "student")[0].get_edgecolor()[:3]


@pytest.mark.parametrize(
    ("family", "own"),
    [
        ("logits", {"temperature", "soft loss"}),
        ("features", {"projector", "feature loss"}),
        ("relations", {"relation loss"}),
    ],
)
def test_a_family_lights_its_loss_beside_the_labels_and_no_other_family(family: str, own: set[str]) -> None:
    fig, dark = plots.schematic(family), plots.schematic(())
    lit = {part for part in PARTS if colours_of(fig, part) != colours_of(dark, part)}
    assert lit == {"data", "labels", "teacher", "student", "hard loss"} | own
    named = plots.schematic_alt(family).split("Lit: ")[1].split(". ")[0]
    assert set(named.split(", ")) == lit


def test_without_a_family_all_parts_are_lit() -> None:
    assert plots.png(plots.schematic(None)) == plots.png(plots.schematic(tuple(PARTS)))
    assert plots.schematic_alt(None).endswith("All parts are lit.")
    with pytest.raises(ValueError, match="named 'feature'. Did you mean 'feature"):
        plots.schematic("feature")


@pytest.mark.parametrize("draw", [plots.schematic, plots.schematic_alt])
def test_an_unknown_part_is_an_error_with_near_matches(draw: Any) -> None:
    with pytest.raises(ValueError, match="no part of the schematic named 'softloss'. Did you mean 'soft loss'"):
        draw({"teacher", "softloss"})
    draw("teacher")  # a single part is not taken for its letters


def test_the_schematic_is_shown_with_its_alt_text(shown: list[tuple[dict, dict]]) -> None:
    active = ("teacher", "student", "soft loss")
    plots.show(plots.schematic(active), alt=plots.schematic_alt(active))
    (data, _), _ = shown
    assert data["text/plain"].endswith("Lit: teacher, student, soft loss. All other parts are pale.")
    assert all(part in data["text/plain"] for part in ("projector", "temperature", "labels", "relation loss"))
    assert plots.schematic_alt().endswith("All parts are lit.")
    assert len(base64.b64decode(data["image/png"])) < 60_000


@pytest.mark.parametrize("active", [tuple(PARTS), ()])
def test_no_text_of_the_schematic_is_cut_or_lies_on_another(active: tuple[str, ...]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    fig = plots.schematic(active)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in fig.axes[0].texts if text.get_text()]
    assert all(box.x0 > 0 and box.y0 > 0 and box.x1 < fig.bbox.x1 and box.y1 < fig.bbox.y1 for box in boxes)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
    panels = [patch.get_window_extent() for part in ("teacher", "student") for patch in patches_of(fig, part)[:1]]
    pills = [patches_of(fig, part)[0].get_window_extent() for part in ("feature loss", "relation loss", "soft loss")]
    for number, box in enumerate([*panels, *pills]):
        assert not any(box.overlaps(other) for other in [*panels, *pills][number + 1 :])


def test_the_same_parts_give_the_same_schematic() -> None:
    assert plots.png(plots.schematic({"data"})) == plots.png(plots.schematic(["data"]))


# Answers in a triangle.


def test_softened_answers_run_to_the_centre_and_rest_when_they_are_magnified() -> None:
    teacher, student = [4.0, 1.0, 0.0], [0.5, 1.0, 2.5]
    fig = plots.shrinking_answers(teacher, student, [1, 8, 4096])
    plots.check_labels(fig)
    left, right = fig.axes
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in left.lines}
    centre = np.array([0.5, np.sqrt(3) / 6])
    for name in ("teacher", "student"):
        distance = np.linalg.norm(lines[name] - centre, axis=1)
        assert distance[0] > distance[1] > distance[2]
        assert distance[2] < 1e-3
    rest = np.asarray(next(line for line in right.lines if line.get_label() == "limit").get_xydata())
    magnified = next(line for line in right.lines if line.get_label() == "teacher").get_xydata()
    np.testing.assert_allclose(magnified[-1], rest[0], atol=1e-3)
    assert "T = 1 to 4096" in plots.shrinking_answers_alt([1, 8, 4096])
    with pytest.raises(ValueError, match="3 logits"):
        plots.shrinking_answers([1.0, 2.0], student, [1, 2])
