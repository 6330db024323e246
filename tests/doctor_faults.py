"""Set-ups with a known fault, and random sound ones, for `kdlib.doctor`: each a function of a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from doctor_setups import Case, Pick, case, teacher, train
from torch import Tensor, nn

from kdlib import losses, methods
from kdlib.adapters import Adapter
from kdlib.distiller import Distiller
from kdlib.hooks import FeatureExtractor
from kdlib.teachers import CachedTeacher

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """make: the arguments of `examine` for a seed. checks: any of them finds the fault."""

    make: Callable[[int], Arguments]
    checks: tuple[str, ...]


FAULTS: dict[str, Fault] = {}


def fault(name: str, *checks: str) -> Callable[[Callable[[int], Arguments]], Callable[[int], Arguments]]:
    """Enter a function under this name."""

    def enter(make: Callable[[int], Arguments]) -> Callable[[int], Arguments]:
        FAULTS[name] = Fault(make, checks)
        return make

    return enter


def first(condition: Callable[[Case], bool], seed: int, **wanted: Any) -> Case:
    """The first set-up of this seed in which the fault makes a difference."""
    for more in range(50):
        found = case(seed + 1000 * more, **wanted)
        if condition(found):
            return found
    raise AssertionError("none of 50 set-ups fits")


def with_norm(found: Case) -> bool:
    """Whether the teacher has batch norm or dropout."""
    return any(isinstance(m, nn.BatchNorm2d) or (isinstance(m, nn.Dropout) and m.p) for m in found.teacher.modules())


def rate(found: Case, network: Callable[[Tensor], Tensor]) -> float:
    """The accuracy of answers to the samples that are examined."""
    images, labels = (torch.cat(parts) for parts in zip(*found.batches, strict=True))
    with torch.no_grad():
        return (network(images).argmax(1) == labels).float().mean().item()


def softened(c: Case) -> bool:
    return c.temperature > 1 and c.alpha < 0.95


# -------------------- the teacher


@fault("teacher in train mode", "teacher-mode")
def _(seed: int) -> Arguments:
    c = first(with_norm, seed)
    c.teacher.train()
    return c.arguments()


@fault("teacher's statistics or weights change in a step", "teacher-changes")
def _(seed: int) -> Arguments:
    c = case(seed)

    def step(batch: Any) -> Tensor:
        with torch.no_grad():  # a moving average that was meant for another network
            for p in c.teacher.parameters():
                p.add_(0.01 * torch.randn_like(p))
        return c.step(batch)

    return c.arguments("step", step=step)


@fault("teacher in the optimiser", "teacher-gradient")
def _(seed: int) -> Arguments:
    c = case(seed)
    return c.arguments(optimizer=c.optimizer(c.student, c.teacher))


@fault("gradient into the teacher", "teacher-gradient")
def _(seed: int) -> Arguments:
    c = case(seed)
    return c.arguments("step", step=lambda batch: c.loss(c.student(batch[0]), c.teacher(batch[0]), batch[1]))


@fault("answers of other pictures", "teacher-accuracy", "teacher-pairing")
def _(seed: int) -> Arguments:
    c = case(seed, size=32)
    with torch.no_grad():
        stored = c.teacher(torch.cat([x for x, _ in c.batches]))
    order = torch.randperm(len(stored), generator=torch.Generator().manual_seed(seed))
    batches = [{"image": x, "label": y, "index": 32 * i + torch.arange(32)} for i, (x, y) in enumerate(c.batches)]
    if seed % 2:
        cached = CachedTeacher.from_logits(stored[order], any_view=True)
        method = methods.Logit(c.temperature, c.alpha)
        d = Distiller(c.student, cached, method, adapter=Adapter(inputs="image", labels="label", indices="index"))
        return {"distiller": d, "batches": batches}
    adapter = Adapter(inputs="image", labels="label")
    return c.arguments("loss", teacher=lambda b: stored[order][b["index"]], batches=batches, adapter=adapter)


@fault("answers one place off", "teacher-pairing", "loss-rows")
def _(seed: int) -> Arguments:
    c = case(seed)
    if seed % 2:
        return c.arguments("loss", loss=lambda s, t, y: c.loss(s, t.roll(1, 0), y))

    def ask(batch: Any) -> Tensor:
        with torch.no_grad():
            return c.teacher(batch[0]).roll(c.pick(1, 2, -1), 0)

    return c.arguments("loss", teacher=ask)


@fault("class order differs", "class-order")
def _(seed: int) -> Arguments:
    c = first(lambda c: rate(c, c.teacher) > 0.6, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(c.task.classes)
    while bool((order == torch.arange(len(order))).any()):
        order = torch.randperm(c.task.classes, generator=generator)
    c.teacher.fc.weight.data, c.teacher.fc.bias.data = c.teacher.fc.weight.data[order], c.teacher.fc.bias.data[order]
    return c.arguments()


def _wrong(c: Case, kind: str) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        pixels = x * c.task.std + c.task.mean
        return {"pixels": pixels, "bytes": 255 * pixels, "shifted": x - 1.5, "imagenet": (pixels - 0.45) / 0.1}[kind]

    return change


@fault("normalised otherwise for the teacher", "normalisation")
def _(seed: int) -> Arguments:
    kind = Pick("normalised", seed)("pixels", "bytes", "shifted", "imagenet")

    def costly(c: Case) -> bool:  # the others do no harm
        change = _wrong(c, kind)
        return rate(c, lambda x: c.teacher(change(x))) < rate(c, c.teacher) - 0.15

    c = first(costly, seed)
    change = _wrong(c, kind)
    return c.arguments(batches=[(change(x), y) for x, y in c.batches])


@fault("probabilities in place of logits", "probabilities")
def _(seed: int) -> Arguments:
    c = case(seed)
    (c.student if seed % 2 else c.teacher).last = nn.Softmax(dim=1)
    return c.arguments()


@fault("teacher never loaded", "teacher-fresh", "teacher-accuracy")
def _(seed: int) -> Arguments:
    c = case(seed)
    torch.manual_seed(seed)
    for module in c.teacher.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return c.arguments()


@fault("teacher worse than the student", "teacher-worse")
def _(seed: int) -> Arguments:
    def swapped(c: Case) -> bool:
        train(c.student, c.task, 15, seed)
        return rate(c, c.student.eval()) < rate(c, c.teacher) - 0.12 and rate(c, c.student) > 0.25

    c = first(swapped, seed, norm="none", dropout=0.0)
    c.student, c.teacher = c.teacher.train(), c.student.eval()  # type: ignore[assignment]
    for module in c.student.modules():  # a student with frozen statistics answers as well as the teacher that it was
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return c.arguments()


@fault("teacher trained with smoothed labels", "teacher-smoothing")
def _(seed: int) -> Arguments:
    number = Pick("smoothed", seed)(0, 4, 9, 13, 17)
    c = case(seed, number=number)
    amount = Pick("smoothing", seed)(0.1, 0.2)
    c.teacher = train(teacher(number, amount), c.task, 200, 1, amount).eval()  # to the end
    return c.arguments()


# -------------------- pairing and data


@fault("teacher sees another augmentation", "same-view")
def _(seed: int) -> Arguments:
    c = case(seed)
    kind = c.pick("flip", "shift", "noise")

    def step(batch: Any) -> Tensor:
        x, y = batch
        other = {"flip": x.flip(3), "shift": x.roll((2, 1), (2, 3)), "noise": x + 0.3 * torch.randn_like(x)}[kind]
        with torch.no_grad():
            t = c.teacher(x)
        return c.loss(c.student(other), t, y)

    return c.arguments("step", step=step)


@fault("teacher sees the batch in another order", "same-view")
def _(seed: int) -> Arguments:
    c = case(seed)

    def step(batch: Any) -> Tensor:
        x, y = batch
        with torch.no_grad():
            t = c.teacher(x[torch.randperm(len(x))])
        return c.loss(c.student(x), t, y)

    return c.arguments("step", step=step)


@fault("chosen on the test data", "splits")
def _(seed: int) -> Arguments:
    c = case(seed)
    x, y = c.task.samples(200, 3)
    some = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:60]
    test = torch.utils.data.TensorDataset(x, y)
    chosen = torch.utils.data.TensorDataset(x[some], y[some])
    return c.arguments(data={"validation": chosen if seed % 2 else test, "test": test})


# -------------------- the student and what learns beside it


@fault("student in eval mode", "student-mode")
def _(seed: int) -> Arguments:
    c = case(seed, norm=Pick("norm", seed)("batch", "none"), dropout=0.3)
    c.student.eval()
    return c.arguments()


def tapped(c: Case, projector: nn.Module | None = None, layer: str = "blocks.1") -> Callable[[Any], Arguments]:
    """A step with a hint on a layer that hooks read."""
    seen: dict[str, Tensor] = {}
    for role, network in (("s", c.student), ("t", c.teacher)):
        network.get_submodule(layer).register_forward_hook(lambda m, i, o, role=role: seen.update({role: o}))

    def step(batch: Any) -> Arguments:
        x, y = batch
        with torch.no_grad():
            t = c.teacher(x)
        s = c.student(x)
        a, b = seen["s"], seen["t"]
        a = a if projector is None else projector(a)
        return {"hard": c.alpha * F.cross_entropy(s, y), "soft": (1 - c.alpha) * c.soft(s, t), "hint": F.mse_loss(a, b)}

    return step


def widths(c: Case) -> tuple[int, int]:
    return c.student.blocks[1].conv.out_channels, c.teacher.blocks[1].conv.out_channels


@fault("projector not in the optimiser", "optimizer-parameters")
def _(seed: int) -> Arguments:
    c = case(seed)
    if seed % 2:
        method = methods.Logit(c.temperature, c.alpha) + methods.Feature({"blocks.1": "blocks.1"})
        d = Distiller(c.student, c.teacher, method, example=c.batches[0])
        return {"distiller": d, "batches": c.batches, "optimizer": c.optimizer(c.student)}
    return c.arguments("step", step=tapped(c, nn.Conv2d(*widths(c), 1)), optimizer=c.optimizer(c.student))


@fault("projector not clipped", "clipping")
def _(seed: int) -> Arguments:
    c = case(seed)
    projector = nn.Conv2d(*widths(c), 1)
    optimizer = c.optimizer(c.student, projector)
    return c.arguments("step", step=tapped(c, projector), optimizer=optimizer, clipped=c.student.parameters())


@fault("feature read before an in-place operation", "feature-overwritten")
def _(seed: int) -> Arguments:
    c = case(seed)
    for network in (c.student, c.teacher):
        for block in network.blocks:
            block.relu.inplace = True
    layer = "blocks.1.conv" if isinstance(c.student.blocks[1].norm, nn.Identity) else "blocks.1.norm"
    if seed % 2:
        method = methods.Logit(c.temperature, c.alpha) + methods.Feature({layer: "blocks.1"})
        d = Distiller(c.student, c.teacher, method, setup_later=True)
        return {"distiller": d, "batches": c.batches}
    projector = nn.Conv2d(*widths(c), 1)
    return c.arguments("step", step=tapped(c, projector, layer), optimizer=c.optimizer(c.student, projector))


@fault("feature loss at its least from the beginning", "term-trivial")
def _(seed: int) -> Arguments:
    c = case(seed)
    if seed % 2:  # attention over one position

        def step(batch: Any) -> Arguments:
            with FeatureExtractor(c.student, ["fc"]) as a, FeatureExtractor(c.teacher, ["fc"]) as b:
                s = a(batch[0])
                with torch.no_grad():
                    t = b(batch[0])
            maps = [x.features["fc"].mean(1)[:, None, None, None] for x in (s, t)]
            looks = [F.normalize(m.square().mean(1).flatten(1)) for m in maps]
            return {"kd": c.soft(s.logits, t.logits), "attention": 1000 * F.mse_loss(*looks)}

        return c.arguments("step", step=step)
    for block in (c.teacher.blocks[1],):  # dead features
        layer = block.conv if isinstance(block.norm, nn.Identity) else block.norm
        layer.weight.data.zero_()
        layer.bias.data.fill_(-1.0)
    projector = nn.Conv2d(*widths(c), 1)
    return c.arguments("step", step=tapped(c, projector), optimizer=c.optimizer(c.student, projector))


@fault("a term that does not reach the student", "term-reach")
def _(seed: int) -> Arguments:
    c = case(seed)
    projector = nn.Conv2d(*widths(c), 1)
    seen: dict[str, Tensor] = {}
    c.student.blocks[1].register_forward_hook(lambda m, i, o: seen.update(s=o))
    c.teacher.blocks[1].register_forward_hook(lambda m, i, o: seen.update(t=o))

    def detached(batch: Any) -> Arguments:
        x, y = batch
        with torch.no_grad():
            t = c.teacher(x)
        s = c.student(x)
        terms = {"hard": c.alpha * F.cross_entropy(s, y), "soft": (1 - c.alpha) * c.soft(s, t)}
        return terms | {"hint": F.mse_loss(projector(seen["s"].detach()), seen["t"])}

    return c.arguments("step", step=detached, optimizer=c.optimizer(c.student, projector))


@fault("a term a hundred times another", "term-balance")
def _(seed: int) -> Arguments:
    c = case(seed, alpha=0.5)
    heavy = {"hard": 1.0, "soft": 1.0, c.pick("hard", "soft"): 2000.0}

    def loss(s: Tensor, t: Tensor, y: Tensor) -> Arguments:
        return {"hard": heavy["hard"] * F.cross_entropy(s, y), "soft": heavy["soft"] * c.soft(s, t)}

    return c.arguments("loss", loss=loss, temperature=None, alpha=None)


# -------------------- the loss


def replaced(c: Case, soft: Callable[[Tensor, Tensor], Tensor], **changed: Any) -> Arguments:
    """The same set-up with another soft loss."""
    c.soft = soft  # type: ignore[method-assign]
    return c.arguments(**changed)


@fault("T^2 left out", "loss-temperature")
def _(seed: int) -> Arguments:
    c = first(softened, seed)
    soft, T = c.soft, c.temperature
    if seed % 3 == 0:

        def loss(s: Tensor, t: Tensor, temperature: float = T) -> Tensor:
            p = F.softmax(t / temperature, 1)
            return F.kl_div(F.log_softmax(s / temperature, 1), p, reduction="batchmean")

        return c.arguments("loss", loss=loss, alpha=None)
    return replaced(c, lambda s, t: soft(s, t) / T**2)


@fault("KL in the wrong direction", "loss-direction")
def _(seed: int) -> Arguments:
    c = case(seed)
    soft = c.soft
    return replaced(c, lambda s, t: soft(t, s), meant=c.pick("kd", None))


@fault('reduction "mean"', "loss-reduction")
def _(seed: int) -> Arguments:
    c = case(seed)
    soft = c.soft
    return replaced(c, lambda s, t: soft(s, t) / s.shape[1])


@fault('reduction "sum"', "loss-reduction")
def _(seed: int) -> Arguments:
    c = case(seed)
    soft = c.soft
    return replaced(c, lambda s, t: soft(s, t) * len(s))


@fault("softmax twice", "loss-softmax-twice")
def _(seed: int) -> Arguments:
    c = case(seed)
    soft, who = c.soft, c.pick("student", "teacher", "both")

    def twice(s: Tensor, t: Tensor) -> Tensor:
        s = s.softmax(1) if who != "teacher" else s
        return soft(s, t.softmax(1) if who != "student" else t)

    return replaced(c, twice)


@fault("probabilities where F.kl_div takes their logarithm", "loss-probabilities")
def _(seed: int) -> Arguments:
    c = case(seed)
    T, kind = c.temperature, c.pick("student", "raw", "teacher")

    def soft(s: Tensor, t: Tensor) -> Tensor:
        s, t = s / T, t / T
        if kind == "teacher":
            return T**2 * F.kl_div(s.log_softmax(1), t, reduction="batchmean")
        return T**2 * F.kl_div(s if kind == "raw" else s.softmax(1), t.softmax(1), reduction="batchmean")

    return replaced(c, soft)


@fault("T on one side only", "loss-one-sided-temperature")
def _(seed: int) -> Arguments:
    c = first(softened, seed)
    soft, T, who = c.soft, c.temperature, c.pick("student", "teacher")
    return replaced(c, lambda s, t: soft(s * T, t) if who == "teacher" else soft(s, t * T))


@fault("soft labels broadcast over the batch", "loss-rows")
def _(seed: int) -> Arguments:
    c = case(seed)
    T, kind = c.temperature, c.pick("first", "all")

    def soft(s: Tensor, t: Tensor) -> Tensor:
        t = t[:1].expand_as(t) if kind == "first" else t[:, None]
        log_p = F.log_softmax(s / T, -1)
        return T**2 * (F.softmax(t / T, -1) * (F.log_softmax(t / T, -1) - log_p)).sum(-1).mean()

    return replaced(c, soft)


@fault("teacher's logits on both sides", "loss-ignores-teacher")
def _(seed: int) -> Arguments:
    c = case(seed, alpha=0.5)
    soft = c.soft
    return replaced(c, lambda s, t: soft(t, t))


@fault("alpha with swapped roles", "alpha-roles")
def _(seed: int) -> Arguments:
    c = first(lambda c: c.alpha not in (0.0, 0.5), seed)
    alpha, c.alpha = c.alpha, 1 - c.alpha
    if seed % 2:
        return c.arguments(alpha=alpha)

    def loss(s: Tensor, t: Tensor, y: Tensor) -> Arguments:
        return {"hard": c.alpha * F.cross_entropy(s, y), "soft": (1 - c.alpha) * c.soft(s, t)}

    return c.arguments("loss", loss=loss, alpha=alpha)


@fault("terms under each other's name", "term-names")
def _(seed: int) -> Arguments:
    c = case(seed, alpha=0.3)

    def loss(s: Tensor, t: Tensor, y: Tensor) -> Arguments:
        return {"soft": c.alpha * F.cross_entropy(s, y), "hard": (1 - c.alpha) * c.soft(s, t)}

    return c.arguments("loss", loss=loss)


@fault("not finite at extreme logits", "loss-extremes")
def _(seed: int) -> Arguments:
    c = case(seed)
    T, kind = c.temperature, c.pick("log softmax", "exp")

    def soft(s: Tensor, t: Tensor) -> Tensor:
        p, q = F.softmax(t / T, 1), F.softmax(s / T, 1)
        if kind == "exp":
            q = (s / T).exp() / (s / T).exp().sum(1, keepdim=True)
        return T**2 * F.kl_div(q.log(), p, reduction="batchmean")

    return replaced(c, soft)


@fault("not at rest where both agree", "loss-at-rest")
def _(seed: int) -> Arguments:
    c = case(seed)
    kinds = {
        "root": lambda s, t: (s - t).square().sum(1).sqrt().mean(),
        "scale": lambda s, t: F.mse_loss(s, 2 * t),
        "margin": lambda s, t: F.mse_loss(s, t + 1),
    }
    return c.arguments("loss", loss=kinds[c.pick(*kinds)], alpha=None)


@fault("not finite in 16 bits", "loss-half-precision")
def _(seed: int) -> Arguments:
    c = case(seed)

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return -(t.softmax(1) * (s.softmax(1) + 1e-8).log()).sum(1).mean()

    return c.arguments("loss", loss=loss, alpha=None)


@fault("student without gradient", "student-gradient")
def _(seed: int) -> Arguments:
    c = case(seed)

    def step(batch: Any) -> Tensor:
        x, y = batch
        with torch.no_grad():
            t, s = c.teacher(x), c.student(x)
        return c.loss(s, t, y)

    return c.arguments("step", step=step)


@fault("padding counted", "loss-padding")
def _(seed: int) -> Arguments:
    pick = Pick("padding", seed)
    classes, length, T = pick(5, 9, 20), pick(6, 10), pick(1.0, 2.0, 4.0)
    torch.manual_seed(seed)
    nets = [nn.Sequential(nn.Embedding(30, w), nn.Linear(w, classes)) for w in (8, 16)]
    batches = []
    for _ in range(2):
        x, y = torch.randint(1, 30, (pick(4, 8), length)), torch.randint(classes, (1, length))
        y = y.repeat(len(x), 1)
        y[:, length // 2 :] = -100
        batches.append((x, y))

    def loss(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        hard = F.cross_entropy(s.flatten(0, 1), y.flatten())
        soft = F.kl_div(F.log_softmax(s / T, -1), F.softmax(t / T, -1), reduction="none").sum(-1)
        return 0.5 * hard + 0.5 * T**2 * soft.mean()

    return {"student": nets[0], "teacher": nets[1].eval(), "loss": loss, "batches": batches}


# -------------------- sound ones


LOSSES_OF_ONES_OWN: dict[str, Callable[[Case], Callable[..., Any]]] = {
    "kd": lambda c: c.loss,
    "kd alone": lambda c: lambda s, t: c.soft(s, t),
    "sum with a weight": lambda c: lambda s, t, y: F.cross_entropy(s, y) + 0.7 * c.soft(s, t),
    "named terms": lambda c: (
        lambda s, t, y: {
            "hard": max(c.alpha, 0.05) * F.cross_entropy(s, y),
            "soft": (1 - c.alpha) * c.soft(s, t),
        }
    ),
    "cross-entropy with soft labels": lambda c: (
        lambda s, t, y: (
            c.alpha * F.cross_entropy(s, y)
            + (1 - c.alpha) * c.temperature**2 * F.cross_entropy(s / c.temperature, (t / c.temperature).softmax(1))
        )
    ),
    "smoothed labels": lambda c: lambda s, t, y: F.cross_entropy(s, y, label_smoothing=0.1) + c.soft(s, t),
    "mse of logits": lambda c: lambda s, t, y: 0.5 * F.cross_entropy(s, y) + 0.5 * F.mse_loss(s, t),
    "huber": lambda c: lambda s, t: F.smooth_l1_loss(s, t),
    "dkd": lambda c: lambda s, t, y: F.cross_entropy(s, y) + losses.dkd(s, t, y, temperature=c.temperature),
    "dist": lambda c: lambda s, t, y: F.cross_entropy(s, y) + losses.dist(s, t, temperature=c.temperature),
    "js": lambda c: lambda s, t: _js(s, t, c.temperature),
}


def _js(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    a, b = (F.log_softmax(z / temperature, 1) for z in (s, t))
    m = torch.logsumexp(torch.stack([a, b]), 0) - torch.log(torch.tensor(2.0))
    both = [F.kl_div(m, x, reduction="batchmean", log_target=True) for x in (a, b)]
    return temperature**2 * sum(both) / 2  # type: ignore[return-value]


METHODS_OF_KDLIB: dict[str, Callable[[Case], methods.Method]] = {
    "logit": lambda c: methods.Logit(c.temperature, c.alpha),
    # With beta = 8, T = 20 and alpha = 0.05 its soft term is 470 times the hard one, and to say so is right.
    "dkd": lambda c: methods.Logit(min(c.temperature, 4.0), max(c.alpha, 0.1), "dkd"),
    "dist": lambda c: methods.Logit(c.temperature, c.alpha, "dist"),
    "standardized": lambda c: methods.Logit(c.temperature, c.alpha, "standardized_kd"),
    "function": lambda c: methods.Logit(alpha=c.alpha, loss=c.soft),
    "hint": lambda c: methods.HardLabels() + 10 * methods.Feature(LAST),
    "attention": lambda c: methods.HardLabels() + 100 * methods.Feature({"blocks.0": "blocks.0"}, "attention"),
    "vid": lambda c: methods.HardLabels() + methods.Feature(LAST, "vid"),
    "fsp": lambda c: methods.HardLabels() + 10 * methods.Relation(BOTH, "fsp"),
    "cka": lambda c: methods.HardLabels() + methods.Relation(BOTH, "layer_correlation"),
    "rkd": lambda c: methods.Logit(c.temperature, c.alpha) + methods.Relation(LAST, "rkd"),
    "similarity": lambda c: methods.Logit(c.temperature, c.alpha) + 100 * methods.Relation(LAST, "similarity"),
    "hard": lambda c: methods.HardLabels(0.1),
}
LAST = {"blocks.1": "blocks.1"}
BOTH = {"blocks.0": "blocks.0", "blocks.1": "blocks.1"}


def sound(seed: int) -> tuple[str, Arguments]:
    """What it is, and the arguments of `examine` for it."""
    c = case(seed, purpose="sound")
    kind = c.pick("distiller", "distiller", "loss", "step", "features", "mixed")
    if kind == "distiller":
        name = c.pick(*METHODS_OF_KDLIB)
        d = Distiller(c.student, c.teacher, METHODS_OF_KDLIB[name](c), example=c.batches[0])
        return f"Distiller, {name}", {"distiller": d, "batches": c.batches, "optimizer": c.optimizer(d)}
    if kind == "features":
        projector = nn.Conv2d(*widths(c), 1)
        learns = c.student, projector
        clipped = [p for one in learns for p in one.parameters()]
        c.alpha = max(c.alpha, 0.05)
        return "step with a hint", c.arguments(
            "step", step=tapped(c, projector), optimizer=c.optimizer(*learns), clipped=clipped
        )
    if kind == "mixed":
        return "step with its own augmentation", c.arguments("step", step=lambda batch: _augmented(c, batch))
    name = c.pick(*LOSSES_OF_ONES_OWN)
    function = LOSSES_OF_ONES_OWN[name](c)
    arguments = c.arguments("loss", loss=function)
    if name not in ("kd", "cross-entropy with soft labels"):
        arguments.pop("alpha", None)
    if kind == "step":
        arguments["step"] = _as_step(c, arguments.pop("loss"), name)
    return f"{kind}, {name}", arguments


def _augmented(c: Case, batch: Any) -> Tensor:
    x, y = batch
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    with torch.no_grad():
        t = c.teacher(x)
    return c.loss(c.student(x), t, y)


def _as_step(c: Case, function: Callable[..., Any], name: str) -> Callable[[Any], Any]:
    def step(batch: Any) -> Any:
        x, y = batch
        with torch.inference_mode() if c.seed % 2 else torch.no_grad():
            t = c.teacher(x)
        t = t.clone()
        s = c.student(x)
        return function(s, t) if name in ("kd alone", "huber", "js") else function(s, t, y)

    return step
