"""How a trained network does on a dataset."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from kdlib import devices, distributed, losses, models, tasks
from kdlib.adapters import Adapter
from kdlib.data import DataModule, IndexedDataset, inference_batch_size
from kdlib.errors import INSTEAD_OF_MASKS, as_whole, check_flags, check_kind, explain_shape_errors
from kdlib.losses.logits import check_labels
from kdlib.methods import refuse_binary_cross_entropy
from kdlib.tasks import Classification, Task
from kdlib.teachers import Ensemble, FrozenTeacher, class_names

HardLoss = Callable[[Any, Any], Tensor]  # of output and labels, which may be dicts


@dataclass(frozen=True)
class Metrics:
    """How a model does on a dataset.

    accuracy: in [0, 1], over all decisions between classes; NaN for a task without classes, and for labels which only
    a loss can read: in a dict, or neither one for each row nor a share of each class. loss: the mean cross-entropy in
    nats, or of the loss that was given. logits: of a classifier, N x C; None for other tasks, where the batches differ
    in C, and where they were not to be kept.
    """

    accuracy: float
    loss: float
    logits: Tensor = field(repr=False)


def evaluate(
    model: nn.Module,
    dataset: IndexedDataset | Dataset | Iterable[Any],
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    role: str = "model",
    adapter: Adapter | None = None,
    task: str | Task = "classification",
    loss: HardLoss | None = None,
    keep_logits: bool = True,
) -> Metrics:
    """Accuracy, loss and logits of a model on a whole dataset, not augmented; the model comes back as it was.

    dataset: a split of a `DataModule`, a torch Dataset of samples, or a loader: anything that gives batches, and ends.
    batch_size: for a split or a Dataset; default 250, and fewer of a split's images above 224 x 224 pixels. precision:
    as for `train.fit`. role: what an error calls the model; "teacher" also reads the adapter's teacher_inputs and
    teacher_logits. adapter, task: what a loader's batches are, as for `Distiller`. loss: of output, as rows N x C (see
    `tasks`; of several labels the pairs (0, z)), and labels, for a task without classes, or one that leaves out samples
    without a label: labels below 0 do not count then. In a classification it is that of all rows at once, as weights of
    classes need it, so one that relates samples to each other takes the whole dataset for one batch; where batches
    differ in their classes, or each sample is a class of its own (B x B), and in other tasks it is a mean over batches.
    There a batch has the weight of its rows, in a task without classes of its samples, however many of their targets
    the loss leaves out; for an nn.CrossEntropyLoss(weight=...) it has the weight of its labels, as if all were one
    batch, and of another loss with weights of classes the mean depends on the size of the batches.
    keep_logits: False where accuracy and loss are enough; then the logits of all samples take no memory, but for a loss
    that is given: it sees all rows at once.
    Under torchrun every process must call it: of a split each computes its shard, of a loader the whole, and all get
    the same metrics.
    Raises ValueError for an empty dataset, inputs that the model cannot take, labels of classes that it has not,
    or, among several processes, a loader with a DistributedSampler; TypeError for what gives no batches;
    FloatingPointError for logits that are not finite, but for some that are -inf, as of masked classes that are no
    labels.
    """
    check_kind("an nn.Module", nn.Module, model=model)
    batch_size = None if batch_size is None else as_whole(batch_size=batch_size)
    check_kind("what an error calls the model, such as 'teacher'", str, role=role)
    check_kind(
        "a kdlib.adapters.Adapter, such as Adapter(inputs='image', labels='species')", Adapter | None, adapter=adapter
    )
    check_flags(keep_logits=keep_logits)
    if loss is not None and not callable(loss):
        raise TypeError(f"loss is a function of output and labels, such as F.mse_loss; got {type(loss).__name__}.")
    task, adapter = tasks.resolve(task), adapter or Adapter()
    refuse_binary_cross_entropy("loss", loss, task)
    if isinstance(dataset, Dataset):
        dataset = DataLoader(dataset, batch_size or 250)
    if isinstance(dataset, DataModule | Tensor | str) or not (
        hasattr(dataset, "iter_batches") or isinstance(dataset, Iterable)
    ):
        raise TypeError(
            f"A model is evaluated on a split, data.test, or on a loader or Dataset; got {type(dataset).__name__}."
        )
    refuse_shard("dataset", dataset)
    is_split = hasattr(dataset, "iter_batches")
    if is_split and (loss is not None or not isinstance(task, Classification)):
        raise ValueError("A split holds images of one class each: leave out task and loss, or give a DataLoader.")
    config = devices.resolve(device, task.precision(precision))
    # The same promise is wanted here: eval mode, no gradient, given back unchanged.
    if role == "teacher":
        read_inputs, read_logits = adapter.teacher_inputs_of, adapter.teacher_logits_of
    else:
        read_inputs, read_logits = adapter.student_inputs_of, adapter.logits_of
    if isinstance(loss, nn.Module) and any(one.device.type != config.device.type for one in _tensors_of(loss)):
        loss = copy.deepcopy(loss).to(config.device)  # with its weights of classes, say, and the user's own stays
    frozen = FrozenTeacher(model, read_inputs=read_inputs, read_logits=read_logits, role=role)
    with model.lent_to(task) if isinstance(model, Ensemble) else nullcontext():
        if is_split:
            return _evaluate_split(frozen, dataset, config, batch_size, role, keep_logits)  # type: ignore[arg-type]
        loader = cast("Iterable[Any]", dataset)
        return _evaluate_batches(frozen, loader, config, role, adapter, read_inputs, task, loss, keep_logits)


@torch.no_grad()
def _evaluate_split(
    frozen: FrozenTeacher,
    dataset: IndexedDataset,
    config: devices.DeviceConfig,
    batch_size: int | None,
    role: str,
    keep_logits: bool,
) -> Metrics:
    count = len(dataset)
    if count == 0:
        raise ValueError("The split is empty: there is nothing to evaluate on.")
    batch_size = inference_batch_size(dataset) if batch_size is None else batch_size
    shard = torch.arange(count)[distributed.shard(count)]
    lowest, highest = int(dataset.labels.min()), int(dataset.labels.max())
    kept: list[Tensor] = []
    sums = torch.zeros(3, dtype=torch.float64)  # over all rows: of the loss, of those right, of those not finite
    with frozen.activate((), config):
        for batch in dataset.iter_batches(batch_size, sampler=shard, device=config.device):
            with explain_shape_errors(role, batch.images):
                rows = Classification().rows(frozen(batch).logits.float().cpu(), None, role)[0]
            classes = rows.shape[1]
            if lowest < 0:
                raise ValueError(f"There are labels down to {lowest}; expected 0 to {classes - 1}, one for each logit.")
            if highest >= classes:
                raise ValueError(
                    f"The {role} gives {classes} logits, but there are labels up to {highest}: it was built for other "
                    "classes."
                )
            labels = batch.labels.cpu()
            parts = (
                F.cross_entropy(rows, labels, reduction="none"),
                is_right(rows, labels),
                Classification().damaged(rows),
            )
            sums += torch.stack([part.double().sum() for part in parts])
            if keep_logits:
                kept.append(rows)
    distributed.all_reduce(sums)
    total, right, bad = sums.tolist()
    _refuse_damaged(int(bad), count, "images", role)
    _refuse_masks(role, total)
    logits = None
    if keep_logits:
        own = torch.cat(kept)
        kept.clear()  # of many classes they are gigabytes
        logits = distributed.all_gather_rows(own, count)
    return Metrics(right / count, total / count, logits)  # type: ignore[arg-type]


@torch.no_grad()
def _evaluate_batches(
    frozen: FrozenTeacher,
    loader: Iterable[Any],
    config: devices.DeviceConfig,
    role: str,
    adapter: Adapter,
    read_inputs: Callable[[Any], Any],
    task: Task,
    loss: HardLoss | None,
    keep_logits: bool,
) -> Metrics:
    if loss is None and not task.has_classes:
        raise ValueError(
            "This task has no classes, so no cross-entropy: say what is measured, evaluate(..., loss=F.mse_loss)."
        )
    total, weights, right, count, seen, bad, kept, kept_labels = 0.0, 0.0, 0.0, 0, 0, 0, [], []
    given = None
    with frozen.activate((), config):
        for number, given in enumerate(loader):
            batch = devices.move_batch(given, config.device)
            labels = adapter.labels_of(batch)
            if labels is None:
                raise ValueError("A batch without labels cannot be evaluated. Say where they are: Adapter(labels=...).")
            if number == 0:
                _warn_of_inputs_as_labels(task, batch, labels)
            if stacks_samples_of_stream(loader):
                refuse_stacked_batches(read_inputs(batch), labels, task)
            with explain_shape_errors(role, read_inputs(batch)):
                logits = frozen(batch).logits.float()
            try:
                rows, row_labels = task.rows(logits, labels, role)
            except tasks.NothingCounts:  # as of a picture that is all background
                continue
            assert row_labels is not None  # as the labels are there
            damaged = int(task.damaged(rows).sum())
            bad += damaged
            elsewhere = isinstance(row_labels, Tensor) and row_labels.device.type != "cpu"
            if loss is None and elsewhere and not row_labels.is_floating_point():
                check_labels(row_labels.cpu(), rows)  # here: a wrong one would stop the program on CUDA
            # Not torch's own cross-entropy, which leaves out labels of -100 and is silent about it.
            value = losses.label_smoothing(rows, row_labels, 0.0) if loss is None else _mean(loss, rows, row_labels)
            judged = is_judged(row_labels, rows, task)
            counted = int(has_label(row_labels).sum()) if judged else len(rows)
            if counted:
                if not damaged and bool(rows.isneginf().any()):
                    _refuse_masks(role, value.item())
                weight = _divisor(loss, row_labels, counted)
                total += value.item() * weight if weight else 0.0
                weights += weight
                right += int(is_right(rows, row_labels).sum()) if judged else float("nan")
            count += counted
            seen += len(rows)
            if isinstance(task, Classification) and (keep_logits or loss is not None):
                kept.append(rows.cpu())
                kept_labels.append(row_labels)
    if count == 0:
        nothing = (
            "All samples are without a label (below 0), or ignored"
            if given is not None
            else "The loader gives no batch"
        )
        raise tasks.NothingCounts(f"{nothing}: there is nothing to evaluate on.")
    _refuse_damaged(bad, seen, "samples", role)
    mean = total / weights if weights else float("nan")
    pairs = zip(kept, kept_labels, strict=True)
    within_batch = all(len(rows) == rows.shape[1] and _are_own_classes(labels) for rows, labels in pairs)
    all_rows, all_labels = _joined(kept), _joined(kept_labels)
    kept.clear()  # of many classes they are gigabytes
    if loss is not None and all_rows is not None and all_labels is not None and not within_batch:
        # At once: with weights of classes a mean over batches would depend on their size.
        mean = _mean(loss, all_rows.to(config.device), all_labels).item()
    return Metrics(right / count, mean, all_rows if keep_logits else None)  # type: ignore[arg-type]


def _mean(loss: HardLoss, rows: Tensor, labels: Any) -> Tensor:
    """What a loss of the user's own gives; ValueError unless it is a single number."""
    found = loss(rows, labels)
    if not isinstance(found, Tensor) or found.numel() != 1:
        kind = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"A loss gives a tensor of one number, its mean over the rows; this one gave {kind}. Of torch's losses "
            'that is reduction="mean".'
        )
    return found


