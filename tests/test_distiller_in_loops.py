"""What loops do to a module: copy it, average it, cast it, save it, compile it, share it between processes.

Whatever was done to the distiller, its losses and gradients are those of one to which nothing was done.
"""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from kdlib.adapters import Adapter
from kdlib.distiller import Distiller, Losses
from kdlib.methods import Feature, HardLabels, Logit, Method

Batch = tuple[Tensor, Tensor]
Call = Callable[[Batch], Losses]
LAYERS = {"relu": "relu"}
LOSSES = ("hint", "attention", "vid")  # with a projector that learns, with one that does not, with one of many weights


def network(width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {
            "conv": nn.Conv2d(1, width, 3),
            "relu": nn.ReLU(),
            "flat": nn.Flatten(),
            "fc": nn.Linear(16 * width, 3),
        }
        return nn.Sequential(OrderedDict(layers))


def batch(seed: int = 0, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (size,), generator=generator)
    return torch.randn(size, 1, 6, 6, generator=generator), labels


def distiller(loss: str = "hint", *, student: int = 0, method: Method | None = None, **options: bool) -> Distiller:
    """student: the seed of its weights; the teacher and the projectors are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        method = method or Logit(temperature=4, alpha=0.1) + 10 * Feature(LAYERS, loss=loss)
        return Distiller(network(4, student), network(8, 1), method, example=batch(), **options)


def step(call: Call, module: nn.Module, data: Batch) -> tuple[Losses, dict[str, Tensor]]:
    """The losses of a batch, and the gradients that they give the weights of the module."""
    module.zero_grad()
    losses = call(data)
    losses.total.backward()
    return losses, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def check(
    call: Call, module: nn.Module, plain: Distiller, data: Batch, *, cast: Batch | None = None, **within: float
) -> None:
    """Both give the same losses and gradients, within rtol and atol, to the bit by default. cast: what `call` gets."""
    within = {"rtol": 0.0, "atol": 0.0, **within}
    losses, gradients = step(call, module, cast or data)
    expected, expected_gradients = step(plain, plain, data)
    for found, wanted in [(losses.terms, expected.terms), (gradients, expected_gradients)]:
        torch.testing.assert_close(found, wanted, check_dtype=False, **within)
    torch.testing.assert_close(losses.total, expected.total, **within)


def train_a_step(*modules: nn.Module) -> None:
    for module in modules:
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad


@pytest.mark.parametrize("loss", LOSSES)
def test_a_copy_gives_the_same_and_shares_nothing(loss: str) -> None:
    original = distiller(loss)
    copied = copy.deepcopy(original)
    with torch.no_grad():
        for module in (original, original.teacher.model):
            for parameter in module.parameters():
                parameter.zero_()
    check(copied, copied, distiller(loss), batch())


def test_a_pickled_one_gives_the_same() -> None:
    restored = pickle.loads(pickle.dumps(distiller()))
    check(restored, restored, distiller(), batch())


def test_the_state_is_that_of_student_and_projectors_and_goes_into_another_distiller() -> None:
    first, other = distiller(), distiller(student=7)
    step(first, first, batch(1))
    train_a_step(first)
    state = copy.deepcopy(first.state_dict())
    assert {name.split(".")[0] for name in state} == {"student", "method"}
    assert any("projectors" in name for name in state)
    other.load_state_dict(state)
    check(other, other, first, batch())


def test_an_average_is_one_of_student_and_projectors_and_is_called_like_the_distiller() -> None:
    model = distiller()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    expected = {}
    for number in range(3):
        step(model, model, batch(number))
        train_a_step(model)
        average.update_parameters(model)
        now = {name: p.detach().clone() for name, p in model.named_parameters()}
        expected = {name: (expected[name] + now[name]) / 2 for name in now} if expected else now
    plain = distiller()
    plain.load_state_dict(expected, strict=False)
    check(average, average.module, plain, batch(), atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_in_float64_the_losses_are_still_computed_in_float32(loss: str) -> None:
    model = distiller(loss).to(torch.float64)
    model.teacher.model.to(torch.float64)  # the precision of the teacher is that of whoever owns it
    images, labels = batch()
    data = images.double(), labels
    assert model(data).total.dtype == torch.float32
    assert {gradient.dtype for gradient in step(model, model, data)[1].values()} == {torch.float64}
    check(model, model, distiller(loss), batch(), cast=data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_in_bfloat16_the_losses_are_still_computed_in_float32(loss: str) -> None:
    """As Lightning's "bf16-true" and the like make it; nothing but the weights and the networks is rounded."""
    model = distiller(loss).to(torch.bfloat16)
    images, labels = batch()
    model.teacher.model.to(torch.bfloat16)
    found, gradients = step(model, model, (images.bfloat16(), labels))
    expected, _ = step(plain := distiller(loss), plain, batch())
    assert {term.dtype for term in (found.total, *found.terms.values())} == {torch.float32}
    assert {gradient.dtype for gradient in gradients.values()} == {torch.bfloat16}
    torch.testing.assert_close(found.total, expected.total, rtol=0.03, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_weights_of_classes_are_those_of_a_loss_in_float32(dtype: torch.dtype) -> None:
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0]))
    plain = distiller(method=HardLabels(hard=weighted))
    model = distiller(method=HardLabels(hard=copy.deepcopy(weighted))).to(dtype)
    images, labels = batch()
    found = model((images.to(dtype), labels)).total
    torch.testing.assert_close(found, plain((images, labels)).total, rtol=0.03, atol=0)
    assert found.dtype == torch.float32


