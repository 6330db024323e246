"""What a model gets right, and what it costs: accuracy, agreement, calibration, size, MACs, memory and latency.

Quality is measured from logits and labels; costs are measured on a model, which is the same afterwards.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from numbers import Integral, Real
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import default_timer
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdlib import files
from kdlib.errors import INSTEAD_OF_MASKS, check_flags, may_be_of_shape
from kdlib.guards import eval_mode
from kdlib.hooks import plain_encoders
from kdlib.losses._common import sum_to_one

# torchmetrics, pandas and the timers are imported where they are used: together they take seconds to import.
if TYPE_CHECKING:
    import pandas

CHUNK_SIZE = 4096  # at a time: torchmetrics' top-k builds several N x C integer tensors
MAX_SECONDS = 10  # seconds: a slow model is not timed longer for the sake of five runs
MIN_RUNS = 5
LONGEST_RUN = 3600  # seconds
LARGEST_BATCH = 100_000_000  # of images, or pixels of a side
QUARTILES = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
LARGEST_TEMPERATURE = 100.0
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


def accuracy(logits: Tensor, labels: Tensor, top_k: int = 1) -> float:
    """Share of examples whose label is among the `top_k` largest logits, in [0, 1].

    logits: N x C; labels: N integers in [0, C). For top_k=1 a tie goes to the lowest class.
    Raises ValueError for empty or non-finite logits, labels that do not fit them, or top_k outside 1 to C.
    """
    from torchmetrics.functional.classification import multiclass_stat_scores

    logits, labels = _check_labels(logits, labels)
    classes = logits.shape[1]
    _check_integer(f"top_k of {classes} classes", top_k, high=classes)
    hits = 0
    for rows, truth in zip(logits.split(CHUNK_SIZE), labels.split(CHUNK_SIZE), strict=True):
        hits += int(multiclass_stat_scores(rows, truth, classes, average="micro", top_k=top_k)[0])
    return hits / len(labels)


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Share of examples on which student and teacher choose the same class, in [0, 1].

    Both: N x C, row i of both for the same view of the same image. Raises ValueError when the shapes differ.
    """
    student, teacher = _same_shape(student_logits, teacher_logits)
    return accuracy(student, teacher.argmax(1))


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (L1): gap of confidence and accuracy over equal bins, in [0, 1].

    logits: N x C, before softmax; labels: N. Softmax is applied here, because torchmetrics guesses from the
    values whether it was given logits or probabilities, and logits that lie in [0, 1] are mistaken. Bins are
    [low, high), the last one includes 1. Warns when the rows look like probabilities already.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, labels = _check_labels(logits, labels)
    _check_integer("bins", bins, high=1_000_000)
    if (logits >= 0).all() and sum_to_one(logits):
        warnings.warn(
            "Every row of the logits is non-negative and sums to 1, so these look like probabilities. "
            "calibration_error applies softmax itself: pass what the model returns before softmax.",
            stacklevel=2,
        )
    # torchmetrics gives a confidence of exactly 1 a bin of its own; just below 1 it joins the last bin.
    probabilities = logits.softmax(1).clamp_(max=BELOW_ONE)
    # NumPy's whole numbers are none to torchmetrics.
    return float(multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=int(bins), norm="l1"))


