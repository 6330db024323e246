"""Settings as text, by which a resumed run is recognized: the values of attributes, and what a function computes with.

Text and not a hash, so that a refusal can say what was and what is. It is the same in every process.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import logging
import re
import sys
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import pairwise
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.files import fingerprint

_OF_EVERY_MODULE = {*vars(nn.Module()), "training"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum, PurePath, torch.dtype, torch.device)
LONGEST = 80  # characters of one value; what is longer is told apart by a hash
DEPTH = 6  # of objects in objects


def settings(
    module: nn.Module, base: type[nn.Module] = nn.Module, known: Mapping[int, str] | None = None
) -> dict[str, str]:
    """The attributes of a module and of the modules in it as text, by name; no weights, which a checkpoint holds.

    base: what the classes of the user's own inherit; its own attributes are left out. known: as for `describe`.
    """
    found: dict[str, str] = {}
    for path, one in module.named_modules():
        for name, value in _attributes(one, base):
            found[f"{path}.{name}".lstrip(".")] = describe(value, known)
    return found


def own_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Those of the modules in it, by name, whose classes are the user's."""
    return {path: one for path, one in module.named_modules() if not _is_ours(type(one))}


def numbers_of(module: nn.Module) -> dict[str, bool | int | float | str | None]:
    """What the user's own modules in it count in plain attributes, by name: a step, a weight that falls."""
    return _numbers(own_modules(module))


def plain_settings(module: nn.Module) -> dict[str, bool | int | float | str | None]:
    """Single numbers and texts in attributes of a module and of those in it, and which parameters learn."""
    learn = {f"{name}.requires_grad": p.requires_grad for name, p in module.named_parameters()}
    return _numbers(dict(module.named_modules())) | learn


def _numbers(modules: Mapping[str, nn.Module]) -> dict[str, bool | int | float | str | None]:
    return {
        f"{path}.{name}".lstrip("."): value
        for path, one in modules.items()
        for name, value in vars(one).items()
        if name not in _OF_EVERY_MODULE and isinstance(value, bool | int | float | str | None)
    }


def set_numbers(module: nn.Module, values: Mapping[str, Any]) -> None:
    """Set what `numbers_of` has read of an equal module; other names are left out."""
    modules = dict(module.named_modules())
    for name, value in values.items():
        path, _, attribute = name.rpartition(".")
        if name not in numbers_of(module):
            continue
        setattr(modules[path], attribute, value)


def names_in(**modules: nn.Module) -> dict[int, str]:
    """Modules, parameters and buffers of these modules, by their id: what is trained is known by its name."""
    return {
        id(one): f"{part}.{name}".rstrip(".")
        for part, module in modules.items()
        for found in (module.named_buffers(), module.named_parameters(), module.named_modules())
        for name, one in found
    }


def describe(value: Any, known: Mapping[int, str] | None = None) -> str:
    """A value as text. known: names, by id, of what is not shown by its content (`names_in`)."""
    text = _text(value, (), known or {})
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 12]}... {_hash(text)}"


def describe_source(function: Any) -> str:
    """A function that answers, as text: its code's constants, its defaults, and the networks and tensors that it holds.

    Of what else it holds only numbers and texts that it does not write: it may count, or remember what it answered.
    """
    if isinstance(function, functools.partial):
        return f"partial({describe_source(function.func)}, {describe([function.args, function.keywords])})"
    if isinstance(function, types.MethodType):
        return f"{function.__func__.__qualname__} of {describe_source(function.__self__)}"
    held: list[Any] = []
    if isinstance(function, types.FunctionType):
        code, name = function.__code__, function.__qualname__
        inside = _kept(function)
        written = {one.argval for one in dis.get_instructions(code) if one.opname == "STORE_DEREF"}  # what it counts
        fixed = [one for n, one in zip(code.co_freevars, inside, strict=True) if n not in written]
        held = [function.__defaults__, function.__kwdefaults__, _constants(code, function.__doc__)]
        held += [one for one in fixed if isinstance(one, _PLAIN)]
    else:
        name = type(function).__qualname__
        inside = [function, *getattr(function, "__dict__", {}).values()]
    held += [fingerprint(one.state_dict(), repr(one)) for one in inside if isinstance(one, nn.Module)]
    held += [one for one in inside if isinstance(one, Tensor | np.ndarray)]
    return f"{name} {describe(held)}"


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("kdlib", "torch")


def _attributes(module: nn.Module, base: type[nn.Module]) -> Iterator[tuple[str, Any]]:
    """What a user may have set: attributes of the object, and of its class where that is the user's."""
    own = not _is_ours(type(module))
    if own:
        for kind in type(module).__mro__:
            if issubclass(base, kind) or _is_ours(kind):
                break
            yield from ((name, value) for name, value in vars(kind).items() if not name.startswith("__"))
    for name, value in vars(module).items():
        # Of classes of ours and torch's what is private follows from the rest, and may differ between versions.
        if name not in _OF_EVERY_MODULE and (own or not name.startswith("_")):
            yield name, value


