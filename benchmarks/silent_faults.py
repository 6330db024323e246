"""Mistakes that people make in distillation, given to each library: which are refused, which pass in silence?

make .venv-peers/.ready && .venv-peers/bin/python benchmarks/silent_faults.py
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

os.environ["KERAS_BACKEND"] = "torch"  # read once, by the import

import keras
import modelopt.torch.distill as mtd
import rounds
import textbrewer
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torchdistill.core.distillation import get_distillation_box
from torchdistill.losses.registry import register_mid_level_loss

from kdlib import methods, train
from kdlib.distiller import Distiller

CLASSES, SAMPLES, INPUTS, HIDDEN = 5, 8, 6, 7
TEMPERATURE, LEARNING_RATE = 4.0, 0.1


@dataclass(frozen=True)
class Setup:
    """A distillation; each fault changes one field of it."""

    probabilities: bool = False  # of the student, in place of logits
    teacher_trains: bool = False  # it is left in train mode
    shared: bool = False  # student and teacher have the same layers but for the head
    teacher_nan: bool = False  # one of its weights
    teacher_classes: int = CLASSES
    temperature: float = TEMPERATURE
    alpha: float = 0.5  # the weight of the hard labels; 1 - alpha is that of the teacher
    layer: str | None = None  # of the student, matched with the teacher's "body"
    per_sample: bool = False  # a loss of one's own, whose mean is not taken
    largest_label: int = CLASSES - 1

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels."""
        inputs = torch.randn(SAMPLES, INPUTS, generator=torch.Generator().manual_seed(2))
        labels = torch.arange(SAMPLES) % CLASSES
        labels[0] = self.largest_label
        return inputs, labels


FAULTS = {
    "the student gives probabilities, not logits": Setup(probabilities=True),
    "the teacher is left in train mode": Setup(teacher_trains=True),
    "student and teacher share layers": Setup(shared=True),
    "a weight of the teacher is NaN": Setup(teacher_nan=True),
    "student with 5 classes, teacher with 1": Setup(teacher_classes=1),
    "temperature 0": Setup(temperature=0.0),
    "temperature -4": Setup(temperature=-4.0),
    "alpha 1.5": Setup(alpha=1.5),
    "a layer that does not exist": Setup(layer="nowhere"),
    "a loss of one's own gives a number per sample": Setup(per_sample=True),
    "a label out of range": Setup(largest_label=CLASSES),
}


class NoSuchOption(Exception):
    """The library has nothing that this mistake could be made with."""


