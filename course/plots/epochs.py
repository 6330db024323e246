"""Validation accuracy after each epoch of the long runs of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from course.plots.descriptions import describe_networks
from course.plots.learning_curve import method_roles
from course.plots.theme import figure, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdlib.study.analysis import Results


def accuracy_by_epoch(results: Results, methods: Sequence[str] | None = None) -> Figure:
    """Validation accuracy after each epoch; a line a seed.

    methods: those to draw beside the baseline, default all. Seeds whose epochs are not known are left out. Raises
    ValueError if a method has none at all (`Results.history`).
    """
    curves = _curves(results, methods)
    fig, axes = figure(5.4, 2.9)
    for name, role in method_roles(results, list(curves)).items():
        for number, accuracies in enumerate(curves[name].values()):
            epochs = range(1, len(accuracies) + 1)
            look = replace(role, label="" if number else role.label).line(linewidth=1.3, markersize=4)
            axes.plot(epochs, [100 * accuracy for accuracy in accuracies], **look)
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)")
    known = _seeds(curves)
    seeds = f"seeds {', '.join(map(str, known))}, a line each" if len(known) > 1 else f"seed {known[0]}"
    fig.suptitle(f"{describe_networks(results)}; {seeds}", x=0.01, ha="left", fontsize=10)
    legend(axes, loc="lower right")
    return fig


def accuracy_by_epoch_alt(results: Results, methods: Sequence[str] | None = None) -> str:
    """What `accuracy_by_epoch` shows, in words."""
    curves = _curves(results, methods)
    sentences = [f"Validation accuracy in % after each epoch, {describe_networks(results)}"]
    for name, by_seed in curves.items():
        for seed, accuracies in by_seed.items():
            values = ", ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
            sentences.append(f"{results.title(name)}, seed {seed}: {values}")
    return ". ".join(sentences) + "."


def _curves(results: Results, methods: Sequence[str] | None) -> dict[str, dict[int, list[float]]]:
    """By method, the baseline first, and by seed, the accuracies as fractions."""
    names = [results.baseline, *(results.methods if methods is None else methods)]
    curves = {name: results.history(name) for name in names}
    for name, by_seed in curves.items():
        if not by_seed:
            raise ValueError(
                f"{results.sources[0].name} has no epochs of {name}. A study keeps them where it has at least ten "
                "times as many training images as validation images; files of an older kdlib have none."
            )
    return curves


def _seeds(curves: Mapping[str, Mapping[int, object]]) -> list[int]:
    return sorted({seed for by_seed in curves.values() for seed in by_seed})


__all__ = ["accuracy_by_epoch", "accuracy_by_epoch_alt"]
