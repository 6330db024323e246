"""kdlib on a second device, which computes on the CPU but refuses what a GPU and a Mac refuse: see second_device.py."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from second_device import run_on_second_device

from kdlib.loss_table import LOSSES

pytestmark = pytest.mark.slow

# Three classes of pictures of 8 x 8, each bright in another corner, and networks of two layers.
SMALL = """
import torch
from doctor_setups import Net
from kdlib import data, methods, teachers, train
from kdlib.data import DataModule, InMemoryDataset

def split(count, start):
    labels = torch.arange(count) % 3
    images = torch.randint(0, 120, (count, 1, 8, 8), generator=torch.Generator().manual_seed(start)).byte()
    for position, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[position, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 60
    return InMemoryDataset(images, labels, torch.arange(start, start + count), (0.3,), (0.15,))

blobs = DataModule(
    "blobs", ("a", "b", "c"), train=split(48, 0), validation=split(15, 48), test=split(15, 63),
    augmentation=data.Augmentation(padding=1), image_size=8,
)

def network(seed, widths=(6, 8)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(1, 3, widths)

def fit(student, teacher=None, method=None, images=blobs, epochs=2, **options):
    options = {"recipe": train.Recipe(batch_size=16), "progress": False, "precision": "fp32", **options}
    return train.fit(student, images, teacher=teacher, method=method, epochs=epochs, **options)

def same(a, b):
    return all(torch.equal(x.cpu(), b.state_dict()[name]) for name, x in a.state_dict().items())
"""


def run(code: str, float64: bool = True) -> list[str]:
    """The lines that the code prints, with SMALL before it."""
    return run_on_second_device(SMALL + dedent(code), float64).splitlines()


# --- the device itself


def test_the_device_computes_as_the_cpu_refuses_what_cuda_refuses_and_counts_what_the_host_waits_for() -> None:
    code = """
        import torch
        layer = torch.nn.Linear(4, 3)
        weight, expected = layer.weight, layer(torch.ones(2, 4))
        print(layer.to(DEVICE).weight is weight, weight.device)
        answer = layer(torch.ones(2, 4, device=DEVICE))
        answer.sum().backward()
        print(torch.equal(answer.cpu(), expected), weight.grad.cpu().unique().tolist())
        for refused in (lambda: answer + torch.ones(3), lambda: torch.ones(2, 3)[answer > 0], lambda: answer.numpy()):
            try:
                refused()
            except (RuntimeError, TypeError) as error:
                print(type(error).__name__)
        print((answer * torch.tensor(2.0)).device, answer.double().dtype)
        weight.data = torch.zeros(3, 4, device=DEVICE)
        print(float(weight.sum()), torch.tensor([1], device=DEVICE) + 1, answer.new_tensor([2]))
        weight.data[[0, 2], 1:3] = 1.0
        print(weight[[0, 1]].sum(1).tolist())

        x = torch.arange(4.0).to(DEVICE)
        waits.clear()
        x.sum().item(), x.tolist(), x[x > 1], x[torch.tensor([1])], x.cpu(), x.nonzero(), torch.equal(x, x)
        x.copy_(torch.zeros(4)), x.to("cpu", non_blocking=True), x + x
        print(sorted((what, count) for (what, place), count in waits.items()))
    """
    kinds = ("boolean index", "equal", "list", "nonzero", "to the device", "to the host", "value")
    assert run_on_second_device(code).splitlines() == [
        "True gpu:0",
        "True [2.0]",
        *("RuntimeError", "RuntimeError", "TypeError"),
        "gpu:0 torch.float64",
        "0.0 tensor([2]) on gpu:0 tensor([2.]) on gpu:0",
        "[2.0, 0.0]",
        str([(kind, 2 if kind == "to the device" else 1) for kind in kinds]),
    ]


def test_the_device_can_refuse_float64_as_mps_does() -> None:
    code = """
        import torch
        x, wide = torch.ones(2, device=DEVICE), torch.ones(2, dtype=torch.float64)
        for refused in (lambda: x.double(), lambda: x.to("cpu", torch.float64), lambda: wide.to(DEVICE)):
            try:
                refused()
            except TypeError as error:
                print("float64" in str(error))
        print(x.cpu().double().dtype, wide.to(DEVICE, torch.float32).device)
    """
    assert run_on_second_device(code, float64=False).splitlines() == ["True", "True", "True", "torch.float64 gpu:0"]


# --- training


def test_a_network_is_trained_evaluated_and_gone_on_with_on_the_device_as_on_the_cpu(tmp_path: Path) -> None:
    found = run(f"""
        folder = {str(tmp_path)!r}
        teacher = network(1)
        features = methods.Logit() + methods.Feature({{"blocks.0": "blocks.0"}})
        relations = methods.Logit() + methods.Relation({{"blocks.1": "blocks.1"}}, "rkd")
        layers, views = ("blocks.0",), 2
        cache = teachers.CachedTeacher.build(
            teacher, blobs.train, augmentation=blobs.augmentation, seed=0, views=views, layers=layers, progress=False
        )
        trainings = {{
            "labels": dict(ema_decay=0.9, recipe=train.Recipe(batch_size=16, clip=1.0)),
            "live": dict(teacher=teacher, method=relations),
            "cached": dict(teacher=cache, method=features, views=views),
        }}
        for name, options in trainings.items():
            here, there = network(0), network(0)
            results = [fit(one, device=place, **options) for one, place in ((here, "auto"), (there, "cpu"))]
            rows = [[{{**row, "seconds": 0}} for row in result.rows] for result in results]
            print(name, results[0].device, rows[0] == rows[1], same(here, there), next(here.parameters()).device)
        print(*(train.evaluate(here, blobs.test, device=place).accuracy for place in ("auto", "cpu")))

        class Stop(Exception):
            pass

        def stop(epoch, student):
            if epoch == 2:
                raise Stop

        whole, parted = network(0), network(0)
        fit(whole, teacher, methods.Logit())
        try:
            fit(parted, teacher, methods.Logit(), checkpoint=folder + "/run.checkpoint", on_epoch_end=stop)
        except Stop:
            pass
        fit(parted, teacher, methods.Logit(), checkpoint=folder + "/run.checkpoint", resume=True)
        print(same(whole, parted))
    """)
    assert found[:3] == [f"{name} gpu:0, float32 True True cpu" for name in ("labels", "live", "cached")]
    assert found[3] == " ".join([found[3].split()[0]] * 2)
    assert found[4:] == ["True"]


def test_no_step_of_a_training_waits_for_the_device() -> None:
    found = run("""
        from dataclasses import replace

        method = methods.Logit() + methods.Feature({"blocks.0": "blocks.0"})

        def waited(steps, cached):
            images, teacher = replace(blobs, train=split(16 * steps, 0)), network(1)
            if cached:
                options = {"augmentation": blobs.augmentation, "layers": ("blocks.0",), "progress": False}
                teacher = teachers.CachedTeacher.build(teacher, images.train, **options)
            waits.clear()
            fit(network(0), teacher, method, images, epochs=1, views=1)
            return waits.copy()

        for cached in (False, True):
            waited(1, cached)  # what is made once for all trainings
            print(bool(waited(2, cached)), dict(waited(6, cached) - waited(2, cached)))
    """)
    assert found == ["True {}", "True {}"]


def test_labels_out_of_range_do_not_stop_an_evaluation_on_the_device() -> None:
    found = run("""
        from kdlib import train
        from torch import nn

        for low in (-1, 1):
            loader = [(torch.randn(6, 4), torch.arange(6) % 3 + low)]
            for device in ("cpu", "gpu"):
                try:
                    train.evaluate(nn.Linear(4, 3), loader, device=device)
                except ValueError as error:
                    print(low, str(error)[:60])
    """)
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert len(found) == 4


def test_labels_out_of_range_are_refused_before_a_training_on_the_device() -> None:
    found = run("""
        from kdlib.distiller import Distiller
        from torch.nn import functional as F

        hard = lambda z, y: F.cross_entropy(z, y, ignore_index=-1)
        for method in (methods.HardLabels(), methods.Logit(loss="dkd", hard=hard)):
            for device in ("cpu", DEVICE):
                batch = torch.rand(6, 1, 8, 8).to(device), (torch.arange(6) % 3 - 1).to(device)
                networks = [network(seed).to(device) for seed in (0, 1)]
                try:
                    distiller = Distiller(*networks, method, example=batch)
                    if device == "cpu":  # where the losses look at the labels
                        distiller(batch)
                except ValueError as error:
                    print(error)
    """)
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert "dkd needs the label of every sample" in found[2]


def test_every_loss_has_its_gradient_without_float64() -> None:
    found = run(
        """
        from kdlib.distiller import Distiller
        from kdlib.loss_table import LOSSES

        def gradients(name, place):
            torch.manual_seed(0)  # for projectors
            student, teacher = network(0).to(place), network(1).to(place)
            images, labels = blobs.train.images.float().to(place) / 255, blobs.train.labels.to(place)
            both = {"blocks.0": "blocks.0", "blocks.1": "blocks.1"}
            layers = {"logit": None, "feature": both, "relation": both}[LOSSES[name].family]
            method = methods.HardLabels() + methods.create(name, layers)
            distiller = Distiller(student, teacher, method, example=(images, labels))
            distiller((images, labels)).total.backward()
            return [p.grad.cpu() for p in distiller.parameters()]

        for name in LOSSES:
            pairs = zip(gradients(name, DEVICE), gradients(name, "cpu"), strict=True)
            print(name, all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs))
        """,
        float64=False,
    )
    assert found == [f"{name} True" for name in LOSSES]


# --- the doctor


@pytest.mark.parametrize("float64", [True, False])
def test_a_job_is_examined(float64: bool) -> None:
    code = """
        from kdlib import distill
        from kdlib.doctor import job

        job.SAMPLES = 64
        report = job.examine_job(distill.Job(student="resnet8", teacher="resnet20-fashion-v2", images=300))
        print(report.findings, "teacher-fresh" in report.passed)
    """
    assert run_on_second_device(code, float64).splitlines() == ["() True"]


def test_batches_of_a_loader_are_examined_where_the_student_is_and_the_teacher_comes_back() -> None:
    found = run(
        """
        from kdlib.adapters import Adapter
        from kdlib.distiller import Distiller
        from kdlib.doctor import examine
        from kdlib.losses import kd
        from torch.utils.data import DataLoader, TensorDataset

        def examined(place, home, form, batches, adapter=None):
            student, teacher = network(0).to(place), network(1).to(home)
            before = [(p, p.device) for p in teacher.parameters()]
            given = {"student": student, "teacher": teacher}
            if form == "distiller":
                given = {"distiller": Distiller(student, teacher, methods.Logit())}
            if form == "loss":
                given["loss"] = lambda s, t: kd(s, t, 4.0)
            if form == "step":
                given["step"] = lambda batch: kd(student(batch[0].to(place)), teacher(batch[0].to(place)).detach(), 4.0)
            if form == "two devices":
                there = lambda x: teacher(x.to("cpu")).to(place)
                given["step"] = lambda batch: kd(student(batch[0].to(place)), there(batch[0]).detach(), 4.0)
            report = examine(**given, batches=batches, adapter=adapter)
            after = [(p, p.device) for p in teacher.parameters()]
            back = all(p is q and a == b for (p, a), (q, b) in zip(before, after)) and same(teacher, network(1))
            return {one.check for one in report.findings}, report.passed, report.skipped, report.samples, back

        images = blobs.train.images.float() / 255
        loader = DataLoader(TensorDataset(images, blobs.train.labels), 16)
        for given in (
            ("distiller", blobs),
            ("loss", loader),
            ("loss", loader, Adapter(inputs=0, teacher_inputs=lambda batch: batch[0].flip(3))),
            ("step", loader),
        ):
            here, there = examined(DEVICE, DEVICE, *given), examined("cpu", "cpu", *given)
            print(given[0], here == there, here[3:])
        print(*examined(DEVICE, "cpu", "distiller", loader)[3:])
        print("same-view" in examined(DEVICE, "cpu", "two devices", loader)[1])
        """,
        float64=False,
    )
    forms = ("distiller", "loss", "loss", "step")
    assert found == [*(f"{form} True (48, True)" for form in forms), "48 True", "True"]


def test_wrong_labels_are_refused_on_the_device_as_on_the_cpu() -> None:
    found = run("""
        from torch import nn

        inputs = torch.randn(6, 4)
        cases = {
            "a class too many": ("classification", torch.tensor([0, 1, 2, 3, 0, 1])),
            "several at once": ("classification", torch.ones(6, 3)),
            "unknown ones": ("multilabel", torch.tensor([[1.0, -1.0, 0.0]] * 6)),
        }
        for name, (task, labels) in cases.items():
            for device in ("cpu", "gpu"):
                try:
                    fit(nn.Linear(4, 3), images=[(inputs, labels)], task=task, device=device)
                except ValueError as error:
                    print(name, device, str(error)[:40])
    """)
    kinds = {line.rsplit(" gpu ")[0]: line.rsplit(" gpu ")[1] for line in found if " gpu " in line}
    assert set(kinds) == {"a class too many", "several at once", "unknown ones"}
    assert [line for line in found if " cpu " in line] == [f"{name} cpu {text}" for name, text in kinds.items()]


def test_answers_in_float64_teach_where_there_is_none() -> None:
    found = run(
        """
        from kdlib.distiller import Distiller

        student = network(0).to("gpu")
        images = torch.randn(4, 1, 8, 8)
        answers = torch.randn(4, 3, dtype=torch.float64)
        example = (images.to("gpu"), torch.tensor([0, 1, 2, 0]).to("gpu"))
        distiller = Distiller(student, lambda batch: answers, methods.Logit(), example=example)
        print(distiller(example).total.isfinite().item())
        """,
        float64=False,
    )
    assert found == ["True"]


def test_labels_that_python_gave_as_floats_are_learnt_and_evaluated_where_there_is_no_float64() -> None:
    """The loader makes float64 of them, and complex128 of complex numbers."""
    found = run(
        """
        import torch.nn.functional as F
        from torch.utils.data import DataLoader
        from kdlib import devices

        images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        loader = DataLoader([(image, float(image.mean())) for image in images], batch_size=4)
        print(next(iter(loader))[1].dtype)

        def numbers(device):
            student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1), torch.nn.Flatten(0))
            for parameter in student.parameters():
                torch.nn.init.constant_(parameter, 0.01)
            options = {"validation": loader, "method": methods.HardLabels(hard=F.mse_loss), "task": "regression"}
            done = train.fit(student, loader, epochs=1, progress=False, precision="fp32", device=device, **options)
            told = train.evaluate(done.student, loader, loss=F.mse_loss, task="regression", device=device)
            return torch.tensor([done.rows[-1]["hard"], done.rows[-1]["validation_loss"], told.loss])

        torch.testing.assert_close(numbers("auto"), numbers("cpu"))
        wide = {"number": torch.ones(2, dtype=torch.float64), "pair": torch.ones(2, dtype=torch.complex128)}
        print(*(one.dtype for one in devices.move_batch(wide, DEVICE).values()))
        print(*(one.dtype for one in devices.move_batch(wide, "cpu").values()))
        """,
        float64=False,
    )
    assert found == ["torch.float64", "torch.float32 torch.complex64", "torch.float64 torch.complex128"]


def test_a_device_with_float64_gets_it() -> None:
    code = """
        from kdlib import devices
        print(devices.to_device(torch.ones(2, dtype=torch.float64), DEVICE).dtype)
    """
    assert run(code) == ["torch.float64"]
