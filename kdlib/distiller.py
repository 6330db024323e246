"""Student, teacher and method as one module, which any loop can train.

distiller = Distiller(student, teacher, method, example=next(iter(loader)))
optimizer = torch.optim.AdamW(distiller.parameters())
for batch in loader:
    losses = distiller(batch)
    losses.total.backward()
    optimizer.step(); optimizer.zero_grad()
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdlib import devices, losses, tasks
from kdlib.adapters import Adapter
from kdlib.ensembles import ConfidenceEnsemble, Specialists
from kdlib.errors import INSTEAD_OF_MASKS, check_kind, explain_shape_errors, few
from kdlib.guards import keep_modes, shared_tensors, writes_to
from kdlib.hooks import FeatureExtractor, ModelOutput, refuse_writes, where_logits_are
from kdlib.methods import LayerMethod, Method, WeightedSum
from kdlib.tasks import Task
from kdlib.teachers import CachedTeacher, Ensemble, FrozenTeacher, Teacher, as_teacher

READS = 4  # of the example's inputs: a function that flips a whole batch at random often does the same twice


class Losses(NamedTuple):
    """What a distiller gives for a batch.

    total: the loss, a scalar. terms: its parts by name, each with its weight; they sum to `total`. student: the
    student's output. rows, labels: its logits as N x C, detached, one row for each decision between classes, and the
    labels of these rows, for an accuracy (see `tasks`).
    """

    total: Tensor
    terms: dict[str, Tensor]
    student: ModelOutput
    rows: Tensor
    labels: Tensor | None


class Distiller(nn.Module):
    """A student that learns from a teacher by a method: called with a batch, it gives the losses.

    `parameters()` and `state_dict()` are those of the student and of the method's projectors, never the teacher's. The
    teacher is in eval mode and without gradient at every call, whatever `train()` says, stays in it afterwards, and
    follows its inputs to their device, not to their dtype. Of two networks that teach each other, each by a distiller
    of its own, set the student to train mode just before its call: `one.train()`, `one(batch)`, `other.train()`,
    `other(batch)`. Losses are computed in float32, under autocast too, but for what a method of one's own reads in
    `ModelOutput.raw`, which stays as the network gave it: call .float() on it. Optimiser, accumulation of gradients,
    DistributedDataParallel (static_graph=True for methods that do not look at the logits) and the rest belong to the
    loop.

    student: any nn.Module. teacher: an nn.Module, a `Teacher` (stored outputs, an ensemble), a function from a batch to
    logits, or None for methods that need none. method: not copied, as `fit` does: a second distiller of the same method
    goes on with the projectors that the first has trained. example: one batch, from which projectors get their sizes;
    methods without projectors need none, but it lets mistakes show before the first step.
    adapter: what a batch is, see `Adapter`; default, a pair (inputs, labels) or a dict with "labels".
    task: what logits and labels mean: "classification", "multilabel", "segmentation", "token-classification",
    "regression", or a `tasks.Task`. compile: let torch.compile translate the student, in parts that end at each
    layer whose output the method reads; torch.compile(distiller) gives the same in a dozen parts. setup_later: `setup`
    is called before the first step, as `fit` does.
    Raises ValueError where the pieces do not fit together, TypeError for a teacher that is none, FloatingPointError for
    one whose answer to the example is not finite, but for classes, not all of them, that are masked by -inf.
    """

    accepts_loss_kwargs = False  # else transformers' Trainer takes **fields for arguments that scale the loss

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher | Callable[[Any], Any] | None,
        method: Method,
        *,
        example: Any = None,
        adapter: Adapter | None = None,
        task: str | Task = "classification",
        compile: bool = False,
        setup_later: bool = False,
    ) -> None:
        super().__init__()
        check_kind("an nn.Module", nn.Module, student=student)
        check_kind("a kdlib.methods.Method, such as Logit(temperature=4, alpha=0.1)", Method, method=method)
        check_kind(
            "a kdlib.adapters.Adapter, such as Adapter(inputs='image', labels='species')",
            Adapter | None,
            adapter=adapter,
        )
        for role, network in {"student": student, "teacher": teacher}.items():
            if not isinstance(network, nn.Module) or any(hasattr(part, "_hf_hook") for part in network.modules()):
                continue  # accelerate's hooks bring weights that it keeps elsewhere when they are needed
            if any(p.device.type == "meta" for p in network.parameters()):
                raise ValueError(
                    f"The {role} lies on the meta device: it has shapes and no weights. Build it on a real device, or "
                    'call to_empty(device="cpu") and load its weights.'
                )
        if any(nn.parameter.is_lazy(p) for p in student.parameters()):
            raise ValueError(
                "The student has lazy layers, whose weights get their sizes from a first batch: run one through it, "
                "student(inputs), before it is distilled."
            )
        self.adapter = adapter or Adapter()
        self.task = tasks.resolve(task)
        method.check_task(self.task)
        if method.needs_teacher and teacher is None:
            raise ValueError(f"{type(method).__name__} needs a teacher: fit(..., teacher=models.load(...)).")
        self.student, self.method = student, method
        self._warned_of_mode = self._warned_of_mask = False
        self.extractor = FeatureExtractor(
            student, method.student_layers, compile=compile, read_logits=self.adapter.logits_of
        )
        # Not an nn.Module, so its network is none of this module's: no parameter, nothing in state_dict, no train().
        self.teacher = as_teacher(teacher, self.adapter, needs_logits=method.needs_teacher_logits)
        given: Any = teacher
        if isinstance(teacher, FrozenTeacher) and not isinstance(teacher, ConfidenceEnsemble):
            given = teacher.model
        if isinstance(given, Ensemble | ConfidenceEnsemble | Specialists) and method.needs_teacher_logits:
            given.check_task(self.task)
        if isinstance(self.teacher, FrozenTeacher) and method.needs_teacher:
            shared = shared_tensors(student, self.teacher.model)
            if shared:
                raise ValueError(
                    f"Student and teacher share weights or buffers ({few(shared)}): the teacher would change with the "
                    "student, or, where these are frozen, its eval mode and device be set in the student, too. Load or "
                    "build a second model, or copy this one: teacher = copy.deepcopy(teacher)."
                )
            theirs = {id(p) for p in self.teacher.model.parameters()}
            trained = [name for name, p in method.named_parameters() if p.requires_grad and id(p) in theirs]
            if trained:
                raise ValueError(
                    f"The method would train the teacher's own weights ({few(trained)}). Give it a copy, such as "
                    "copy.deepcopy(teacher.fc), or call requires_grad_(False) on them."
                )
            FeatureExtractor(self.teacher.model, method.teacher_layers)  # a wrong name is said now
        if example is not None:
            self.setup(example)
        elif method.needs_setup and not setup_later:
            raise ValueError(
                f"This method has projectors, whose sizes come from the layers {_pairs(method)}: give one batch, "
                "Distiller(..., example=next(iter(loader)))."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("student", "teacher", "method") and hasattr(self, name) and value is not getattr(self, name):
            if "_is_replica" in self.__dict__:
                raise RuntimeError(
                    "torch.nn.DataParallel, which transformers' Trainer takes where it sees several GPUs, cannot copy "
                    "a Distiller: its hooks belong to one student. Start a process for each GPU, by torchrun or "
                    "accelerate launch, or show the program one of them, CUDA_VISIBLE_DEVICES=0."
                )
            raise AttributeError(
                f"The {name} of a Distiller is not replaced: its hooks and checks belong to the one that it was made "
                "with. Make a new Distiller."
            )
        super().__setattr__(name, value)

    @torch.no_grad()
    def setup(self, example: Any, check: Callable[[str, Tensor], None] | None = None) -> None:
        """Run both networks on one batch: what cannot work fails now, and projectors get their sizes.

        Nothing in the networks changes, but that the teacher is left in eval mode. check: called with "student" or
        "teacher" and its logits as rows.
        Raises ValueError for networks that do not fit each other or the batch, and for an adapter whose function gives
        the teacher other inputs than the student.
        """
        labels = self.adapter.labels_of(example)
        self.task.check_batch(example, labels)
        self._refuse_different_views(example)
        # Not translated: a program for this size of batch would be used once.
        uncompiled = FeatureExtractor(
            self.student, self.extractor.layers, read_logits=self.adapter.logits_of, layouts=self.extractor.layouts
        )
        with keep_modes(self.student):
            self.student.eval()  # so that no batch statistic moves
            inputs = self.adapter.student_inputs_of(example)
            with explain_shape_errors("student", inputs), uncompiled as extractor, refuse_writes("student", inputs):
                student = extractor(inputs)
            network = isinstance(self.teacher, FrozenTeacher)  # a function may fail for reasons of its own
            given = self.adapter.teacher_inputs_of(example) if network else None
            with explain_shape_errors("teacher", given) if network else nullcontext():
                teacher = self._teacher_output(example)
        if teacher is not None:
            teacher = teacher.float().to(student.logits.device)  # in this order: some devices have no float64
        gives_layer = any(one is student.logits for one in student.features.values())  # in bfloat16 float() copies both
        student = student.float()
        rows, teacher_rows, row_labels = self._prepare(example, student, teacher, labels)
        self._check_rows(rows, teacher_rows, check)
        self._check_labels(rows.logits, row_labels)
        if not self.method.trains_logits and not gives_layer:
            warnings.warn(
                "No term of this method looks at the logits, so the classifier keeps its initial weights. "
                "Add HardLabels() or Logit(...) to it.",
                stacklevel=3,
            )
        self.method.setup(student, teacher)
        self.method.to(student.logits.device)
        self._refuse_masks(rows, teacher_rows, row_labels)

    def _refuse_different_views(self, example: Any) -> None:
        """Raise ValueError where both networks read their inputs by one function, which changes from call to call."""
        shared = callable(self.adapter.inputs) and self.adapter.teacher_inputs is None
        if not (shared and self.method.needs_teacher and isinstance(self.teacher, FrozenTeacher)):
            return
        first = _copies(self.adapter.student_inputs_of(example))
        for _ in range(READS - 1):
            again = _copies(self.adapter.student_inputs_of(example))
            try:
                torch.testing.assert_close(again, first, equal_nan=True)  # a GPU may round a sum in two ways
            except AssertionError as error:
                raise ValueError(
                    "The function of Adapter(inputs=...) gives other inputs at each call, so teacher and student would "
                    "see different views. Augment in the dataset or in the loader's collate_fn. If the views are meant "
                    "to differ, give teacher_inputs, too."
                ) from error

    def _prepare(
        self, batch: Any, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None
    ) -> tuple[ModelOutput, ModelOutput | None, Tensor | None]:
        """Logits as rows; a teacher whose logits nobody reads may have those of another task, or none."""
        marks = self.task.without_labels(batch, student.logits) if labels is None else labels
        if marks is None and isinstance(self.task, tasks.TokenClassification) and not self._warned_of_mask:
            self._warned_of_mask = self.task.warn_of_other_mask(batch, student.logits)
        if self.method.needs_teacher_logits:
            student, teacher, row_labels = self.task.prepare(student, teacher, marks)
        else:
            student, _, row_labels = self.task.prepare(student, None, marks)
        return student, teacher, None if labels is None else row_labels

    def _check_rows(
        self, student: ModelOutput, teacher: ModelOutput | None, check: Callable[[str, Tensor], None] | None
    ) -> None:
        logits = {"student": student.logits}
        if teacher is not None and self.method.needs_teacher_logits:
            logits["teacher"] = teacher.logits
        for role, one in logits.items():
            if check is not None:
                check(role, one)
            if role == "teacher" and bool(self.task.damaged(one).any()):
                raise FloatingPointError(
                    "The teacher's logits are not finite: its weights may be damaged, or the batch is. Evaluate it "
                    "with train.evaluate, and load or train it anew."
                )
            if self.task.has_classes:
                losses.warn_if_probabilities(one, role)
            if isinstance(self.task, tasks.MultiLabel):
                self.task.warn_if_probabilities(one, role)
        self._check_shapes(student, teacher)

    def _refuse_masks(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None) -> None:
        """Raise ValueError where classes are masked by -inf and a term of the method is not finite for that."""
        read = [student.logits]
        if teacher is not None and self.method.needs_teacher_logits:
            read.append(teacher.logits)
        if not any(bool(one.isneginf().any()) for one in read) or bool(self.task.damaged(student.logits).any()):
            return
        terms = self._checked_terms(student, teacher, labels)
        bad = [name for name, term in terms.items() if not bool(term.isfinite())]
        if bad:
            raise ValueError(
                f"There are logits of -inf, and of these {' and '.join(bad)} of the loss cannot be computed. "
                f"{INSTEAD_OF_MASKS} Or choose a loss that takes such masks, as dist does where both networks have "
                "them, and labels that are not masked."
            )

    def _check_labels(self, rows: Tensor, labels: Tensor | None) -> None:
        """Raise as the losses do for wrong labels, at whose values they do not look on CUDA."""
        if isinstance(labels, Tensor) and labels.device.type != "cpu":
            self.method.check_labels(rows.cpu(), labels.cpu())

    def _check_shapes(self, student: ModelOutput, teacher: ModelOutput | None) -> None:
        if teacher is None or not self.method.needs_teacher_logits:
            return
        shapes = tuple(student.logits.shape), tuple(teacher.logits.shape)
        if shapes[0] == shapes[1]:
            return
        if shapes[0][1:] == shapes[1][1:]:
            raise ValueError(
                f"The student gives logits of {shapes[0]}, the teacher of {shapes[1]}: losses on logits compare the "
                "same samples, and there are not as many. Do inputs and teacher_inputs of the batch belong together?"
            )
        where, regression = where_logits_are(teacher.raw), isinstance(self.task, tasks.Regression)
        if regression and student.logits.numel() == teacher.logits.numel():
            sizes = [[size for size in one if size != 1] for one in shapes]
            wanted = ", ".join(map(str, (-1, *shapes[0][1:])))
            reshaped = f"Adapter(teacher_logits=lambda output: {where}.reshape({wanted}))"
            advice = reshaped if sizes[0] == sizes[1] else "with axes in the order of the student's"
            raise ValueError(
                f"The student gives outputs of {shapes[0]}, the teacher of {shapes[1]}: a loss would broadcast them to "
                f"every pair of samples. Give both one shape, {advice}."
            )
        raise ValueError(
            f"The student gives logits of {shapes[0]}, the teacher of {shapes[1]}: losses on logits compare the same "
            "classes of the same samples. Build the networks for the same classes, "
            f"{self._how_to_pick_classes(student, teacher)}, or choose a method that looks at features or relations."
        )

    def _how_to_pick_classes(self, student: ModelOutput, teacher: ModelOutput) -> str:
        """What leaves out the classes that one of the two has beside those of the other."""
        classes_second = isinstance(self.task, tasks.Regression | tasks.Segmentation)
        before = ":" if classes_second else "..."  # of the classes in an index
        own, theirs = student.logits.shape[1:2], teacher.logits.shape[1:2]  # of regressions some have no second
        if theirs and own > theirs:
            first = f"{where_logits_are(student.raw)}[{before}, :{theirs[0]}]"
            return (
                "take those of the teacher alone, where they are the student's first as in a vocabulary that was "
                f"padded, Adapter(logits=lambda output: {first})"
            )
        chosen = f"lambda output: {where_logits_are(teacher.raw)}[{before}, order]"
        pick = "pick those of the student among the teacher's"
        if isinstance(self.teacher, CachedTeacher):
            if self.teacher.metadata["view_fingerprint"] is None:
                return (
                    f"{pick}, CachedTeacher.from_logits(logits[{before}, order]), where kdlib.answers.to_logits or "
                    "from_top_k makes logits of other answers"
                )
            return f"{pick}, CachedTeacher.build(..., adapter=Adapter(teacher_logits={chosen}))"
        if not isinstance(self.teacher, FrozenTeacher):
            return f"{pick}, where the teacher makes them: return answers[{before}, order]"
        if isinstance(self.teacher, ConfidenceEnsemble) or self.teacher.reads_logits_itself:
            return f"{pick}, {type(self.teacher).__name__}(..., read_logits={chosen})"
        return f"{pick}, Adapter(teacher_logits={chosen})"

    def _teacher_output(self, batch: Any) -> ModelOutput | None:
        if self.teacher is None or not self.method.needs_teacher:
            return None
        with torch.no_grad():
            output = self.teacher(batch, self.method.teacher_layers)
        if not isinstance(output, ModelOutput):
            raise ValueError(
                f"{type(self.teacher).__name__} gave a {_kind(output)}; a teacher gives a kdlib.hooks.ModelOutput: "
                "ModelOutput(logits)."
            )
        return output.outside_inference()

    def _checked_terms(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms of the method in float32; raises as `_check_terms` does."""
        device = student.logits.device
        with torch.autocast(device.type, enabled=False):
            terms = self._terms(student, teacher, labels)
        self._check_terms(terms, device)
        return terms

    def _terms(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None) -> Any:
        # Of buffers only those of the student's kind: a sum that a method keeps in float64 is meant to be one.
        kind = next((p.dtype for p in self.student.parameters() if p.is_floating_point()), torch.float32)
        own = {  # module by module: each once, and a weight that two of them share once for each
            f"{prefix}.{name}".lstrip("."): one
            for prefix, module in self.method.named_modules()
            for name, one in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            if one.is_floating_point() and one.dtype != torch.float32
            if isinstance(one, nn.Parameter) or one.dtype == kind
        }
        if not own:
            return self.method(student, teacher, labels)
        # distiller.to(torch.bfloat16) casts the projectors, too, and what they are given is in float32.
        cast = {name: one.float() for name, one in own.items()}
        given = {name: (one, writes_to(one)) for name, one in cast.items()}
        terms = functional_call(self.method, cast, (student, teacher, labels), tie_weights=False)
        for name, (one, writes) in given.items():  # a running mean, say, written to or replaced
            if cast[name] is not one or writes_to(one) != writes:
                own[name].data.copy_(cast[name])
        return terms

    def _check_terms(self, terms: Any, device: torch.device) -> None:
        """Raise TypeError or ValueError unless they are scalars by name, at least one, on this device."""
        if not isinstance(terms, dict):
            raise TypeError(
                f"{type(self.method).__name__} gave a {_kind(terms)}; a method's forward returns a dict of named "
                'terms: {"mine": loss}.'
            )
        if not terms:
            raise ValueError(f"{type(self.method).__name__} gave no terms: forward returns a dict with at least one.")
        for name, term in terms.items():
            if not isinstance(term, Tensor):
                raise TypeError(
                    f"The term {name!r} of the loss is a {_kind(term)}, which has no gradient; expected a tensor."
                )
            if term.ndim:
                raise ValueError(
                    f"The term {name!r} of the loss has shape {tuple(term.shape)}; a loss gives one number for a "
                    "batch: take its .mean()."
                )
            if term.device != device:
                raise ValueError(
                    f"The term {name!r} of the loss lies on {term.device}, and the student's logits on {device}. Make "
                    "it there: torch.tensor(..., device=student.logits.device)."
                )

    def forward(self, batch: Any = None, **fields: Any) -> Losses:
        """The losses of a batch. fields: those of a batch that is a dict, as transformers' Trainer passes them.

        Raises ValueError for a batch that the adapter cannot read, and for a term that is no scalar; TypeError for a
        batch and fields beside it.
        """
        if batch is not None and fields:
            raise TypeError(
                f"A Distiller is called with a batch, or with its fields by name; got a {_kind(batch)} and "
                f"{', '.join(fields)}. Put them into one dict, or into a tuple of inputs and labels."
            )
        batch = fields if batch is None else batch
        self._warn_of_eval_mode()
        labels = self.adapter.labels_of(batch)  # first: labels that are not there are no matter of the networks
        teacher = self._teacher_output(batch)
        with nullcontext(self.extractor) if self.extractor.active else self.extractor as extractor:
            output = extractor(self.adapter.student_inputs_of(batch))
        if teacher is not None:
            teacher = teacher.float().to(output.logits.device)
        student, teacher, labels = self._prepare(batch, output.float(), teacher, labels)
        self._check_shapes(student, teacher)  # a loss of one's own may broadcast B x 1 and B to B x B
        terms = self._checked_terms(student, teacher, labels)
        total = reduce(add, terms.values())
        return Losses(total, terms, output, student.logits.detach(), labels)

    def _warn_of_eval_mode(self) -> None:
        """Say once that the student stands in eval mode in a step that trains it."""
        if self.student.training or not self.training or self._warned_of_mode or not torch.is_grad_enabled():
            return
        if any(p.requires_grad for p in self.student.parameters()):
            self._warned_of_mode = True
            warnings.warn(
                "The student is in eval mode and the distiller in train mode: it would train without dropout, and its "
                "batch statistics would stand still. Call distiller.train() before the first step, after each "
                "validation, and, where another distiller has this student for its teacher, before each call. If it is "
                "meant, say it: distiller.eval().",
                stacklevel=5,  # past torch's calls of a module
            )


def _pairs(method: Method) -> str:
    """The pairs of layers whose sizes the projectors need, as in the method's parts."""
    parts = [part for _, part in method.weighted] if isinstance(method, WeightedSum) else [method]
    pairs: list[tuple[str, str]] = []
    for part in parts:
        if part.needs_setup:
            own = isinstance(part, LayerMethod)
            pairs += part.layers.items() if own else zip(part.student_layers, part.teacher_layers, strict=False)
    return ", ".join(dict.fromkeys(f"{student} -> {teacher}" for student, teacher in pairs))


def _copies(inputs: Any) -> list[Tensor]:
    """Copies of the tensors among a network's inputs, however deep they lie: a function may write into the batch."""
    return [one.clone() for one in devices.tensors_in(inputs)]


def _kind(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__
