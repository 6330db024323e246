"""What every format needs: a network of its own, images in the right form, a trace, and silence."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import compress, measure
from kdlib.data import evenly_spaced
from kdlib.errors import check_kind, explain_shape_errors, few
from kdlib.guards import StateGuard, keep_modes

Predict = Callable[[Tensor], Tensor]  # normalized images N x C x H x W -> logits N x classes

CALIBRATION_IMAGES = 512  # at the most: more change no range of the activations


def need(*packages: str, extra: str) -> list[Any]:
    """Import these packages in silence; ImportError, naming kdlib's extra, if one is missing."""
    try:
        with quiet():
            return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        missing = (error.name or packages[0]).partition(".")[0]
        way = f'Run: pip install "kdlib[{extra}]".'
        if missing == "executorch" and sys.version_info >= (3, 15):  # for which pyproject.toml asks for none
            way = "With Python 3.15 try pip install executorch, or export in an environment with an older Python."
        raise ImportError(f"This format needs the package {missing}, which cannot be imported. {way}") from error


def float_copy(model: nn.Module) -> nn.Module:
    """A copy in float32, in eval mode, on the CPU, without the model's forward hooks; the model stays as it is.

    Weights that `compress` masks or rounds are plain in it: a mask would be in the file, too.
    Raises TypeError for what is no nn.Module, ValueError for weights that are missing or not finite.
    """
    check_kind("an nn.Module", nn.Module, model=model)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    compress.refuse_activation_rounding(model)
    measure.bytes_in_memory(model)  # refuses lazy layers
    try:
        copied = measure.copy_without_hooks(model, "cpu").float()
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"The network cannot be copied to the CPU ({_first_line(error)}). Build it on a real device; after "
            "torch.nn.utils.prune make the masks permanent with prune.remove."
        ) from error
    if any(map(compress.holds_weight, copied.modules())):
        copied = compress.finalize(copied)
    parameters = dict(copied.named_parameters())
    for name, tensor in [*parameters.items(), *copied.named_buffers()]:
        # A mask of attention may hold -inf; what is learned, and what a batch norm has seen, may not.
        learned = name in parameters or name.rpartition(".")[2].startswith("running_")
        if not tensor.isfinite().all() and (learned or bool(tensor.isnan().any())):
            raise ValueError(f"The network's {name} is not finite: it has diverged or is damaged. Train it anew.")
        tensor.data = _contiguous(tensor.data)
    return copied


@torch.no_grad()
def refuse_changing_hooks(model: nn.Module, images: Tensor) -> None:
    """Raise ValueError if the network answers these images otherwise without its forward hooks, which no file has.

    Hooks that only observe are called once more; mode and buffers stay as they were.
    """
    hooked = [name.removeprefix("_orig_mod").lstrip(".") for name, one in model.named_modules() if one._forward_hooks]
    if not hooked:
        return
    weight = next(model.parameters(), images)
    plain = measure.copy_without_hooks(getattr(model, "_orig_mod", model), weight.device, computed=True)
    guard = StateGuard(model)
    with keep_modes(model), torch.compiler.set_stance("force_eager"):
        # In place, either of them would overwrite what the other one is given.
        found, expected = (one(images.to(weight, copy=True)) for one in (model.eval(), plain))
    guard.restore()
    same = isinstance(found, Tensor) and found.shape == expected.shape
    largest = float(expected.where(expected.isfinite(), 0).abs().max())  # classes may be masked by -inf
    if not same or not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * largest):
        raise ValueError(
            f"A forward hook on {few([name or 'the network itself' for name in hooked])} changes the answers, and "
            "forward hooks are not exported. Write what it does into forward, or remove it."
        )


def _contiguous(images: Tensor) -> Tensor:
    """The same values in the plain order of memory.

    Not `contiguous()`: a tensor of one channel that is channels_last counts as contiguous, keeps its strides, and
    ExecuTorch then writes a file that fails when it is run.
    """
    return images.detach().clone(memory_format=torch.contiguous_format)