class Network(nn.Module):
    """Body, batch norm and head; the weights are the same in every library."""

    def __init__(self, classes: int, seed: int, probabilities: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body, self.norm = nn.Linear(INPUTS, HIDDEN), nn.BatchNorm1d(HIDDEN)
            self.head = nn.Linear(HIDDEN, classes)
        self.head.weight.data *= 4  # an opinion worth teaching
        self.last = nn.Softmax(dim=1) if probabilities else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, or probabilities."""
        return self.last(self.head(self.norm(self.body(inputs))))


@dataclass(frozen=True)
class Networks:
    """A student and a teacher of the same shape: body, batch norm, head."""

    student: Network
    teacher: Network

    @classmethod
    def build(cls, setup: Setup) -> Networks:
        """With the faults that lie in the networks."""
        teacher, student = Network(setup.teacher_classes, seed=1), Network(CLASSES, 0, setup.probabilities)
        if setup.shared:
            student.body, student.norm = teacher.body, teacher.norm
        if setup.teacher_nan:
            teacher.head.weight.data[0, 0] = math.nan
        student.train()
        teacher.train(setup.teacher_trains)
        return cls(student, teacher)


def own_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One number per sample: the mistake."""
    return (student - teacher).square().mean(dim=1)


# -------------------- one step in each library; each returns the loss


_WHO = ("student", "teacher")


@register_mid_level_loss
class OwnLoss(nn.Module):
    """`own_loss` as torchdistill has it."""

    def forward(
        self, student: dict[str, dict[str, Tensor]], teacher: dict[str, dict[str, Tensor]], _: Tensor
    ) -> Tensor:
        """From what hooks have stored."""
        return own_loss(student["."]["output"], teacher["."]["output"])


def torchdistill(setup: Setup, networks: Networks) -> float:
    """A DistillationBox with KDLoss, and a wrapped MSELoss for the layer."""
    logits = {f"{who}_module_{what}": value for who in _WHO for what, value in (("path", "."), ("io", "output"))}
    kd_loss = {"key": "KDLoss", "kwargs": {**logits, "temperature": setup.temperature, "alpha": setup.alpha}}
    terms = {"kd": {"criterion": kd_loss, "weight": 1.0}}
    hooks = {who: {} for who in _WHO}
    if setup.layer:
        hooks = {"student": {"output": [setup.layer]}, "teacher": {"output": ["body"]}}
        places = {
            "input": {"is_from_teacher": False, "module_path": setup.layer, "io": "output"},
            "target": {"is_from_teacher": True, "module_path": "body", "io": "output"},
        }
        wrapper = {"key": "SimpleLossWrapper", "kwargs": places}
        mse = {"key": "MSELoss", "kwargs": {}}
        terms["layer"] = {"criterion": mse, "criterion_wrapper": wrapper, "weight": 1.0}
    if setup.per_sample:
        terms["own"] = {"criterion": {"key": "OwnLoss", "kwargs": {}}, "weight": 1.0}
    config = {
        "num_epochs": 1,
        **{
            who: {
                "forward_proc": "forward_batch_only",
                "sequential": [],
                "requires_grad": who == "student",
                "forward_hook": hooks[who],
            }
            for who in _WHO
        },
        "optimizer": {"key": "SGD", "kwargs": {"lr": LEARNING_RATE}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    box = get_distillation_box(
        networks.teacher, networks.student, {}, config, torch.device("cpu"), None, False, lr_factor=1.0
    )
    box.pre_epoch_process(epoch=0)
    loss = box.forward_process(*setup.batch, {})
    box.post_forward_process(loss=loss)
    box.post_epoch_process()
    return loss.item()


class OwnCriterion(_Loss):
    """`own_loss` as modelopt has it."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """From two outputs."""
        return own_loss(student, teacher)


def modelopt(setup: Setup, networks: Networks) -> float:
    """`mtd.convert` and `compute_kd_loss` in a plain loop."""
    criterion = {("", ""): mtd.LogitsDistillationLoss(temperature=setup.temperature, reduction="batchmean")}
    weights = [1 - setup.alpha]
    if setup.layer or setup.per_sample:
        pair = (setup.layer or "head", "body" if setup.layer else "head")
        criterion[pair] = OwnCriterion() if setup.per_sample else nn.MSELoss()
        weights = [weights[0] / 2] * 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*do not sum to 1.0")  # meant: the hard labels get the rest
        balancer = mtd.StaticLossBalancer(kd_loss_weight=weights)
    config = {"teacher_model": networks.teacher, "criterion": criterion, "loss_balancer": balancer}
    student = mtd.convert(networks.student, mode=[("kd_loss", config)])
    optimizer = torch.optim.SGD(student.parameters(), LEARNING_RATE)
    inputs, labels = setup.batch
    student.train()
    loss = student.compute_kd_loss(student_loss=F.cross_entropy(student(inputs), labels))
    loss.backward()
    optimizer.step()
    return loss.item()


class _WithLabels(nn.Module):
    """A network that takes a batch as TextBrewer hands it on, and gives the outputs of body and head."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.body(inputs), self.model(inputs)


def text_brewer(setup: Setup, networks: Networks) -> float:
    """`GeneralDistiller.train` inside `with distiller:`."""
    if setup.alpha != Setup.alpha:
        raise NoSuchOption
    seen = []

    def teacher_adaptor(batch: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]) -> dict[str, object]:
        return {"logits": outputs[1], "hidden": [outputs[0]]}

    def student_adaptor(batch: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]) -> dict[str, object]:
        hard = F.cross_entropy(outputs[1], batch[1], reduction="none" if setup.per_sample else "mean")
        return {"logits": outputs[1], "hidden": [outputs[0]], "losses": hard}

    matches = [{"layer_T": 0, "layer_S": 7, "feature": "hidden", "loss": "hidden_mse", "weight": 1}]
    with tempfile.TemporaryDirectory() as folder:
        distiller = textbrewer.GeneralDistiller(
            textbrewer.TrainingConfig(device="cpu", output_dir=folder),
            textbrewer.DistillationConfig(
                temperature=setup.temperature,
                kd_loss_weight=(1 - setup.alpha) * TEMPERATURE**2,  # its loss lacks the T^2
                hard_label_weight=setup.alpha,
                intermediate_matches=matches if setup.layer else None,
            ),
            model_T=_WithLabels(networks.teacher).train(setup.teacher_trains),
            model_S=_WithLabels(networks.student),
            adaptor_T=teacher_adaptor,
            adaptor_S=student_adaptor,
        )
        distiller.write_loss = lambda loss, *_: seen.append(loss.item())
        optimizer = torch.optim.SGD(networks.student.parameters(), LEARNING_RATE)
        with distiller:
            distiller.train(optimizer, [setup.batch], num_epochs=1, callback=None)
    return seen[0]


class OwnDistillationLoss(keras.distillation.DistillationLoss):
    """`own_loss` as Keras has it."""

    def compute_loss(self, teacher_outputs: Tensor, student_outputs: Tensor, **_: object) -> Tensor:
        """From two outputs."""
        return own_loss(student_outputs, teacher_outputs)


def keras_distiller(setup: Setup, networks: Networks) -> float:
    """`Distiller.fit`, with the KL divergence as an instance, for the default is no KL divergence of probabilities."""
    if setup.teacher_trains:
        raise NoSuchOption
    pairs: list[tuple[nn.Module, keras.Layer]] = []
    teacher = _keras_network(networks.teacher, pairs)
    student = _keras_network(networks.student, pairs)
    terms = [keras.distillation.LogitsDistillation(setup.temperature, keras.losses.KLDivergence())]
    if setup.layer:
        layers = {"teacher_layer_name": teacher.layers[0].name, "student_layer_name": setup.layer}
        terms.append(keras.distillation.FeatureDistillation(**layers))
    if setup.per_sample:
        terms.append(OwnDistillationLoss())
    distiller = keras.distillation.Distiller(teacher, student, terms, student_loss_weight=setup.alpha)
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(LEARNING_RATE), hard)
    inputs, labels = (tensor.numpy() for tensor in setup.batch)
    history = distiller.fit(inputs, labels, batch_size=SAMPLES, epochs=1, verbose=0).history
    for ours, theirs in pairs:  # back into the networks that are looked at afterwards
        with torch.no_grad():
            for tensor, array in zip(_tensors(ours), theirs.get_weights(), strict=True):
                tensor.copy_(torch.from_numpy(array.T))
    return history["total_loss"][0]


