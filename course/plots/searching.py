"""Figures of lesson 13: what a search promises and keeps, and what a network's size or relations say beforehand.

replay = search_replay.load()
plots.show(plots.promises(replay), alt=plots.promises_alt(replay))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from course.plots.theme import DISTILLED, INK, NEUTRAL, RELATIONS, figure, legend

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from course.experiments.search_proxy import Scores
    from course.experiments.search_replay import Replay
    from course.experiments.search_results import Proxies

SAMPLER_ROLES = {"random search": NEUTRAL, "TPE": DISTILLED}
DEPTH_MARKERS = ("o", "s", "^", "D", "v")
PROXY_LABELS = {
    "macs": "MACs (millions, logarithmic)",
    "parameters": "parameters (thousands, logarithmic)",
    "relation_score": "score, trained teacher",
    "relation_score_untrained": "score, untrained teacher",
}
SCALES = {"macs": 1e6, "parameters": 1e3}
PANELS = ("macs", "relation_score", "relation_score_untrained")  # what the figure of proxies shows


def promises(replay: Replay, counts: Sequence[int] = tuple(range(1, 21))) -> Figure:
    """Mean promise and worth of the best setting against the number of trials, for random search and TPE."""
    fig, axes = figure(7.4, 4.0)
    for sampler, role in SAMPLER_ROLES.items():
        curve = replay.mean_curve(sampler, counts)
        look = {"markersize": 4, "color": role.colour, "marker": role.marker}
        axes.plot(counts, curve[:, 0], **{**look, "linestyle": "--", "markerfacecolor": "white"})
        axes.plot(counts, curve[:, 1], **{**look, "linestyle": "-", "label": sampler})
    axes.plot([], [], color=INK, linestyle="--", label="promised: the seed of the search")
    axes.plot([], [], color=INK, linestyle="-", label="kept: the other seeds")
    axes.axhline(replay.default(), color=INK, linestyle=":", label="T 4, alpha 0.1, without a search")
    axes.set(xlabel="trials", ylabel="validation accuracy of the best setting (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend(axes, loc="lower right", fontsize=8.5)
    return fig


def promises_alt(replay: Replay, counts: Sequence[int] = (1, 5, 20)) -> str:
    """What `promises` shows, in words."""
    sentences = []
    for sampler in SAMPLER_ROLES:
        values = [
            f"after {count} promised {promised:.2f}, kept {kept:.2f}"
            for count, (promised, kept) in zip(counts, replay.mean_curve(sampler, counts), strict=True)
        ]
        sentences.append(f"{sampler}: {'; '.join(values)}")
    return (
        f"Four lines against the trials, in per cent. {'. '.join(sentences)}. T 4, alpha 0.1: {replay.default():.2f}."
    )


def kept_promises(choices: pd.DataFrame) -> Figure:
    """A point for each chosen setting: by how much its trial was above the mean of fresh seeds, study by study."""
    studies = list(dict.fromkeys(choices["study"]))
    fig, axes = figure(7.4, 0.45 * len(studies) + 1.1)
    for place, study in enumerate(studies):
        excess = choices["excess"][choices["study"] == study]
        axes.plot(excess, [place] * len(excess), **{**DISTILLED.line("a method", linestyle=""), "alpha": 0.6})
        axes.plot([excess.mean()] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=2, linestyle="-")
    axes.axvline(0, color=INK, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(studies)), [_study_title(study) for study in studies])
    axes.set(ylim=(len(studies) - 0.5, -0.5), xlabel="promised minus kept (points of validation accuracy)")
    axes.set_ylabel("study")
    return fig


def _study_title(study: str) -> str:
    student, *rest = study.split("-")
    optimizer = "" if rest[-1].isdigit() else rest.pop()
    images = rest[-1]
    teacher = "ResNet-50" if "resnet50" in study else "ResNet-20"
    version = " v2" if "v2" in rest else ""
    title = {"article": "article's student", "resnet8": "ResNet-8", "resnet18": "ResNet-18"}.get(student, student)
    by = f", {optimizer}" if optimizer else ""
    return f"{teacher}{version} to {title}, {int(images):,}{by}"


def kept_promises_alt(choices: pd.DataFrame) -> str:
    """What `kept_promises` shows, in words."""
    means = choices.groupby("study", sort=False)["excess"].agg(["mean", "min", "max"])
    values = [
        f"{_study_title(str(study))}: mean {row['mean']:+.2f}, {row['min']:+.2f} to {row['max']:+.2f}"
        for study, row in means.iterrows()
    ]
    return f"Points on a line for each study, promised minus kept, with a bar at the mean. {'; '.join(values)}."


def scores_figure(scores: Scores) -> Figure:
    """Score against MACs, a panel for a trained and one for an untrained teacher; an error bar joins the seeds."""
    fig, axes = figure(8.6, 3.6, columns=2)
    sides = {"trained teacher": scores.trained_teacher, "untrained teacher": scores.untrained_teacher}
    for ax, (title, values) in zip(axes, sides.items(), strict=True):
        for marker, depth in zip(DEPTH_MARKERS, sorted(set(scores.depth)), strict=False):
            chosen = scores.depth == depth
            x, mean = scores.macs[chosen] / SCALES["macs"], values.mean(0)[chosen]
            spread = np.abs(np.stack([values.min(0), values.max(0)])[:, chosen] - mean)
            look = {"color": RELATIONS.colour, "marker": marker, "markersize": 7, "linestyle": "", "linewidth": 1}
            ax.errorbar(x, mean, spread, **look, markeredgecolor=INK, ecolor=INK, label=f"{depth:g} layers")
        ax.set_title(title, loc="left")
        ax.set(xlabel=PROXY_LABELS["macs"], ylabel="score (0: the same relations)", xscale="log")
        _plain_ticks(ax, scores.macs / SCALES["macs"])
    legend(axes[1], loc="lower right")
    return fig


def scores_alt(scores: Scores) -> str:
    """What `scores_figure` shows, in words."""
    sentences = []
    for title, values in {"trained": scores.trained_teacher, "untrained": scores.untrained_teacher}.items():
        by_depth = [
            f"{depth:g} layers {values.mean(0)[scores.depth == depth].mean():.1f}"
            for depth in sorted(set(scores.depth))
        ]
        sentences.append(f"With an {title} teacher" if title == "untrained" else f"With a {title} teacher")
        sentences[-1] += f", mean score of {', '.join(by_depth)}"
    shown = (
        "Two panels, score against MACs for fifteen networks, a marker for each depth, a bar that joins the two draws."
    )
    return f"{shown} {'. '.join(sentences)}."


def proxies_figure(proxies: Proxies) -> Figure:
    """Accuracy after distillation against what was known before, a panel a proxy, with its tau as title."""
    fig, axes = figure(3.5 * len(PANELS), 3.7, columns=len(PANELS), sharey=True, squeeze=False)
    depths = sorted(set(proxies.values["depth"]))
    for ax, proxy in zip(axes[0], PANELS, strict=True):
        role = NEUTRAL if proxy in SCALES else RELATIONS
        for marker, depth in zip(DEPTH_MARKERS, depths, strict=False):
            chosen = proxies.values["depth"] == depth
            x = proxies.values[proxy][chosen] / SCALES.get(proxy, 1)
            look = {"color": role.colour, "marker": marker, "linestyle": "", "markersize": 7}
            ax.plot(x, proxies.accuracy[chosen], **look, label=f"{depth:g} layers", markeredgecolor=INK)
        ax.set_title(_describe_tau(proxies, proxy), loc="left")
        ax.set(xlabel=PROXY_LABELS.get(proxy, proxy), ylabel="validation accuracy (%)")
        if proxy in SCALES:
            ax.set_xscale("log")
            _plain_ticks(ax, proxies.values[proxy] / SCALES[proxy])
        else:
            ax.locator_params(axis="x", nbins=5)
        ax.label_outer()
    legend(axes[0][0], loc="lower right")
    return fig


def _describe_tau(proxies: Proxies, proxy: str) -> str:
    tau = proxies.tau(proxy)
    return f"tau {tau.value:+.2f} ({tau.low:+.2f} to {tau.high:+.2f})"


def _plain_ticks(axes: object, values: np.ndarray) -> None:
    from matplotlib.ticker import NullLocator

    ticks = [
        one for one in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if values.min() / 1.2 <= one <= values.max() * 1.2
    ]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])  # type: ignore[attr-defined]
    axes.xaxis.set_minor_locator(NullLocator())  # type: ignore[attr-defined]


def proxies_alt(proxies: Proxies) -> str:
    """What `proxies_figure` shows, in words."""
    taus = [f"{PROXY_LABELS.get(proxy, proxy)}: {_describe_tau(proxies, proxy)}" for proxy in PANELS]
    low, high = proxies.accuracy.min(), proxies.accuracy.max()
    return (
        f"{len(PANELS)} panels of {len(proxies.students)} points, validation accuracy from {low:.1f} to {high:.1f} %, "
        f"a marker for each depth. {'; '.join(taus)}."
    )