def _divisor(loss: HardLoss | None, labels: Any, rows: int) -> float:
    """What a mean over a batch was divided by: its rows, or the weights of their labels."""
    if not isinstance(loss, nn.CrossEntropyLoss) or type(loss).forward is not nn.CrossEntropyLoss.forward:
        return rows  # one with a forward of its own may take its mean otherwise
    if loss.weight is None or loss.reduction != "mean":
        return rows
    if labels.is_floating_point():  # the shares of the classes, whose loss torch divides by the rows
        return rows
    return loss.weight[labels[labels != loss.ignore_index].long()].sum().item()  # bytes would be taken for a mask


def _joined(parts: list[Any]) -> Tensor | None:
    """The batches as one tensor; None unless they are tensors that differ in their number of samples only."""
    alike = all(isinstance(one, Tensor) and one.ndim for one in parts) and len({one.shape[1:] for one in parts}) == 1
    return torch.cat(parts) if alike else None


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _are_own_classes(labels: Any) -> bool:
    """Whether each sample of a batch is a class of its own, as in contrastive learning."""
    return (
        isinstance(labels, Tensor)
        and labels.ndim == 1
        and torch.equal(labels, torch.arange(len(labels), device=labels.device))
    )


def _warn_of_inputs_as_labels(task: Task, batch: Any, labels: Any) -> None:
    """Warn of what a training refuses; here it may be meant, as of a text without errors that is to be corrected."""
    try:
        task.check_batch(batch, labels)
    except ValueError as error:
        warnings.warn(str(error), stacklevel=5)