def _keras_network(network: Network, pairs: list[tuple[nn.Module, keras.Layer]]) -> keras.Sequential:
    """The same network in Keras; pairs: of its layers, a shared one once."""
    model = keras.Sequential([keras.Input((INPUTS,))])
    for module in (network.body, network.norm, network.head):
        layer = next((theirs for ours, theirs in pairs if ours is module), None)
        if layer is not None:
            model.add(layer)
            continue
        if isinstance(module, nn.Linear):
            layer = keras.layers.Dense(module.out_features)
        else:
            layer = keras.layers.BatchNormalization(epsilon=module.eps, momentum=1 - module.momentum)
        model.add(layer)
        layer.set_weights([tensor.detach().numpy().T for tensor in _tensors(module)])
        pairs.append((module, layer))
    if isinstance(network.last, nn.Softmax):
        model.add(keras.layers.Softmax())
    return model


def _tensors(module: nn.Module) -> list[Tensor]:
    """Weights and statistics in Keras' order."""
    return [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.ndim)]


def _kdlib_method(setup: Setup) -> methods.Method:
    method: methods.Method = methods.Logit(setup.temperature, setup.alpha)
    if setup.layer:
        method = method + methods.Feature({setup.layer: "body"})
    return method + methods.Logit(loss=own_loss) if setup.per_sample else method


