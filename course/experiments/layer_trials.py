"""The trials that a method of layers made with both teachers of the ResNet-8 alike: is it the search, or the layers?

    print(layer_trials.same_settings("vid"))

The first settings of a search are the same for every teacher, so their trials differ by the teacher alone.
"""

from __future__ import annotations

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
    import pandas as pd

    place = folder if folder is not None else data_dir() / "results"
    scores = {}
    for title, teacher in TEACHERS.items():
        rows = read_rows(place / f"choose-resnet8-{teacher}-10000.csv")
        scores[title] = mean_trial_scores(row for row in rows if row["method"] == method)
    first, second = scores.values()
    table = pd.DataFrame(
        [
            {"weight": one.weight, "layers": one.layers, **{title: 100 * found[one] for title, found in scores.items()}}
            for one in first
            if one in second
        ]
    )
    if table.empty:
        raise ValueError(f"No settings of {method!r} were tried with both {' and '.join(TEACHERS)} in {place}.")
    names = list(TEACHERS)
    return table.assign(ahead=table[names[0]] - table[names[1]]).sort_values("weight", ignore_index=True)