def repeated_mistakes(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> float:
    """Of the examples that the teacher gets wrong, the share on which the student gives the same wrong class.

    student_logits, teacher_logits: N x C, row i of both for the same image; labels: N. NaN for a teacher that makes no
    mistake. Raises ValueError when the shapes differ.
    """
    student, teacher = _same_shape(student_logits, teacher_logits)
    student, labels = _check_labels(student, labels)
    wrong = teacher.argmax(1) != labels
    same = student.argmax(1) == teacher.argmax(1)
    return float(same[wrong].double().mean())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that makes the cross-entropy of logits / temperature least (Guo et al. 2017).

    logits: N x C; labels: N, of VALIDATION examples: fitted where it is measured, it would flatter. It changes no
    answer, only how sure the network is of it: above 1 it was too sure, below 1 not sure enough. It is sought from
    1/100 to 100, and stays there where no minimum lies between: on examples that are all answered rightly, say, the
    cross-entropy falls as long as the temperature does. It is 1 where the cross-entropy is 0 there already. Raises
    ValueError for empty or non-finite logits, or labels that do not fit them.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = _check_labels(logits, labels)
    scores = (logits.double() - logits.double().gather(1, labels[:, None])).contiguous()

    def cross_entropy(log_temperature: float) -> float:
        return float((scores / math.exp(log_temperature)).logsumexp(1).mean())

    bound = math.log(LARGEST_TEMPERATURE)
    found = minimize_scalar(cross_entropy, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    # The cross-entropy is convex in 1 / temperature, so it has one minimum; the search stops short of a bound, and
    # anywhere on a plateau. Of equals the first is taken: 1 where the temperature changes nothing, then a bound.
    best = min((0.0, -bound, bound, float(found.x)), key=cross_entropy)
    return min(max(math.exp(best), 1 / LARGEST_TEMPERATURE), LARGEST_TEMPERATURE)


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Count of examples for each true class (rows) and predicted class (columns).

    logits: N x C; labels: N. Returns a LongTensor C x C on the CPU that sums to N.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    logits, labels = _check_labels(logits, labels)
    return multiclass_confusion_matrix(logits, labels, logits.shape[1]).long()


class UncountableError(ValueError):
    """A network whose weights lie where they cannot be counted, as those of many networks of integers do."""


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trainable or not; one that is used in several places counts once.

    Raises UncountableError, a ValueError, for weights inside a program (of `compress.quantize_pt2e`,
    torch.ao or torch.jit.freeze).
    """
    _refuse_hidden_weights(model)
    return sum(parameter.numel() for parameter in model.parameters())


def count_nonzero(model: nn.Module) -> int:
    """Number of parameters that are not zero, trainable or not; those of a masked weight as the mask leaves them.

    Raises UncountableError for a network of integers.
    """
    _refuse_integers(model)
    computed: dict[int, Tensor] = {}  # what a layer uses in place of a parameter, by the parameter it is made from
    with eval_mode(model), torch.no_grad():  # in train mode spectral_norm writes to its buffers
        for module in model.modules():
            if parametrize.is_parametrized(module):
                for name, chain_of_steps in module.parametrizations.items():  # type: ignore[union-attr, operator]
                    if hasattr(chain_of_steps, "original"):  # else it is made from several, as by weight_norm
                        computed[id(chain_of_steps.original)] = getattr(module, name)
            masks = dict(module.named_buffers(recurse=False))
            for name, parameter in module.named_parameters(recurse=False):  # as torch.nn.utils.prune leaves them
                mask = masks.get(name.removesuffix("_orig") + "_mask")
                if name.endswith("_orig") and mask is not None:
                    computed[id(parameter)] = parameter * mask
    return sum(int(computed.get(id(one), one).count_nonzero()) for one in model.parameters())


def bytes_in_memory(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are now, shared ones once; no gradients or activations.

    Weights that torchao holds in integers count as these and their scales. Raises UncountableError as
    `count_parameters`.
    """
    _refuse_hidden_weights(model)
    return sum(plain.numel() * plain.element_size() for tensor in _tensors(model) for plain in _plain_tensors(tensor))


def bytes_saved(model: nn.Module, half: bool = False) -> int:
    """Bytes of the model's state as a safetensors file without metadata; nothing is written.

    half: count floating-point tensors as 16 bits. Shared tensors count once, non-persistent buffers not.
    Raises UncountableError for a network of integers.
    """
    from safetensors.torch import save

    check_flags(half=half)
    _refuse_integers(model)
    # The size depends on names, shapes and types alone, so no weight is read: a model on "meta" will do.
    state = model.state_dict(keep_vars=True)
    files.refuse_extra_state(state)
    unique = {id(tensor): (name, tensor) for name, tensor in state.items()}
    blank = {}
    for name, tensor in unique.values():
        dtype = torch.float16 if half and tensor.is_floating_point() else tensor.dtype
        blank[name] = torch.empty(tensor.shape, dtype=dtype, device="cpu")
    return len(save(blank))


def zipped_bytes(state: nn.Module | Mapping[str, Tensor]) -> int:
    """Bytes of the model's state as a safetensors file after gzip: where many zeros or few values show.

    state: a model, or tensors by name, such as `compress.pack_weights` gives; shared tensors count once.
    Raises UncountableError for a network of integers.
    """
    from safetensors.torch import save

    if isinstance(state, nn.Module):
        _refuse_integers(state)
        state = state.state_dict(keep_vars=True)
        files.refuse_extra_state(state)
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise TypeError(f"A torch.nn.Module or a dict of tensors is expected, not {type(state).__name__}.")
    unique = {_memory(tensor): (name, tensor) for name, tensor in state.items()}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in unique.values()}
    return len(gzip.compress(save(plain), mtime=0))


def _memory(tensor: Tensor) -> tuple[Hashable, ...]:
    """Where a tensor's numbers lie and how they are read: a state_dict gives a shared one as several objects."""
    place = tensor.data_ptr() or id(tensor)  # an empty tensor lies nowhere
    return place, tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one forward pass for one example, by torch's own counter (its FLOPs / 2).

    input_shape: (C, H, W). Counts convolutions and products of two matrices (linear layers, attention); not those of a
    matrix and a vector (torch.mv, nn.Bilinear), torch.addbmm, distances (torch.cdist), biases, batch norm, activations,
    pooling or additions. It runs on a copy without the model's forward hooks, on the meta device (no arithmetic, no
    weights) or, where that is impossible, on the model's own device; attention and recurrent layers in steps, as the
    counter does not know what torch makes of them in one.
    Raises ValueError when the model does not accept such an input, UncountableError for a network of integers.
    """
    from torch.utils.flop_counter import FlopCounterMode

    shape = _image_shape(input_shape)
    _refuse_integers(model)
    home, dtype = _device_and_dtype(model)
    meta = torch.device("meta")
    devices = [meta] if home == meta else [meta, home]
    for device in devices:
        images = torch.zeros(1, *shape, dtype=dtype, device=device)
        try:
            with plain_encoders(), _in_steps(), torch.no_grad(), FlopCounterMode(display=False) as counter:
                copy_without_hooks(model, device, computed=True)(images)
            return counter.get_total_flops() // 2
        except Exception as error:
            failure = error
    if not may_be_of_shape(failure):
        raise failure
    raise _input_error(shape, failure) from failure


@contextmanager
def _in_steps() -> Iterator[None]:
    """Attention and recurrent layers as products of matrices: without the operators that do a layer in one."""
    from torch.backends import cudnn, mkldnn
    from torch.nn.attention import SDPBackend, sdpa_kernel

    libraries: tuple[Any, ...] = (cudnn, mkldnn)  # which have such operators for an LSTM
    before = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


@dataclass(frozen=True)
class Latency:
    """Seconds for one forward pass of one batch: median, interquartile range, every run.

    A very fast model is timed in blocks of many passes; a run is then the mean of a block.
    """

    median: float
    iqr: float
    runs: tuple[float, ...]
    batch_size: int
    threads: int

    def __str__(self) -> str:
        def count(number: int, thing: str) -> str:
            return f"{number} {thing}{'s' * (number != 1)}"

        return (
            f"{self.median * 1e3:.3f} ms (IQR {self.iqr * 1e3:.3f} ms over {count(len(self.runs), 'run')}, "
            f"batch of {self.batch_size}, {count(self.threads, 'thread')})"
        )


def clock(device: torch.device) -> Callable[[], float]:
    """The time after all work on this device; torch's own clock waits for the current device, which may be another."""
    if device.type not in ("cuda", "mps"):
        return default_timer

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        else:
            torch.mps.synchronize()
        return default_timer()

    return wait