class Centred(Method):
    """Keeps a running mean of the logits, in a buffer that is written to or replaced."""

    needs_teacher = False
    trains_logits = True

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, student: Any, teacher: Any, labels: Any) -> dict[str, Tensor]:
        now = student.logits.detach().mean(0).to(self.mean)
        if self.in_place:
            self.mean.lerp_(now, 0.5)
        else:
            self.mean = self.mean.lerp(now, 0.5)
        return {"centred": (student.logits - self.mean).square().mean()}


@pytest.mark.parametrize("in_place", [False, True])
def test_a_running_mean_of_a_method_in_bfloat16_moves(in_place: bool) -> None:
    plain = distiller(method=Centred(in_place=in_place))
    model = distiller(method=Centred(in_place=in_place)).to(torch.bfloat16)
    images, labels = batch()
    for _ in range(2):
        plain((images, labels))
        model((images.bfloat16(), labels))
    assert model.method.mean.dtype == torch.bfloat16
    torch.testing.assert_close(model.method.mean.float(), plain.method.mean, rtol=0.05, atol=0.01)


def test_a_sum_in_float64_of_a_method_stays_one() -> None:
    model = distiller(method=Centred(in_place=True))
    model.method.mean = start = torch.full((3,), 1 / 3, dtype=torch.float64)
    before = start.clone()
    expected = before.lerp(model(batch()).student.logits.detach().mean(0).double(), 0.5)
    torch.testing.assert_close(model.method.mean, expected, rtol=1e-12, atol=0)


def test_a_student_in_bfloat16_may_have_a_teacher_in_float32() -> None:
    student, teacher = network(4, 0).to(torch.bfloat16), network(8, 1)
    adapter = Adapter(inputs=lambda data: data[0].bfloat16(), teacher_inputs=0)
    model = Distiller(student, teacher, Logit() + Feature(LAYERS), example=batch(), adapter=adapter).to(torch.bfloat16)
    losses, gradients = step(model, model, batch())
    assert losses.total.dtype == torch.float32
    assert len(gradients) == len(list(model.parameters()))


def test_training_in_autocast_is_near_that_in_float32_and_its_losses_are_in_float32() -> None:
    model, plain = distiller(), distiller()
    for number in range(6):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = model(batch(number))
        found.total.backward()
        expected, _ = step(plain, plain, batch(number))
        assert found.student.logits.dtype == torch.bfloat16
        assert {term.dtype for term in (found.total, *found.terms.values())} == {torch.float32}
        assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())
        torch.testing.assert_close(found.total, expected.total, rtol=0.01, atol=0)
        train_a_step(model, plain)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    import torch.distributed.nn  # noqa: F401  # before the group is there, see kdlib.distributed.process_group

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_distributed_data_parallel_gives_the_same(loss: str, options: dict[str, bool]) -> None:
    model, plain = distiller(loss), distiller(loss)
    parallel = DistributedDataParallel(model, **options)
    for number in range(3):
        check(parallel, model, plain, batch(number))
        train_a_step(model, plain)


@pytest.mark.usefixtures("alone")
def test_distributed_data_parallel_takes_a_method_without_logits_as_a_static_graph() -> None:
    """The classifier then gets no gradient, and DistributedDataParallel has to be told."""
    with pytest.warns(UserWarning, match="No term of this method looks at the logits"):
        model, plain = (distiller(method=Feature(LAYERS)) for _ in range(2))
    parallel = DistributedDataParallel(model, static_graph=True)
    for number in range(3):
        check(parallel, model, plain, batch(number))
        train_a_step(model, plain)