def samplers_of(loader: Any) -> list[Any]:
    """The samplers of a DataLoader, and those from which its samplers of batches draw."""
    own = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    return [one for one in (*own, *(getattr(sampler, "sampler", None) for sampler in own)) if one is not None]


def is_shard(loader: Any) -> bool:
    """Whether this is a DataLoader that gives each process another part of its Dataset."""
    return any(isinstance(sampler, DistributedSampler) for sampler in samplers_of(loader))


def refuse_shard(name: str, loader: Any) -> None:
    """Raise ValueError, among several processes, for a loader to be measured on that gives each another part."""
    if distributed.world_size() > 1 and is_shard(loader):
        raise ValueError(
            f"{name}: each process would measure another part. Give its Dataset, or a DataLoader without a "
            "DistributedSampler."
        )


def stacks_samples_of_stream(loader: Any) -> bool:
    """Whether this is a DataLoader that makes batches of what an IterableDataset gives."""
    stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
    return stream and getattr(loader, "batch_size", None) is not None


def refuse_stacked_batches(inputs: Any, labels: Any, task: Task) -> None:
    """Raise ValueError for what seem to be batches of a classification that were put together like samples."""
    if not (isinstance(task, Classification) and isinstance(inputs, Tensor) and isinstance(labels, Tensor)):
        return
    axes = labels.ndim - int(labels.is_floating_point())  # floats are the shares of the classes
    # Four axes have pictures, whose channels may be as many as their labels, and of size 1 an axis may be a channel.
    if inputs.ndim != 4 and axes == 2 and labels.shape[:2] == inputs.shape[:2] and labels.shape[1] > 1:
        raise ValueError(
            "The stream seems to give batches already, and they were put together as if they were samples: inputs of "
            f"shape {tuple(inputs.shape)} with labels of {tuple(labels.shape)}, where a sample has one label. Give "
            "DataLoader(stream, batch_size=None), which takes the batches as they are."
        )