def kdlib_distiller(setup: Setup, networks: Networks) -> float:
    """`Distiller` in a loop of one's own."""
    distiller = Distiller(networks.student, networks.teacher, _kdlib_method(setup), example=setup.batch)
    optimizer = torch.optim.SGD(distiller.parameters(), LEARNING_RATE)
    losses = distiller(setup.batch)
    losses.total.backward()
    optimizer.step()
    return losses.total.item()


def kdlib_fit(setup: Setup, networks: Networks) -> float:
    """`train.fit` with a list of batches."""
    run = train.fit(
        networks.student,
        [setup.batch],
        teacher=networks.teacher,
        method=_kdlib_method(setup),
        epochs=1,
        recipe=train.Recipe("sgd", LEARNING_RATE, schedule="constant", weight_decay=0.0),
        optimizer=lambda parameters: torch.optim.SGD(parameters, LEARNING_RATE),
        device="cpu",
        precision="fp32",
        progress=False,
    )
    return run.rows[0]["loss"]


LIBRARIES: dict[str, Callable[[Setup, Networks], float]] = {
    "torchdistill": torchdistill,
    "modelopt": modelopt,
    "textbrewer": text_brewer,
    "keras": keras_distiller,
    "kdlib Distiller": kdlib_distiller,
    "kdlib fit": kdlib_fit,
}
PACKAGES = ("torch", "torchdistill", "nvidia-modelopt", "textbrewer", "keras")


# -------------------- what a step did


@dataclass(frozen=True)
class Outcome:
    """What a step did: its loss, and what it left in the networks."""

    error: str = ""
    complaints: frozenset[tuple[str, str]] = frozenset()  # kind and text of each warning
    loss: float = math.nan
    step: float = 0.0  # the length of the step of the student's weights
    body_moved: bool = False
    finite: bool = True
    teacher_moved: bool = False
    teacher_norm_moved: bool = False


def outcome(library: str, setup: Setup) -> Outcome:
    """Run one step and look at the networks before and after it."""
    networks = Networks.build(setup)
    student, teacher, norm = networks.student, list(networks.teacher.parameters()), networks.teacher.norm
    watched = (list(student.parameters()), list(student.body.parameters()), teacher, list(norm.buffers()))
    before = [_flat(tensors) for tensors in watched]
    try:
        with _quiet(), _complaints() as complaints:
            loss = LIBRARIES[library](setup, networks)
    except NoSuchOption:
        raise
    except Exception as error:  # whatever it is, it is the answer
        return Outcome(error=type(error).__name__)
    after = [_flat(tensors) for tensors in watched]
    moved = [not torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(before, after, strict=True)]
    return Outcome(
        complaints=frozenset(complaints),
        loss=loss,
        step=torch.dist(before[0], after[0]).item(),
        body_moved=moved[1],
        finite=bool(after[0].isfinite().all()),
        teacher_moved=moved[2],
        teacher_norm_moved=moved[3],
    )


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _complaints() -> Iterator[list[tuple[str, str]]]:
    """Kind and text of what a block warns of, by `warnings` or in its log."""
    found: list[tuple[str, str]] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(("logged", record.getMessage()))
    names = [None, "torchdistill", "Distillation", "absl"]
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
        found += [(warning.category.__name__, str(warning.message)) for warning in caught]
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)