def latency(
    model: nn.Module,
    input_shape: Sequence[int],
    batch_size: int = 1,
    threads: int | None = None,
    min_run_time: float = 0.5,
    device: str | torch.device | None = None,
) -> Latency:
    """Time of a forward pass in eval and inference mode, after a warm-up, by torch.utils.benchmark.

    input_shape: (C, H, W). threads: CPU threads, None for torch's present number. min_run_time: seconds to
    measure for; a slow model takes up to 10 for about five runs. device: None for the model's own, else a
    copy is timed there, without its forward hooks. Every module's train or eval mode is restored, also after
    an exception.
    Raises ValueError for an input or a device that cannot be used, and for a model without weights ("meta").
    """
    from torch.utils.benchmark import Timer

    shape = _image_shape(input_shape)
    threads = torch.get_num_threads() if threads is None else threads
    _check_integer("batch_size", batch_size, high=LARGEST_BATCH)
    # More than the cores only slows down, and millions end the process.
    _check_integer("threads", threads, high=max(64, 4 * (os.cpu_count() or 1)))
    batch_size, threads = int(batch_size), int(threads)  # of NumPy's numbers a report cannot be printed
    _check_seconds(min_run_time)
    model = _move(model, device)
    home, dtype = _device_and_dtype(model)
    images = torch.ones(batch_size, *shape, dtype=dtype, device=home)
    globals_ = {"model": model, "images": images}
    timer = Timer("model(images)", timer=clock(home), globals=globals_, num_threads=threads)
    _first_pass(model, images, shape)
    with eval_mode(model), torch.inference_mode():
        warm = timer.timeit(2).mean
        measured = timer.blocked_autorange(min_run_time=max(min_run_time, min(5 * warm, MAX_SECONDS)))
        runs, block = list(measured.times), measured.number_per_run
        # One long block may fill the whole time, and a single run has no spread.
        while len(runs) < MIN_RUNS and sum(runs) * block < MAX_SECONDS:
            runs.append(timer.timeit(block).mean)
    low, median, high = torch.tensor(runs, dtype=torch.float64).quantile(QUARTILES).tolist()
    return Latency(median, high - low, tuple(runs), batch_size, threads)