@pytest.mark.slow
def test_a_compiled_one_gives_the_same_for_every_batch() -> None:
    model, plain = distiller(), distiller()
    compiled = torch.compile(model)
    for number in range(10):  # more than torch would translate again
        check(compiled, model, plain, batch(number), rtol=1e-5, atol=1e-6)
        train_a_step(model, plain)
    check(compiled, model, plain, batch(10, size=5), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_one_whose_student_is_compiled_gives_the_same_for_every_batch_and_translates_once() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, plain = distiller(compile=True), distiller()
    graphs = []
    for number in range(10):
        check(model, model, plain, batch(number), rtol=1e-5, atol=1e-6)
        train_a_step(model, plain)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[0] == graphs[-1]


@pytest.fixture
def in_bfloat16() -> Iterator[Any]:
    """An Accelerator; the precision that it is made with holds for all that follow, until it is reset."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_accelerate_in_bfloat16_gives_losses_by_name_in_float32(in_bfloat16: Any) -> None:
    model, plain = distiller(), distiller()
    found, expected = in_bfloat16.prepare(model)(batch()), plain(batch())
    in_bfloat16.backward(found.total)
    assert {term.dtype for term in (found.total, *found.terms.values())} == {torch.float32}
    assert found.student.logits.dtype == torch.bfloat16
    torch.testing.assert_close(found.total, expected.total, rtol=0.01, atol=0)
    assert all(p.grad is not None for p in model.parameters())


def test_lightning_rebuilds_the_losses_tensor_by_tensor() -> None:
    """As it does with whatever a module gives, to cast it or to detach it."""
    walker = pytest.importorskip("lightning_utilities.core.apply_func")
    losses = distiller()(batch())
    found = walker.apply_to_collection(losses, Tensor, lambda tensor: tensor.detach().double())
    assert isinstance(found, Losses)
    for one, other in [
        (found.student.logits, losses.student.logits),
        (found.student.features, losses.student.features),
    ]:
        torch.testing.assert_close(one, other, check_dtype=False)
    assert {one.dtype for one in (found.total, found.student.logits, found.student.raw)} == {torch.float64}
    assert losses.student.logits.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_fabric_gives_the_same(precision: str) -> None:
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1, precision=precision)
    inner, plain = distiller(), distiller()
    model, _ = fabric.setup(inner, torch.optim.SGD(inner.parameters(), 0.05))
    found, expected = model(batch()), plain(batch())
    torch.testing.assert_close(found.total, expected.total, rtol=0.01, atol=0)
    assert found.student.logits.dtype == torch.float32
    fabric.backward(found.total)
    assert all(p.grad is not None for p in inner.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_lightning_trains_in_every_precision(precision: str) -> None:
    lightning = pytest.importorskip("lightning")
    model, plain = distiller(), distiller()
    if precision.endswith("true"):
        model.teacher.model.to(torch.bfloat16 if precision == "bf16-true" else torch.float64)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.distiller = model
            self.totals: list[Tensor] = []

        def training_step(self, data: Batch) -> Tensor:
            losses = self.distiller(data)
            self.totals.append(losses.total.detach())
            return losses.total

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.distiller.parameters(), 0.05)

    chatter = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, precision=precision, **dict.fromkeys(chatter, False))
    trainer.fit(module := Module(), DataLoader([batch(number) for number in range(4)], batch_size=None))
    for number, total in enumerate(module.totals):
        assert total.dtype == torch.float32
        torch.testing.assert_close(total, step(plain, plain, batch(number))[0].total, rtol=0.03, atol=0)
        train_a_step(plain)


@pytest.mark.slow
def test_transformers_trainer_evaluates_saves_and_goes_on(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    images, labels = batch(size=32)
    samples = [{"images": image, "labels": label} for image, label in zip(images, labels, strict=True)]

    def trainer(model: Distiller, folder: str, **options: object) -> Any:
        arguments = transformers.TrainingArguments(
            str(tmp_path / folder),
            num_train_epochs=2,
            per_device_eval_batch_size=32,
            use_cpu=True,
            remove_unused_columns=False,
            label_names=["labels"],
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        return transformers.Trainer(model=model, args=arguments, train_dataset=samples, eval_dataset=samples)

    whole, resumed = distiller(), distiller()
    first = trainer(whole, "whole", save_strategy="steps", save_steps=4)
    first.train()
    again = trainer(resumed, "resumed", save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        assert first.evaluate()["eval_loss"] == pytest.approx(float(whole((images, labels)).total), rel=1e-5)
