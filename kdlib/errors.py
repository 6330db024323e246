"""Error messages that name what was wrong, what was expected and what to do."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any


def unknown_name(kind: str, name: object, options: Iterable[str]) -> ValueError:
    """The error for a name that is not among `options`; near matches come first."""
    options = list(options)
    near = get_close_matches(str(name), options, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    shown = ", ".join(options[:40]) + (f", ... ({len(options)} in all)" if len(options) > 40 else "")
    return ValueError(f"There is no {kind} named {name!r}. {hint}Known: {shown}.")


def few(names: Sequence[str]) -> str:
    """The first three of these names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


INSTEAD_OF_MASKS = "Where classes are masked by -inf, take a large negative number: logits.clamp(min=-6e4)."


class DivergedError(FloatingPointError):
    """A training that went wrong. reason: what is not finite, and at which step; the text says what to do, too."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason} {advice}")
        self.reason = reason

    def __reduce__(self) -> tuple[type[DivergedError], tuple[str, str]]:
        return type(self), (self.reason, str(self)[len(self.reason) + 1 :])  # it may come from another process


LARGEST_WHOLE = 2**63 - 1  # torch counts in 64 bits


def check_whole(least: int = 1, most: int = LARGEST_WHOLE, **values: Any) -> None:
    """Raise ValueError for a value, by its name, that is no whole number from `least` to `most`; True is none."""
    for name, value in values.items():
        whole = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
        if whole is None or not least <= whole <= most:
            too_large = whole is not None and whole > most
            limits = f" of at most {most}" if too_large else "" if least <= -LARGEST_WHOLE else f" of at least {least}"
            raise ValueError(f"{name} is a whole number{limits}; got {value!r}.")


def as_whole(least: int = 1, most: int = LARGEST_WHOLE, **value: Any) -> int:
    """The one value as Python's int: JSON and some of torch know no NumPy numbers. Raises as `check_whole`."""
    check_whole(least, most, **value)
    (given,) = value.values()
    return int(given)


