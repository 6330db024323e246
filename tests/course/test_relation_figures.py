"""Figures of relations: matrices with their differences, and the triangle of three pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from course import plots
from kdlib import losses

LOOK: dict[str, Any] = {"label": "similarity", "high": 1.0, "rows": "picture", "columns": "picture, in the same order"}


def images_of(fig: Any) -> list[np.ndarray]:
    """The matrices that are drawn, panel by panel, without the colour bars."""
    return [np.array(axes.images[0].get_array()) for axes in fig.axes if axes.images]


def matrices(count: int = 3, size: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ("teacher", "hard labels", "taught")[:count]
    return {name: torch.rand(size, size, generator=generator) for name in names}


@pytest.mark.slow
def test_the_maps_are_drawn_in_steps_and_their_differences_below_them() -> None:
    given = matrices()
    fig = plots.relation_maps(given, **LOOK, differences=True)
    drawn = images_of(fig)
    assert len(drawn) == 5
    for image, matrix in zip(drawn, given.values(), strict=False):
        assert abs(image - matrix.numpy()).max() <= 0.5 / 12 + 1e-6  # half a step
    for image, name in zip(drawn[3:], ("hard labels", "taught"), strict=True):
        assert abs(image - (given[name] - given["teacher"]).abs().numpy()).max() <= 0.5 / 12 + 1e-6
    colours = [axes.images[0].get_cmap().name for axes in fig.axes if axes.images]
    assert colours == ["cividis"] * 3 + ["Greys"] * 2
    plots.check_labels(fig)
    assert len(images_of(plots.relation_maps(given, **LOOK))) == 3


def test_differences_may_have_a_scale_of_their_own() -> None:
    given = matrices(2)
    fig = plots.relation_maps(given, **LOOK, differences=True, far=0.3)
    *maps, differences = [axes.images[0] for axes in fig.axes if axes.images]
    assert differences.get_clim() == (0, 0.3)
    assert all(image.get_clim() == (0, LOOK["high"]) for image in maps)


def test_pictures_sorted_by_class_have_the_names_of_the_classes() -> None:
    fig = plots.relation_maps(matrices(2), **LOOK, classes=("bag", "coat", "shirt"))
    first = fig.axes[0]
    assert [text.get_text() for text in first.get_yticklabels()] == ["bag", "coat", "shirt"]
    assert list(first.get_yticks()) == [0.5, 2.5, 4.5]
    plots.check_labels(fig)


def test_matrices_of_different_sizes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"compares matrices of one size; these are teacher \(2, 2\), student \(2, 3\)"
    ):
        plots.relation_maps({"teacher": torch.ones(2, 2), "student": torch.ones(2, 3)}, **LOOK)


def embeddings(seed: int) -> torch.Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)).double()


def test_the_triangle_has_the_sides_and_angles_that_rkd_compares() -> None:
    rows, which, names = embeddings(0), (1, 4, 6), ("bag", "coat", "shirt")
    fig = plots.triangles({"teacher": rows}, which, torch.rand(3, 28, 28), names)
    corners = np.array(fig.axes[0].lines[0].get_xydata())[:3]
    apart = torch.cdist(rows, rows)
    apart = apart / (apart.sum() / 42)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        assert np.linalg.norm(corners[a] - corners[b]) == pytest.approx(apart[which[a], which[b]].item())
    alt = plots.triangles_alt({"teacher": rows}, which, names)
    steps = torch.nn.functional.normalize(rows[[4, 6]] - rows[1], dim=1)
    angle = torch.rad2deg(torch.acos(steps[0] @ steps[1])).item()
    assert f"bag to coat {apart[1, 4]:.2f}, angle at bag {angle:.0f} degrees" in alt
    assert losses.rkd_distance(rows, 3 * rows).item() == pytest.approx(0)  # nor does a factor change the triangle
    assert plots.triangles_alt({"teacher": 3 * rows}, which, names) == alt


def test_each_network_has_its_colour_and_one_that_learned_nothing_is_grey() -> None:
    given = {"teacher": embeddings(0), "student, untrained": embeddings(1)}
    fig = plots.triangles(given, (0, 1, 2), torch.rand(3, 8, 8), ("a", "b", "c"))
    colours = [to_hex(axes.lines[0].get_color()).upper() for axes in fig.axes]
    assert colours == [plots.TEACHER.colour, plots.NEUTRAL.colour]
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim()  # one scale


def test_a_triangle_has_three_pictures() -> None:
    with pytest.raises(ValueError, match="A triangle has three pictures; got 2, 3 images, 3 names"):
        plots.triangles({"teacher": embeddings(0)}, (0, 1), torch.rand(3, 8, 8), ("a", "b", "c"))


def test_three_pictures_of_which_two_coincide_are_drawn() -> None:
    rows = embeddings(0)
    rows[1] = rows[0]
    rows[2] = rows[0] + 1
    for which in ((2, 0, 1), (0, 1, 2)):
        fig = plots.triangles({"teacher": rows}, which, torch.rand(3, 8, 8), ("a", "b", "c"))
        assert np.isfinite(fig.axes[0].lines[0].get_xydata()).all()
        assert "nan" not in plots.triangles_alt({"teacher": rows}, which, ("a", "b", "c"))