def is_judged(labels: Any, rows: Tensor, task: Task) -> TypeGuard[Tensor]:
    """Whether these labels say which rows N x C are right: a class for each, N, or a share (a float) of each class."""
    if not task.has_classes or not isinstance(labels, Tensor):
        return False
    return labels.shape == rows.shape[:1] or labels.shape == rows.shape and labels.is_floating_point()


def accuracy(rows: Tensor, labels: Tensor) -> Tensor:
    """The share of rows N x C whose largest logit is at the label, or at the class with the largest share.

    Of the rows that have a label: one below 0 stands for none. NaN where no row has one.
    """
    return is_right(rows, labels).float().sum() / has_label(labels).sum()


def is_right(rows: Tensor, labels: Tensor) -> Tensor:
    """Which rows N x C have their largest logit at the label, or at the class with the largest share: N."""
    return rows.argmax(1) == (labels.argmax(1) if labels.ndim == 2 else labels)  # never at a label below 0


def has_label(labels: Tensor) -> Tensor:
    """Which rows have a label, N: all where labels are the shares of the classes, N x C."""
    return torch.ones(len(labels), dtype=torch.bool, device=labels.device) if labels.ndim == 2 else labels >= 0


def _refuse_masks(role: str, loss: float) -> None:
    """Raise FloatingPointError for a loss that is not finite, of logits that are numbers or, where masked, -inf."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"The {role}'s logits are -inf for some classes, and their loss is {loss}: a class that is a label cannot "
            f"be masked so, and where labels are shares of the classes, none can. {INSTEAD_OF_MASKS} Where nothing is "
            "masked, the network has diverged: train it anew with a lower learning rate."
        )


def _refuse_damaged(bad: int, count: int, what: str, role: str) -> None:
    # argmax takes NaN for the largest logit, so a broken network would be right about one class.
    if bad:
        raise FloatingPointError(
            f"The {role}'s logits are not finite for {bad:,} of {count:,} {what}. Its weights are damaged or have "
            "diverged: train it anew with a lower learning rate; or evaluate with precision='fp32', if they are good. "
            "First see that the inputs of these samples are finite themselves."
        )


def check_class_names(role: str, model: Any, data: DataModule) -> None:
    """Raise ValueError where a model's file names other classes than the data, or the same in another order.

    Of networks that answer together each is looked at, and of a cache what it was built of.
    """
    names = next((one for one in class_names(model) if one != data.classes), None)
    if names is None:
        return
    same = set(names) == set(data.classes)
    example = next((pair for pair in zip(names, data.classes, strict=False) if pair[0] != pair[1]), None)
    if example is None:  # one has more, behind those of the other
        more = (names if len(names) > data.num_classes else data.classes)[min(len(names), data.num_classes)]
        raise ValueError(
            f"The {role} was trained with {len(names)} classes, and {data.name} has {data.num_classes}: {more!r} is in "
            f"one of them only. Give the data the classes of the {role}, or train it anew."
        )
    raise ValueError(
        f"The {role} was trained with {'the same classes in another order' if same else 'other classes'} than those of "
        f"{data.name}: its {example[0]!r} stands where the data have {example[1]!r}. Name the folders of the classes "
        f"as they were for the {role}, or train it anew."
    )


def warn_of_other_images(role: str, model: Any, data: DataModule) -> None:
    """UserWarning for a trained model whose images were normalised otherwise than these, or had another size.

    A network that `fit` trained on a DataModule knows the size of its images, and so does its file; a zoo's network
    knows how they were normalised.
    """
    trained, given = models.find_normalization(model), (data.train.mean, data.train.std)
    if trained is not None and [len(one) for one in trained] == [len(one) for one in given]:
        pairs = [pair for one, other in zip(trained, given, strict=True) for pair in zip(one, other, strict=True)]
        if max(abs(a - b) for a, b in pairs) > 0.01:
            warnings.warn(
                f"The {role} was trained on images normalised by mean {_shown(trained[0])} and standard deviation "
                f"{_shown(trained[1])}; those of {data.name} have {_shown(given[0])} and {_shown(given[1])}, so "
                "what it says of them is distorted. Give the data its own: data.from_datasets(..., mean=..., std=...).",
                stacklevel=3,
            )
    size = models.find_trained_size(model)
    if size is not None and size != data.image_size:
        warnings.warn(
            f"The {role} was trained on images of {size} pixels a side, and those of {data.name} have "
            f"{data.image_size}: as a rule it is right less often. A folder's images have the size that its name says: "
            f"imagefolder@{size}:PATH.",
            stacklevel=3,
        )


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def check_teacher(teacher: nn.Module, data: DataModule, *, device: str, precision: str) -> None:
    """As `check_network`; and warn of a teacher that was trained on other images."""
    check_class_names("teacher", teacher, data)  # first: other classes are the graver fault
    for network in teacher.members if isinstance(teacher, Ensemble) else [teacher]:
        warn_of_other_images("teacher", network, data)
    check_network("teacher", teacher, data, device=device, precision=precision)


def check_network(role: str, network: nn.Module, data: DataModule, *, device: str, precision: str) -> None:
    """Raise ValueError for a network that was built for other images or classes, before the slow work."""
    check_class_names(role, network, data)
    few = min(max(2, distributed.world_size()), len(data.validation))  # each process has a share of them
    images = data.validation.select(torch.arange(few))
    metrics = evaluate(network, images, device=device, precision=precision, role=role)
    check_classes(role, metrics.logits, data)


def check_classes(role: str, logits: Tensor, data: DataModule) -> None:
    """Raise ValueError unless these logits have a column for each class of the data."""
    if logits.shape[1] != data.num_classes:
        raise ValueError(
            f"The {role} gives {logits.shape[1]} logits, but {data.name} has {data.num_classes} classes. "
            f"Build it with num_classes={data.num_classes}."
        )
