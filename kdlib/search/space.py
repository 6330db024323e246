"""What a search may choose: a range for each setting of a method, and for the width and depth of the student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from kdlib.errors import check_kind, check_real, check_whole, unknown_name
from kdlib.losses._common import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE
from kdlib.study import method_specs
from kdlib.study.method_specs import MethodSpec, Settings, TeacherKind
from kdlib.study.search_space import Choice, LogUniform, Uniform

if TYPE_CHECKING:
    from optuna import Trial

LARGEST_WIDTH = 512
LARGEST_DEPTH = 110
LAYERS = ("last", "late", "all", "embedding")  # the words of `models.pair_layers`
ONE = {"alpha": 1.0, "smoothing": 0.99}  # settings that are shares; the others have no upper limit


@dataclass(frozen=True)
class Whole:
    """Whole numbers from low to high, both included, in steps."""

    low: int
    high: int
    step: int = 1

    @property
    def values(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(self.low, self.high + 1, self.step))


Distribution = LogUniform | Uniform | Choice | Whole
Space = Mapping[str, Distribution]  # by name of the setting
Params = Mapping[str, Any]  # one point of a space

WIDTH, DEPTH = Whole(4, 16, 2), Whole(8, 20, 6)  # of ResNets for small images


def default_space(method: str = "kd", *, student: bool = False) -> dict[str, Distribution]:
    """The ranges of a method's settings, those of the study, and with `student` width and depth of the student.

    Every method has learning_rate and weight_decay; logit losses have alpha and temperature, feature and relation
    losses weight and, where there is a choice, layers. width counts the channels of the first stage of a ResNet for
    small images (4 to 16; the stages have 1, 2 and 4 times as many), depth its layers (8, 14 or 20).
    Raises ValueError for an unknown method, with near matches.
    """
    space: dict[str, Distribution] = dict(find_method(method).search_space())
    return {**space, "width": WIDTH, "depth": DEPTH} if student else space


def find_method(name: str) -> MethodSpec:
    """A method of the study; ValueError for an unknown name, or a control, whose teacher is not meant to help."""
    methods = [
        spec.name for spec in method_specs.METHODS.values() if spec.teacher in (TeacherKind.REFERENCE, TeacherKind.NONE)
    ]
    if not isinstance(name, str) or name not in methods:
        raise unknown_name("method to search the settings of", name, methods)
    return method_specs.find(name)


def check_space(space: Space, spec: MethodSpec) -> None:
    """Raise ValueError or TypeError for a setting that the method does not have, or a range that makes no sense."""
    check_kind("a mapping from settings to ranges, such as default_space('kd')", Mapping, space=space)
    if not space:
        raise ValueError("The space is empty: there is nothing to search. Take search.default_space(method).")
    known = [*(one.name for one in fields(Settings) if getattr(spec.start, one.name) is not None), "width", "depth"]
    for name, distribution in space.items():
        if name not in known:
            raise unknown_name(f"setting of {spec.name}", name, known)
        check_kind(
            "a range: LogUniform, Uniform, Choice or Whole",
            LogUniform | Uniform | Choice | Whole,
            **{name: distribution},
        )
        _check_range(name, distribution)


def _check_range(name: str, distribution: Distribution) -> None:
    if name in ("width", "depth"):
        _check_network(name, distribution)
    elif isinstance(distribution, Choice):
        if not isinstance(distribution.values, tuple) or not distribution.values:
            raise ValueError(f"{name} has nothing to choose from. Give Choice(('last', 'all')).")
        for value in distribution.values:
            _check_value(name, value)
    else:
        ends = (distribution.low, distribution.high)
        for end in ends:
            _check_value(name, end)
        if isinstance(distribution, Whole):
            check_whole(0, low=distribution.low, high=distribution.high)
            check_whole(step=distribution.step)
        if ends[0] > ends[1]:
            raise ValueError(f"{name} is searched from low to high; got {ends[0]} to {ends[1]}.")
        if isinstance(distribution, LogUniform) and not ends[0] > 0:
            raise ValueError(f"The logarithm of {name} is searched, so its range begins above 0; got {ends[0]}.")


def _check_value(name: str, value: Any) -> None:
    if name == "layers":
        if value not in LAYERS:
            raise unknown_name("choice of layers", value, LAYERS)
        return
    check_real(**{name: value})
    if not 0 <= value <= ONE.get(name, math.inf) or math.isinf(value):
        limits = f"from 0 to {ONE[name]}" if name in ONE else "of at least 0"
        raise ValueError(f"{name} is a number {limits}; got {value}.")
    if name == "learning_rate" and value == 0:
        raise ValueError(f"{name} is a positive number; got {value}.")
    if name == "temperature" and not LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE:
        raise ValueError(
            f"{name} lies between {LOWEST_TEMPERATURE} and {HIGHEST_TEMPERATURE}, beyond which nothing is taught; got "
            f"{value}."
        )


def _check_network(name: str, distribution: Distribution) -> None:
    if not isinstance(distribution, Whole):
        raise TypeError(f"{name} is searched in whole numbers, Whole(4, 16, 2); got {type(distribution).__name__}.")
    check_whole(1, LARGEST_WIDTH if name == "width" else LARGEST_DEPTH, low=distribution.low, high=distribution.high)
    check_whole(step=distribution.step)
    if not distribution.values or distribution.values[-1] != distribution.high:
        raise ValueError(f"{name} goes from low to high in whole steps; got {distribution}.")
    if name == "depth" and any(depth < 8 or depth % 6 != 2 for depth in distribution.values):
        raise ValueError(f"The depth of a ResNet for small images is 6n + 2: 8, 14, 20, ...; got {distribution}.")


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """The point of a space that optuna suggests for a trial, or has suggested before."""
    made: dict[str, Any] = {}
    for name, one in space.items():
        if isinstance(one, Whole):
            made[name] = trial.suggest_int(name, one.low, one.high, step=one.step)
        elif isinstance(one, Choice):
            made[name] = trial.suggest_categorical(name, one.values)
        else:
            made[name] = trial.suggest_float(name, one.low, one.high, log=isinstance(one, LogUniform))
    return made


def settings_of(params: Params, spec: MethodSpec) -> Settings:
    """The settings at a point of a space; what the space leaves out is as the method starts."""
    return replace(spec.start, **{name: value for name, value in params.items() if name not in ("width", "depth")})


def student_of(params: Params, student: str) -> str:
    """The name of the student's architecture at a point of a space; `student` without width and depth in it."""
    if not {"width", "depth"} & set(params):
        return student
    return f"resnet{params.get('depth', DEPTH.low)}w{params.get('width', WIDTH.high)}"


def students_of(space: Space) -> list[str]:
    """The names of all architectures of a space; none where width and depth are not searched."""
    if not {"width", "depth"} & set(space):
        return []
    ranges = {name: _values(space.get(name), default) for name, default in (("width", 16), ("depth", 8))}
    return [f"resnet{depth}w{width}" for depth in ranges["depth"] for width in ranges["width"]]


def _values(distribution: Distribution | None, default: int) -> tuple[int, ...]:
    return distribution.values if isinstance(distribution, Whole) else (default,)