def _first_pass(model: nn.Module, images: Tensor, shape: tuple[int, int, int]) -> None:
    """Allocate memory, choose kernels, and let a network make what it keeps, which inference mode would spoil."""
    try:
        with eval_mode(model), torch.no_grad():
            model(images)
    except Exception as error:
        if not may_be_of_shape(error):
            raise
        raise _input_error(shape, error) from error


def peak_memory(model: nn.Module, input_shape: Sequence[int], batch_size: int = 1) -> int:
    """Bytes that a forward pass holds at most at one time beside its weights and input, by torch's profiler.

    input_shape: (C, H, W). What kernels take as working space counts, too. Measured on the CPU, in eval and inference
    mode, after a first pass that chooses kernels; a model that is elsewhere is copied, without its forward hooks.
    Raises ValueError for an input that cannot be used, and for a model without weights ("meta").
    """
    from torch.profiler import ProfilerActivity, profile

    shape = _image_shape(input_shape)
    _check_integer("batch_size", batch_size, high=LARGEST_BATCH)
    model = _move(model, "cpu")
    images = torch.ones(batch_size, *shape, dtype=_device_and_dtype(model)[1])
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler logs into the notebook
    _first_pass(model, images, shape)
    with eval_mode(model), torch.inference_mode():
        model(images)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            model(images)
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    moves = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in moves), default=0)  # what is given back is negative