def check_real(**values: Any) -> None:
    """Raise TypeError for a value, by its name, that is no real number; True is none."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} is a number; got {value!r}.")


def check_flags(**values: Any) -> None:
    """Raise TypeError for a value, by its name, that is not True or False: "no" would count as True."""
    for name, value in values.items():
        if not (type(value).__name__ in ("bool", "bool_") or (isinstance(value, int) and value in (0, 1))):
            raise TypeError(f"{name} is True or False; got {value!r}.")


def check_kind(expected: str, kinds: Any, **values: Any) -> None:
    """Raise TypeError for a value, by its name, that is not of these kinds; expected: what it should be, in words."""
    for name, value in values.items():
        if not isinstance(value, kinds):
            kind = value.__name__ if isinstance(value, type) else type(value).__name__
            raise TypeError(f"{name} is {expected}; got {kind}.")


def check_path(**values: Any) -> None:
    """Raise TypeError for a value, by its name, that names no file or folder."""
    for name, value in values.items():
        if not isinstance(value, str | os.PathLike) or str(value) == "":
            raise TypeError(f"{name} is the path of a file or folder, a str or Path; got {value!r}.")


LONGEST_TEXT = 2000
FOR_USERS = (ValueError, OSError, FloatingPointError, ImportError)  # what is raised on purpose, in sentences
_OF_MEMORY = r"can't allocate memory|not enough memory|out of memory|Unable to allocate|size calculation overflowed"
_OF_SHARED_MEMORY = r"</torch_.*(No space left|Cannot allocate memory)|DataLoader worker.*Bus error"
_OF_A_PEER = r"closed by peer|Connection reset|connection was closed|gloo.*(tim|clos)|NCCL error|Timed out waiting"
_NOT_OF_SHAPE = rf"{_OF_MEMORY}|memory|CUDA error|cuDNN|unable to find an engine|not implemented"
_OF_DEVICES = r"same device|has not been allocated on MPS"
_KINDS_OF_TENSORS = (r"torch\.\w+Tensor", r"torch\.cuda\.\w+Tensor", r"MPS\w+Type")  # on a CPU, a GPU and MPS


def escape_unprintable() -> None:
    """Let stdout and stderr write what their encoding lacks as escapes, such as \\u0434: a name ends no command.

    On Windows the encoding of what is redirected or piped is a code page of 256 characters.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # in a notebook they are streams of another kind, which write everything
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def exit_in_a_sentence() -> Iterator[None]:
    """A command: whatever goes wrong inside ends in one sentence on stderr and exit code 2, not in a traceback.

    With KDLIB_TRACEBACK=1 the traceback is printed before it. It begins with `escape_unprintable`.
    """
    escape_unprintable()
    try:
        yield
    except Exception as error:
        if os.environ.get("KDLIB_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        process = f" (process {os.environ['RANK']})" if "RANK" in os.environ else ""
        print(f"kdlib{process}: {in_a_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def in_a_sentence(error: Exception) -> str:
    """What a user is told of an error: what happened and what to do; of one that nobody foresaw, how to find it."""
    kind, text = type(error).__name__, str(error)
    for_users = isinstance(error, FOR_USERS) or (isinstance(error, TypeError) and _raised_by_us(error))
    if "Original Traceback" in text:  # from a process that loads data: what it raised stands last
        kind, text = re.findall(r"^([A-Za-z_][\w.]*)(?:: (.*))?$", text, re.MULTILINE)[-1]
    text = " ".join(text.split())
    text = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ..."  # a user may give any name
    if re.search(_OF_SHARED_MEMORY, text):
        return (
            f"Shared memory, in which worker processes hand over images, is full ({text}). Take a smaller batch, or "
            "give more of it: in Docker by docker run --shm-size=2g, or --ipc=host. A run with --out goes on with "
            "--resume."
        )
    if isinstance(error, MemoryError) or re.search(_OF_MEMORY, text):
        return (
            f"There is not enough memory ({text or 'it could not be allocated'}). Take fewer images, fewer views, a "
            "smaller batch or fewer --workers; or store no outputs of the teacher, --views 0. Where it is a GPU's: "
            "--device cpu."
        )
    if "DataLoader worker" in text:
        return (
            f"A worker process that reads images was killed ({text}), as a rule because memory ran out. Take a smaller "
            "batch or, in Python, fewer workers: data.load(..., num_workers=1). A run with --out goes on with --resume."
        )
    if kind == "DecompressionBombError":
        return f"An image is too large to be decoded safely ({text}). Remove it from the data, or scale it down."
    if not for_users and _shares_a_training() and re.search(_OF_A_PEER, text):
        return (
            f"Another process of this training has ended or cannot be reached ({text}). Look at what it said; if this "
            "run had written a checkpoint, the same command with --resume (in place of --overwrite) goes on from it."
        )
    if for_users:
        return text or kind
    shown = f"{kind.rpartition('.')[2]}: {text}" if text else kind
    return f"{shown.rstrip('.')}. This was not expected: with KDLIB_TRACEBACK=1 the same command shows where it arose."


def _shares_a_training() -> bool:
    """Whether torchrun has started this process with others; `distributed` is not asked, as it loads torch."""
    started = os.environ.get("WORLD_SIZE", "1")
    return "RANK" in os.environ and started.isdigit() and int(started) > 1


def _raised_by_us(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and os.path.dirname(__file__) in frames[-1].filename


@contextmanager
def explain_shape_errors(role: str, inputs: Any) -> Iterator[None]:
    """Say what torch's complaint about a shape means here; role: the student, say, that was given these inputs."""
    try:
        yield
    except ValueError as error:
        axes = re.search(r"^expected (\d)D.*\(got (\d)D input\)$", str(error))  # torch's batch norm
        if axes is None or not getattr(inputs, "ndim", 0) == int(axes[2]) < int(axes[1]):
            raise  # it arose within the network, whose layers do not fit each other
        raise ValueError(
            f"The {role} cannot take {_described(inputs)} ({error}). Where the data are samples and no batches, give "
            "DataLoader(dataset, batch_size=...); pictures without channels get one by x[:, None]."
        ) from error
    except (RuntimeError, TypeError, AssertionError) as error:  # timm asserts the size of an image
        if not may_be_of_shape(error):
            raise
        if _names_two_devices(str(error)):
            raise ValueError(
                f"The {role} and what it was given lie on different devices ({error}). Move the batch, by "
                "devices.move_batch(batch, device), or the network, by .to(device); a tensor that its forward makes "
                "needs device=x.device."
            ) from error
        other_kind = str(getattr(inputs, "dtype", "torch.float32")) != "torch.float32"
        if other_kind and re.search(r"\bsame dtype\b|\btype .*\bthe same\b", str(error)):
            raise ValueError(
                f"The {role} cannot take {_described(inputs)} ({error}). Give it numbers of its own kind, as a rule by "
                "images.float(), or for bytes by v2.ToDtype(torch.float32, scale=True)."
            ) from error
        if re.search(r"\bsame dtype\b|\btype .*\bthe same\b", str(error)):
            raise ValueError(
                f"The {role} computes in another kind of number than its inputs have, {_described(inputs)} ({error}). "
                "Bring it to theirs, network.float(), or the inputs to its own, by Adapter(inputs=..., "
                "teacher_inputs=...)."
            ) from error
        if "view size is not compatible" in str(error):
            raise ValueError(
                f"The {role} calls .view() on maps, which kdlib lays out channels last ({error}). Write x.flatten(1) "
                "or x.reshape(...) in its forward."
            ) from error
        if getattr(inputs, "ndim", 0) == 4 and not isinstance(error, TypeError):
            channels, height, width = inputs.shape[1:]
            raise ValueError(
                f"The {role} cannot take images of {channels} x {height} x {width} ({error}). Build it with "
                f"in_channels={channels} and a stem for this size."
            ) from error
        raise ValueError(
            f"The {role} cannot take {_described(inputs)} ({error}). Say what it is called with: Adapter(inputs=..., "
            "teacher_inputs=...)."
        ) from error


def may_be_of_shape(error: Exception) -> bool:
    """Whether a network may have failed by the shape of its input; else the error says itself what is wrong.

    So do those of memory, of the GPU, and of an operator that is not there for this device or kind of number.
    """
    itself = isinstance(error, MemoryError | NotImplementedError) or re.search(_NOT_OF_SHAPE, str(error))
    return not itself


def _names_two_devices(text: str) -> bool:
    """Whether torch complains of tensors on two devices; a convolution tells it by the tensors' types alone."""
    kinds = sum(re.search(kind, text) is not None for kind in _KINDS_OF_TENSORS)
    return kinds > 1 or re.search(_OF_DEVICES, text) is not None


def _described(inputs: Any) -> str:
    """What a network was called with, in a few words."""
    if hasattr(inputs, "shape"):
        return f"a tensor of {tuple(inputs.shape)}, {inputs.dtype}"
    if isinstance(inputs, Mapping):
        return f"the fields {', '.join(map(str, inputs))}"
    return f"{len(inputs)} arguments" if isinstance(inputs, tuple | list) else f"a {type(inputs).__name__}"