def check_images(name: str, images: Any) -> Tensor:
    """The images on the CPU, contiguous; an error unless they are finite floats N x C x H x W with N of at least 1."""
    check_kind("a tensor of normalized images N x C x H x W", Tensor, **{name: images})
    if images.dtype != torch.float32:
        raise TypeError(
            f"{name} are normalized images in torch.float32; got {images.dtype}. data.normalized_images gives them."
        )
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{name} have shape {tuple(images.shape)}; expected N x C x H x W, a batch of images.")
    if len(images) == 0:
        raise ValueError(f"{name} are empty: give at least one image, of those the network was trained on.")
    if not images.isfinite().all():
        raise ValueError(f"{name} hold values that are NaN or infinite. Look at how they were normalized.")
    return _contiguous(images.cpu())


def calibration_sample(calibration: Any) -> Tensor:
    """At most CALIBRATION_IMAGES of the images, evenly spaced, so that images in the order of their classes will do."""
    images = check_images("calibration", calibration)
    return images[evenly_spaced(len(images), CALIBRATION_IMAGES)]


@torch.no_grad()
def check_output(model: nn.Module, example: Tensor) -> None:
    """Raise ValueError unless the network takes these images and gives logits N x classes."""
    with explain_shape_errors("network", example):
        logits = model(example)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(example):
        shown = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(
            f"The network gives {shown} for {len(example)} image(s); expected one tensor of logits N x classes: "
            "export is for classifiers of images. Where there is one among other outputs, wrap the network in an "
            "nn.Module whose forward gives it alone."
        )


def trace(model: nn.Module, example: Tensor, *, dynamic: bool) -> Any:
    """The network as torch.export's graph; dynamic: for batches of any size, else for that of the example.

    Raises ValueError for a network that cannot be traced.
    """
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    with explain(
        model,
        "cannot be traced by torch.export",
        "Its forward must not decide by the values of a tensor, nor leave torch on its way",
    ):
        return torch.export.export(model, (example,), dynamic_shapes=shapes)


@contextlib.contextmanager
def explain(model: nn.Module, what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a package raises inside, which may be a page long, into a ValueError of one sentence."""
    try:
        yield
    except (OSError, MemoryError):  # a full disk is no fault of the network
        raise
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        raise ValueError(f"This {type(model).__name__} {what} ({_first_line(root)}). {remedy}.") from error


def _first_line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip() or type(error).__name__
    return text.partition("\n")[0].strip().rstrip(".")[:300]


def check_file(path: str | Path) -> Path:
    """The path of a file that is there; FileNotFoundError if it is not."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path, or export the network first.")
    return path


def check_input(path: Path, images: Any, shape: Sequence[Any]) -> Tensor:
    """The images on the CPU; an error unless a network of this input shape (None or a name: any size) can take them."""
    check_kind("a tensor of normalized images N x C x H x W", Tensor, images=images)
    fits = images.ndim == 4 and all(
        not isinstance(want, int) or want == got for want, got in zip(shape, images.shape[1:], strict=True)
    )
    if not fits or images.dtype != torch.float32 or len(images) == 0:
        wanted = " x ".join(map(str, shape))
        raise ValueError(
            f"The network in {path} takes float32 images N x {wanted}; got {images.dtype} of shape "
            f"{tuple(images.shape)}."
        )
    return images.detach().cpu()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that is said inside reaches the screen: prints, warnings, log lines and what C++ writes by itself.

    Exporters report progress and warn about their own code, in a lesson or a log where nobody can act on it. What
    goes wrong is raised.
    """
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        _descriptor_to_nowhere(1),
        _descriptor_to_nowhere(2),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def _descriptor_to_nowhere(number: int) -> Iterator[None]:
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none in a program without a screen
            stream.flush()  # type: ignore[union-attr]  # what was said before is not to be lost
    try:
        saved = os.dup(number)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)
        os.close(nowhere)