def summary(
    models: Mapping[str, nn.Module],
    input_shape: Sequence[int],
    timed: bool = False,
) -> pandas.DataFrame:
    """One row a model: "parameters", "MACs" for one example, "MB" in memory (10^6 bytes), and "latency ms".

    input_shape: (C, H, W), the same for all. "latency ms" is the median for a batch of one, only if `timed`. NaN stands
    for what cannot be counted of a network of integers (UncountableError).
    """
    import pandas

    if not isinstance(models, Mapping) or not models:
        raise ValueError('summary needs a non-empty dict of models, such as {"teacher": t, "student": s}.')
    check_flags(timed=timed)
    table = pandas.DataFrame(index=pandas.Index(models, name="model"))
    table["parameters"] = [_or_nan(count_parameters, model) for model in models.values()]
    table["MACs"] = [_or_nan(macs, model, input_shape) for model in models.values()]
    table["MB"] = [_or_nan(bytes_in_memory, model) / 1e6 for model in models.values()]
    if timed:
        table["latency ms"] = [latency(model, input_shape).median * 1e3 for model in models.values()]
    return table


def _or_nan(count: Callable[..., int], *arguments: Any) -> float:
    try:
        return count(*arguments)
    except UncountableError:
        return math.nan


def _finite_logits(logits: Tensor, name: str = "logits") -> Tensor:
    """The logits on the CPU, detached, in at least 32 bits; an error unless N x C and finite."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"{name} must be a floating-point tensor N x C, not {kind}. Pass the model's output.")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"{name} have shape {tuple(logits.shape)}, but N x C with at least 2 classes is expected: "
            "a row for each example, a column for each class."
        )
    if len(logits) == 0:
        raise ValueError(f"{name} are empty: there is no example to measure. Check the data and the split.")
    bad = int((~logits.isfinite()).any(1).sum())
    if bad:
        raise ValueError(
            f"{name} are NaN or infinite in {bad} of {len(logits)} rows. The model has diverged or its "
            f"precision is too low: lower the learning rate or compute in fp32. {INSTEAD_OF_MASKS}"
        )
    logits = logits.detach().cpu()
    return logits.float() if logits.element_size() < 4 else logits


def _same_shape(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of both networks on the CPU; an error unless both are finite and N x C for the same N and C."""
    student = _finite_logits(student_logits, "student_logits")
    teacher = _finite_logits(teacher_logits, "teacher_logits")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_logits have shape {tuple(student.shape)} and teacher_logits {tuple(teacher.shape)}. "
            "Both must be N x C for the same examples and classes: evaluate both models on the same data."
        )
    return student, teacher


def _check_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits N x C and labels N on the CPU, or an error that says why they do not fit each other."""
    logits = _finite_logits(logits)
    count, classes = logits.shape
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a tensor of N integers (class indices), not {kind}.")
    if labels.shape != (count,):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but logits of {count} examples need ({count},): "
            "one class index for each row, not one-hot."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels run from {low} to {high}, but logits of {classes} classes allow 0 to {classes - 1}. "
            "Check the model's num_classes and that the labels start at 0."
        )
    return logits, labels.detach().cpu().long()


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_integer(name: str, value: object, high: float = float("inf")) -> None:
    """Raise ValueError unless the value is a whole number from 1 to `high`."""
    if not _is_integer(value) or not 1 <= value <= high:
        limits = f"from 1 to {high}" if high < 100_000 else "of at least 1"
        if isinstance(value, Integral) and 100_000 <= high < int(value):
            limits = f"of at most {high}"
        raise ValueError(f"{name} is {value!r}, but it must be a whole number {limits}.")


def _check_seconds(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= LONGEST_RUN:
        raise ValueError(
            f"min_run_time is {value!r}, but it must be a positive number of seconds, {LONGEST_RUN} at the most."
        )


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape as three ints, or an error that shows what is expected."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != 3 or not all(_is_integer(size) and 0 < size <= LARGEST_BATCH for size in sizes):
        raise ValueError(
            f"input_shape is {shape!r}, but (channels, height, width) of one image is expected: three "
            "positive whole numbers such as (3, 32, 32). Leave the batch size out."
        )
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _input_error(shape: tuple[int, int, int], error: Exception) -> ValueError:
    channels, height, width = shape
    return ValueError(
        f"The model failed on an input of shape (C, H, W) = {shape}. {type(error).__name__}: {error}\n"
        f"Check that its first layer takes {channels} channel(s) and that it was built for images of "
        f"{height} x {width} pixels."
    )


def _tensors(model: nn.Module) -> list[Tensor]:
    """All parameters and buffers, each once."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"A torch.nn.Module is expected, not {type(model).__name__}.")
    tensors = list(chain(model.parameters(), model.buffers()))
    if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
        raise ValueError("The model has lazy layers without a shape yet. Run one batch through it first.")
    return tensors


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that hold a tensor's numbers: itself, or what a tensor of torchao's is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(tensor, name))


