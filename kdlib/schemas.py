"""What must stand in each kind of file that kdlib reads: names, kinds and ranges, looked at before anything is used.

A file may be damaged, edited by hand or made to harm. What does not fit is a ValueError in one sentence, which the
caller completes by the file's name and what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdlib.errors import LARGEST_WHOLE


class Field(NamedTuple):
    """One entry. expected: what it should be, in words. fits: whether a value is that. required: must it be there?"""

    expected: str
    fits: Callable[[Any], bool]
    required: bool = True


def read_json(text: str | bytes) -> Any:
    """A JSON text; ValueError also for one that is nested without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def check(what: str, found: Any, fields: Mapping[str, Field]) -> None:
    """Raise ValueError unless `found` is a dictionary with these fields; others may be there, too."""
    if not isinstance(found, dict):
        raise ValueError(f"{what} is a {type(found).__name__}, not a dictionary")
    for name, field in fields.items():
        if name not in found:
            if field.required:
                raise ValueError(f"{what} has no {name!r}")
        elif not field.fits(found[name]):
            raise ValueError(f"{name!r} of {what} is {_short(found[name])}; expected {field.expected}")


def _is_whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST_WHOLE


def _is_number(value: Any) -> bool:
    """Whole numbers beyond 64 bits are none: JSON knows them of any length, and the longest become no float."""
    return isinstance(value, float) or _is_whole(value, -LARGEST_WHOLE)


def _is_numbers(value: Any) -> bool:
    """Numbers by name; what was not measured may be NaN."""
    return isinstance(value, dict) and all(_is_number(one) for one in value.values())


