"""The trials that a method of layers made with both teachers of the ResNet-8 alike: is it the search, or the layers?

    print(layer_trials.same_settings("vid"))

The first settings of a search are the same for every teacher, so their trials differ by the teacher alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdlib.data import data_dir
from kdlib.study.plans import mean_trial_scores
from kdlib.study.runs_file import read_rows

if TYPE_CHECKING:
    import pandas as pd

TEACHERS = {"ResNet-20": "resnet20-fashion", "ResNet-50": "resnet50-fashion-v2"}


def same_settings(method: str, folder: Path | None = None) -> pd.DataFrame:
    """The settings that a method tried with both teachers, 10,000 images, the smallest weight of its loss first.

    Columns: weight, layers, for each of TEACHERS the mean validation accuracy of all tuning seeds (%), and ahead, the
    first teacher's less the second's (points). Raises ValueError where no setting was tried with both.
    """
    place = folder if folder is not None else data_dir() / "results"
    table = tried_in_all({title: (trials_of(teacher, place), method) for title, teacher in TEACHERS.items()})
    first, second = TEACHERS
    return table.assign(ahead=table[first] - table[second])


def trials_of(teacher: str, folder: Path) -> Path:
    """The file of the trials of a ResNet-8 with 10,000 images."""
    return folder / f"choose-resnet8-{teacher}-10000.csv"


def tried_in_all(sources: Mapping[str, tuple[Path, str]]) -> pd.DataFrame:
    """The settings that were tried in each source, the smallest weight first.

    sources: by title a file of trials and a method in it. Columns: weight, layers, and for each title the mean
    validation accuracy of all tuning seeds (%). Raises ValueError where no setting is common to all.
    """
    import pandas as pd

    scores = {}
    for title, (path, method) in sources.items():
        scores[title] = mean_trial_scores(row for row in read_rows(path) if row["method"] == method)
    first, *others = scores.values()
    common = [one for one in first if all(one in other for other in others)]
    if not common:
        named = "; ".join(f"{title}: {method!r} in {path}" for title, (path, method) in sources.items())
        raise ValueError(f"No settings were tried in all of these. {named}.")
    rows = [
        {"weight": one.weight, "layers": one.layers, **{title: 100 * found[one] for title, found in scores.items()}}
        for one in common
    ]
    return pd.DataFrame(rows).sort_values("weight", ignore_index=True)