def _refuse_hidden_weights(model: nn.Module) -> None:
    """Raise UncountableError for weights that are no parameters, and would be left out."""
    _tensors(model)
    for name, module in model.named_modules():
        packed = any(type(value) is torch.ScriptObject for value in vars(module).values())  # by torch.ao.quantization
        frozen = isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "training")  # by torch.jit.freeze
        if packed or frozen or getattr(module, "weights_in_program", False):
            raise UncountableError(
                f"{name or 'The network'} is a {type(module).__name__}, whose weights are inside a program, where they "
                "cannot be counted. Take the network that it was made from."
            )


def _refuse_integers(model: nn.Module) -> None:
    """Raise UncountableError for weights that are hidden, or are no plain tensors, as those that torchao quantizes."""
    _refuse_hidden_weights(model)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if hasattr(tensor, "__tensor_flatten__"):
            raise UncountableError(
                f"{name} is a {type(tensor).__name__}, whose numbers lie in other tensors: of such a network only "
                "parameters and bytes in memory are counted. For the rest take the network that it was made from."
            )


def _device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and type of the model's first floating-point tensor: what its input should have."""
    for tensor in _tensors(model):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def copy_without_hooks(model: nn.Module, device: str | torch.device, *, computed: bool = False) -> nn.Module:
    """A copy in eval mode on `device`, without the model's forward hooks; on "meta" no weight is copied.

    computed: copy also weights that are computed from others, as a mask does; torch refuses to (RuntimeError).
    """
    # What deepcopy finds in its memo it takes as copied already. The dict is keyed by the originals' ids.
    memo: dict[int, object] = {id(module._forward_hooks): OrderedDict() for module in model.modules()}
    meta = torch.device(device).type == "meta"
    if meta:
        for tensor in _tensors(model):
            blank = torch.empty_like(tensor, device="meta", requires_grad=False)
            parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(blank, requires_grad=False) if parameter else blank
    for module in model.modules() if computed else ():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # a masked weight, as the last pass has left it
                memo[id(value)] = torch.empty_like(value, device="meta") if meta else value.detach().clone()
    return copy.deepcopy(model, memo).to(device).eval()


def _move(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """The model itself, or a copy where `device` asks for another place; an error where none can run."""
    home, _ = _device_and_dtype(model)
    if "meta" in (home.type, str(device)):
        raise ValueError(
            "A model on the meta device has shapes but no weights, so it cannot be run. "
            'Build it on a real device or use model.to_empty(device="cpu").'
        )
    if not isinstance(device, str | torch.device | None):
        raise TypeError(f"device is a name, such as 'cpu' or 'cuda', or a torch.device; got {type(device).__name__}.")
    try:
        if device is None or torch.device(device) == home:
            return model
        return copy_without_hooks(model, device, computed=True)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"The model could not be copied to device {str(device)!r}: {error} Leave `device` out to time it "
            f"on {str(home)!r}, where it is."
        ) from error