def _text(value: Any, above: tuple[int, ...], known: Mapping[int, str]) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, Tensor | np.ndarray):
        if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":  # texts, dates, objects
            return f"ndarray {value.shape} {_hash(repr(value.tolist()))}"
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        return f"{type(value).__name__} {tuple(value.shape)} {fingerprint([tensor])[:12]}"
    if id(value) in above or len(above) > DEPTH:  # an object that holds itself
        return type(value).__qualname__
    inner = functools.partial(_text, above=(*above, id(value)), known=known)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inner(key)}: {inner(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inner, value)) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(inner, value))) + "}"
    if isinstance(value, functools.partial):
        return f"partial({', '.join(map(inner, (value.func, value.args, value.keywords)))})"
    if isinstance(value, type | types.ModuleType):
        return value.__name__
    if isinstance(value, types.MethodType):
        return f"{inner(value.__func__)} of {inner(value.__self__)}"
    if isinstance(value, types.FunctionType):
        return _of_function(value, inner)
    if isinstance(value, property | staticmethod | classmethod):
        function = value.fget if isinstance(value, property) else value.__func__
        return inner(function)
    if isinstance(value, logging.Logger):  # its content is that of all loggers, and changes with every import
        return f"{type(value).__qualname__}({value.name})"
    if isinstance(value, nn.Module):
        weights = fingerprint(value.state_dict())[:12]
        return f"{type(value).__qualname__}({settings(value)}, {weights})"
    kept = getattr(value, "__dict__", None)
    if kept or type(value).__repr__ is object.__repr__:
        return f"{type(value).__qualname__}({inner(kept) if kept else ''})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # np.float32(0.3), range(3), itemgetter(1), torch.relu


def _of_function(function: types.FunctionType, inner: Any) -> str:
    """Name, defaults, what it has kept, and the constants in it: two lambdas have the same name."""
    name = function.__qualname__
    module = function.__module__ or ""  # none for what exec has made
    if module.partition(".")[0] in ("kdlib", "torch"):  # known by name; constants may differ by version
        return f"{name}{inner(_kept(function)) if function.__closure__ else ''}"
    constants = _constants(function.__code__, function.__doc__)
    globals_ = {n: function.__globals__.get(n) for n in sorted(_names(function.__code__))}  # a set has no order
    changing = _asked_for_methods(function.__code__)  # seen.append(x): a list that a run fills is none of its settings
    used = {
        n: one for n, one in globals_.items() if _is_computed_with(one) and not (type(one) is list and n in changing)
    }
    parts = [function.__defaults__, function.__kwdefaults__, _kept(function), constants, used]
    return f"{name} {' '.join(inner(part) for part in parts if part)}".rstrip()


def _is_computed_with(value: Any) -> bool:
    """Whether a global is a number, a text, an array, or a list of such: an order of classes, for instance.

    No dictionaries: among a script's settings are some that differ when it is resumed.
    """
    if isinstance(value, list | tuple):
        return all(map(_is_computed_with, value))
    return isinstance(value, bool | int | float | str | Tensor | np.ndarray)


def _kept(function: types.FunctionType) -> list[Any]:
    kept = []
    for cell in function.__closure__ or ():
        try:
            kept.append(cell.cell_contents)
        except ValueError:  # not filled yet
            kept.append(None)
    return kept


def parameters_of(function: Any) -> list[inspect.Parameter]:
    """The parameters of a function; TypeError or ValueError where it does not tell them, as one of C."""
    if sys.version_info >= (3, 14):  # there an annotation may be a name that no import brought
        import annotationlib

        signature = inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
    else:
        signature = inspect.signature(function)
    return list(signature.parameters.values())


def takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments; one that does not tell what it takes is believed."""
    try:
        signature = inspect.Signature(parameters_of(function))
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _constants(code: types.CodeType, doc: str | None) -> list[Any]:
    # Since Python 3.14 a small whole number stands in the instruction that loads it, and not among the constants; since
    # 3.15 True, False, -1 and "" as well, beside functions such as `all`, which are no constants of the code's own.
    loads = ("LOAD_SMALL_INT", "LOAD_COMMON_CONSTANT")
    loaded = (one.argval for one in dis.get_instructions(code) if one.opname in loads)
    inside: list[Any] = [value for value in loaded if isinstance(value, bool | int | str | tuple) and value != doc]
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            inside += _constants(one, None)
        elif one is not None and one != doc:
            inside.append(one)
    return inside


def _names(code: types.CodeType) -> set[str]:
    return {*code.co_names}.union(*(_names(one) for one in code.co_consts if isinstance(one, types.CodeType)))


def _asked_for_methods(code: types.CodeType) -> set[str]:
    """The globals of which the code takes an attribute, as a rule a method."""
    found: set[str] = set()
    for one, following in pairwise(dis.get_instructions(code)):
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME") and following.opname in ("LOAD_METHOD", "LOAD_ATTR"):
            found.add(one.argval)
    return found.union(*(_asked_for_methods(one) for one in code.co_consts if isinstance(one, types.CodeType)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