def cell(fault: Setup, seen: Outcome, usual: Outcome) -> str:
    """What a library did with a fault, beside what it does without."""
    if seen.error:
        return f"error: `{seen.error}`"
    effects = []
    if not math.isclose(seen.loss, usual.loss, rel_tol=1e-5):
        effects.append(f"loss {seen.loss:.3g} for {usual.loss:.3g}".replace("nan", "NaN"))
    if not seen.finite:
        effects.append("the student's weights become NaN")
    elif not seen.body_moved:
        effects.append("the student's body does not learn")
    elif fault.probabilities:
        effects.append(f"a step {usual.step / seen.step:.2g} times shorter")
    elif not effects and not math.isclose(seen.step, usual.step, rel_tol=1e-5):
        effects.append("another step")
    if seen.teacher_moved:
        effects.append("the teacher's weights change")
    if seen.teacher_norm_moved:
        effects.append("the teacher's batch statistics change")
    new = sorted({kind for kind, _ in seen.complaints - usual.complaints})
    if new:
        return f"warning: `{', '.join(new)}`; {', '.join(effects) or 'no harm'}"
    return f"**silent**: {', '.join(effects)}" if effects else "no harm"


# Where a bare word would be unfair.
_LEFT_TO_THE_LOOP = "The loop is the caller's here, and so is a look at the loss."
_BY_TORCH = "Raised by torch in `backward()`, whose message names no loss."
NOTES = {
    "the student gives probabilities, not logits": {
        "keras": "`LogitsDistillation` documents that it wants logits; the example in the docstring of `Distiller` "
        'compiles `"sparse_categorical_crossentropy"`, which wants probabilities.',
    },
    "the teacher is left in train mode": {
        "torchdistill": "Left to the caller; the example script does not call `teacher.eval()` before training either.",
        "textbrewer": "Inside `with distiller:`, as the README shows it.",
        "keras": "A Keras model stores no mode; the distiller calls the teacher with `training=False`.",
    },
    "a weight of the teacher is NaN": {
        "torchdistill": "The example script raises `ValueError` for a loss that is NaN, after the step.",
        "modelopt": _LEFT_TO_THE_LOOP,
        "keras": "Without the callback `TerminateOnNaN`, which ends a training after the step.",
    },
    "alpha 1.5": {"textbrewer": "It has two weights that are free by design, and no alpha."},
    "a layer that does not exist": {
        "textbrewer": "Layers are numbers here, places in a list that the adaptor gives.",
    },
    "a loss of one's own gives a number per sample": {
        "torchdistill": _BY_TORCH,
        "modelopt": _BY_TORCH,
        "textbrewer": "As one of the adaptor's `losses`, of which it takes the mean. Its `custom_matches` raise "
        "`KeyError` with any loss (`match_weghts`).",
    },
    "a label out of range": dict.fromkeys(
        ("torchdistill", "modelopt", "textbrewer", "keras"), "Raised by torch's cross-entropy."
    ),
}


def table() -> str:
    """The faults as rows, the libraries as columns, and the footnotes."""
    usual = {library: outcome(library, Setup()) for library in LIBRARIES}
    broken = {library: seen for library, seen in usual.items() if seen.error or not math.isfinite(seen.loss)}
    if broken:
        raise SystemExit(f"Without any fault these fail: {broken}.")
    lines = [f"| | {' | '.join(LIBRARIES)} |", "|---|" + "---|" * len(LIBRARIES)]
    notes: list[str] = []
    for fault, setup in FAULTS.items():
        cells = []
        for library in LIBRARIES:
            try:
                text = cell(setup, outcome(library, setup), usual[library])
            except NoSuchOption:
                text = "-"
            note = NOTES.get(fault, {}).get(library)
            if note and note not in notes:
                notes.append(note)
            cells.append(f"{text} ({notes.index(note) + 1})" if note else text)
        lines.append(f"| {fault} | {' | '.join(cells)} |")
    numbered = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    return "\n".join(lines) + f"\n\n{numbered}"


def main() -> None:
    """Print the table and write it into benchmarks/README.md."""
    text = table()
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    print(text)
    rounds.put_in_readme("silent faults", text)


if __name__ == "__main__":
    main()