def _is_list(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_seconds(value: Any) -> bool:
    return _is_number(value) and 0 <= value < math.inf


_WHOLE = Field("a whole number of at least 1", lambda value: _is_whole(value, 1))
MODEL = {
    "architecture": Field("a name", _is_text),
    **dict.fromkeys(("num_classes", "in_channels", "image_size"), _WHOLE),
    "stem": Field("a name", _is_text),
    "classes": Field("the names of the classes", _is_list(_is_text), required=False),
}
CHECKPOINT = {
    "facts": Field("a dictionary", _is_dict),
    "scalars": Field("a dictionary", _is_dict),
    "param_groups": Field("a list of dictionaries", _is_list(_is_dict)),
    "options": Field("a list of dictionaries", _is_list(_is_dict), required=False),
}
FACTS = {
    "run": Field("a dictionary", _is_dict),
    "config": Field("a dictionary or null", lambda value: isinstance(value, dict | None), required=False),
    "step": Field("a whole number of at least 0", _is_whole),
    "seconds": Field("a number of seconds", _is_seconds),
    "rows": Field("a list of numbers by name, one an epoch", _is_list(_is_numbers)),
    "sums": Field("numbers by name", _is_numbers),
    "numbers": Field("a dictionary", _is_dict, required=False),
}
SEARCH = {"identity": Field("a dictionary", _is_dict, required=False)}
SESSION = {
    "rows": Field(
        "the first and the last row",
        lambda value: isinstance(value, list) and len(value) == 2 and all(_is_whole(one) for one in value),
        required=False,
    ),
    "hours": Field("a number of hours", _is_seconds, required=False),
    "machine": Field("a dictionary", _is_dict, required=False),
    "versions": Field("a dictionary", _is_dict, required=False),
}
SESSIONS = {"sessions": Field("a list of dictionaries", _is_list(_is_dict))}


def check_sessions(found: Any) -> None:
    """Raise ValueError unless these are the sessions of a study."""
    check("it", found, SESSIONS)
    for number, one in enumerate(found["sessions"], start=1):
        check(f"session {number}", one, SESSION)


# --- tensors


def check_weights(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a weight that is no real number where one belongs, or the other way round."""
    for name in wanted.keys() & found.keys():
        if wanted[name].is_floating_point() != found[name].is_floating_point():
            raise ValueError(f"{name} is {found[name].dtype}; expected {wanted[name].dtype}")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for weights that are not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")


def check_optimizer(
    optimizer: torch.optim.Optimizer,
    state: Mapping[Any, Mapping[str, Any]],
    groups: list[dict[str, Any]],
    options: list[dict[str, Any]],
    own: list[dict[str, Any]],
) -> None:
    """Raise ValueError unless a saved state is one of this optimiser: groups, options, shapes and kinds.

    groups: those of the saved state. options: those with which its run began. own: those of this optimiser, which has
    made no step.
    """
    if not len(groups) == len(options) == len(own):
        raise ValueError(f"it has {len(groups)} groups of parameters, not {len(own)}")
    counts = not type(optimizer).__module__.startswith("torch.optim.")  # others may count in their groups
    for group, begun, mine in zip(groups, options, own, strict=True):
        if group.get("params") != mine["params"]:
            raise ValueError("its groups hold other parameters")
        # A schedule changes the rate, and a file of an older version does not say with which it began.
        if begun is not group and _as_json(begun.get("lr")) != _as_json(mine["lr"]):
            raise ValueError(f"its learning rate began as {_short(begun.get('lr'))}, not {_short(mine['lr'])}")
        for name in mine.keys() - {"params", "lr", "initial_lr"}:
            for saved in (begun, group):
                same = name not in saved or _as_json(saved[name]) == _as_json(mine[name])
                if not same and not (counts and saved is group and _may_become(mine[name], saved[name])):
                    raise ValueError(f"its {name} is {_short(saved[name])}, not {_short(mine[name])}")
        if "lr" in group and not (_is_number(group["lr"]) and 0 <= group["lr"] < math.inf):
            raise ValueError(f"its learning rate is {_short(group['lr'])}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    of_torch = not counts
    for number, values in state.items():
        if not 0 <= number < len(parameters):
            raise ValueError(f"it has a state for parameter {number} of {len(parameters)}")
        for name, value in values.items():
            shape = tuple(parameters[number].shape)
            if not isinstance(value, Tensor) or not of_torch:  # of others nobody knows what they keep
                continue
            fits = value.numel() <= 1 or _may_belong_to(tuple(value.shape), shape)
            of_kind = value.is_floating_point() or (value.is_complex() and parameters[number].is_complex())
            if not of_kind or not fits:
                raise ValueError(f"its {name} of parameter {number} is {tuple(value.shape)}, {value.dtype}")


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)


def _may_become(before: Any, after: Any) -> bool:
    """Whether an optimiser that counts may have made the one value of the other: a finite number, or a switch."""
    if isinstance(before, bool) or isinstance(after, bool):
        return isinstance(before, bool) and isinstance(after, bool)
    return _is_number(before) and _is_number(after) and math.isfinite(after)


def _may_belong_to(found: tuple[int, ...], parameter: tuple[int, ...]) -> bool:
    """Whether a state has its parameter's shape, or sums over some of its dimensions, as Adafactor keeps them."""
    return len(found) == len(parameter) and all(a in (1, b) for a, b in zip(found, parameter, strict=True))


def check_random_state(name: str, found: Tensor, own: Tensor) -> None:
    """Raise ValueError unless this is a state of the generator that has the state `own` now."""
    if found.dtype != own.dtype or found.shape != own.shape:
        raise ValueError(f"its random state {name} is {tuple(found.shape)}, {found.dtype}")


# --- rows of a study


def _reads(kind: type, least: float = -math.inf, most: float = math.inf) -> Callable[[str], bool]:
    def fits(text: str) -> bool:
        try:
            value = kind(text)
        except ValueError:
            return False
        return least <= value <= most and math.isfinite(value)

    return fits


_COUNT = Field(f"a whole number from 0 to {LARGEST_WHOLE}", _reads(int, 0, LARGEST_WHOLE))
_FRACTION = Field("a number in [0, 1]", _reads(float, 0, 1))
_SECONDS = Field("a number of seconds", _reads(float, 0))
_SETTING = Field("a number", _reads(float))
COLUMNS = {
    **dict.fromkeys(("images", "epochs", "views", "seed", "excluded_class", "extra_parameters", "threads"), _COUNT),
    **dict.fromkeys(("test_accuracy", "validation_accuracy", "excluded_class_accuracy", "teacher_accuracy"), _FRACTION),
    **dict.fromkeys(("agreement", "calibration_error"), _FRACTION),
    **dict.fromkeys(("seconds", "seconds_per_epoch"), _SECONDS),
    **dict.fromkeys(("learning_rate", "weight_decay", "smoothing", "alpha", "temperature", "beta", "weight"), _SETTING),
}


def check_row(row: Mapping[str, str]) -> None:
    """Raise ValueError for a value, as text, that cannot stand in its column of a study's file; nothing may always."""
    for name, field in COLUMNS.items():
        text = row.get(name, "")
        if text and not field.fits(text):
            raise ValueError(f"{name} is {_short(text)}; expected {field.expected}")


def check_header(names: Sequence[str]) -> None:
    """Raise ValueError unless these are names of columns, each once."""
    if not names or not all(name and name.isprintable() for name in names):
        raise ValueError("its first line does not name columns")
    if len(set(names)) < len(names):
        raise ValueError("its first line names a column twice")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
