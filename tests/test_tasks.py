"""Tasks: what the losses are when logits mean several labels, pixels, tokens or numbers, against torch's own."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import sigmoid_focal_loss

from kdlib import tasks, train
from kdlib.adapters import Adapter
from kdlib.distiller import Distiller
from kdlib.hooks import ModelOutput
from kdlib.methods import Feature, HardLabels, Logit, Method
from kdlib.tasks import Classification, MultiLabel, Regression, Segmentation, Task, TokenClassification

B, C, H, W, L = 4, 5, 3, 2, 6
POSITIONS: dict[str, tuple[int, ...]] = {
    "classification": (B, C),
    "multilabel": (B, C),
    "segmentation": (B, C, H, W),
    "token-classification": (B, L, C),
    "regression": (B, C),
}
IGNORED = {"segmentation": 255, "token-classification": -100}
LOGIT_LOSSES = ["kd", "dkd", "dist", "standardized_kd"]


def logits(task: str, seed: int = 0) -> Tensor:
    return 2 * torch.randn(POSITIONS[task], generator=torch.Generator().manual_seed(seed))


def labels_for(task: str) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    if task == "regression":
        return torch.randn(POSITIONS[task], generator=generator)
    if task == "multilabel":
        return torch.randint(0, 2, POSITIONS[task], generator=generator)
    shape = POSITIONS[task]
    return torch.randint(0, C, (B, *(shape[2:] if task == "segmentation" else shape[1:-1])), generator=generator)


class Given(nn.Module):
    """Logits that are its only parameter."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, x: Any) -> Tensor:
        return self.values


def distil(
    task: str | Task, method: Method, student: Tensor, teacher: Tensor | None, labels: Tensor | None
) -> tuple[dict[str, Tensor], Tensor]:
    """The terms, and the gradient of their sum with respect to the student's logits."""
    network = Given(student)
    found = Distiller(network, None if teacher is None else lambda batch: teacher, method, task=task)((0, labels))
    found.total.backward()
    assert network.values.grad is not None
    return {name: term.detach() for name, term in found.terms.items()}, network.values.grad


def hard(task: str | Task, student: Tensor, labels: Tensor) -> Tensor:
    return distil(task, HardLabels(), student, None, labels)[0]["hard"]


def soft(task: str | Task, student: Tensor, teacher: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
    return distil(task, Logit(**{"alpha": 0.0, **options}), student, teacher, labels)[0]["soft"]


class Looks(TorchDispatchMode):
    """Counts the operations whose size depends on numbers, for which the host waits on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [one for one in pytree.tree_leaves(args) if isinstance(one, Tensor) and one.dtype == torch.bool]
        name = function.overloadpacket.__name__
        self.count += name in ("nonzero", "_local_scalar_dense", "masked_select") or (name == "index" and bool(masks))
        return function(*args, **(kwargs or {}))


# -------------------- several labels at once


BINARY = {
    "a module": nn.BCEWithLogitsLoss(),
    "a function": F.binary_cross_entropy_with_logits,
    "with a weight": partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(5.0)),
    "bound twice": partial(partial(F.binary_cross_entropy_with_logits), pos_weight=torch.tensor(5.0)),
    "focal": sigmoid_focal_loss,
    "focal, its mean": partial(sigmoid_focal_loss, reduction="mean"),
}


@pytest.mark.parametrize("loss", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize("method", [HardLabels, Logit])
def test_binary_cross_entropy_is_refused_where_it_is_the_default(loss: Any, method: Any) -> None:
    with pytest.raises(ValueError, match="leave hard out.*pos_weight"):
        Distiller(nn.Linear(2, 3), nn.Linear(2, 3), method(hard=loss), task="multilabel")
    with pytest.raises(ValueError, match="leave loss out.*pos_weight"):
        train.evaluate(nn.Linear(2, 3), [(torch.zeros(1, 2), torch.zeros(1, 3))], task="multilabel", loss=loss)
    Distiller(nn.Linear(2, 3), nn.Linear(2, 3), Logit(loss=F.mse_loss, hard=loss), task="regression")


def test_a_weight_of_the_labels_that_are_there_is_one_of_the_cross_entropy() -> None:
    z, y = logits("multilabel"), labels_for("multilabel").float()
    method = HardLabels(hard=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])))
    expected = F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor(3.0))
    torch.testing.assert_close(distil("multilabel", method, z, None, y)[0]["hard"], expected)


def test_a_weight_for_each_label_is_torchs_own_where_none_is_ignored() -> None:
    z, y, w = logits("multilabel"), labels_for("multilabel").float(), torch.arange(1.0, C + 1)

    def weighted(rows: Tensor, labels: Tensor) -> Tensor:  # as the error of binary cross-entropy advises
        return F.binary_cross_entropy_with_logits(rows[:, 1].view(-1, C), labels[:, 1].view(-1, C), pos_weight=w)

    expected = F.binary_cross_entropy_with_logits(z, y, pos_weight=w)
    torch.testing.assert_close(distil("multilabel", HardLabels(hard=weighted), z, None, y)[0]["hard"], expected)
    found = [
        train.evaluate(nn.Identity(), batches, task="multilabel", loss=weighted, precision="fp32").loss
        for batches in ([(z, y)], [(z[:1], y[:1]), (z[1:], y[1:])])
    ]
    assert found == [pytest.approx(expected.item(), rel=1e-6)] * 2


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float64])
def test_several_labels_are_binary_cross_entropy(kind: torch.dtype) -> None:
    z, y = logits("multilabel"), labels_for("multilabel")
    expected = F.binary_cross_entropy_with_logits(z, y.float())
    torch.testing.assert_close(hard("multilabel", z, y.to(kind)), expected)


def test_soft_labels_are_binary_cross_entropy_too() -> None:
    z, y = logits("multilabel"), torch.rand(B, C)
    torch.testing.assert_close(hard("multilabel", z, y), F.binary_cross_entropy_with_logits(z, y))


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
@pytest.mark.parametrize("ignored", [-100, -1])
def test_several_labels_of_which_some_are_not_known(kind: torch.dtype, ignored: int) -> None:
    z, y = logits("multilabel"), labels_for("multilabel").to(kind)
    y[0, 1] = y[2, 3] = y[2, 4] = ignored
    known = y != ignored
    expected = F.binary_cross_entropy_with_logits(z[known], y[known].float())
    torch.testing.assert_close(hard(MultiLabel(ignore_index=ignored), z, y), expected)
    _, gradient = distil(MultiLabel(ignore_index=ignored), Logit(), z, logits("multilabel", 1), y)
    assert torch.equal(gradient == 0, ~known)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 10.0])
def test_the_soft_loss_of_several_labels_is_the_binary_kl_by_hand(temperature: float) -> None:
    z, t, y = logits("multilabel"), logits("multilabel", 1), labels_for("multilabel")
    total = 0.0
    for a, b in zip(z.flatten().tolist(), t.flatten().tolist(), strict=True):
        q, p = (1 / (1 + math.exp(-x / temperature)) for x in (a, b))
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = soft("multilabel", z, t, y, temperature=temperature)
    assert found.item() == pytest.approx(temperature**2 * total / (B * C), rel=1e-4)


# -------------------- a class for every pixel


def test_segmentation_is_the_cross_entropy_of_the_pixels_that_count() -> None:
    z, y = logits("segmentation"), labels_for("segmentation")
    torch.testing.assert_close(hard("segmentation", z, y), F.cross_entropy(z, y))
    y[0, 0] = y[3, 2, 1] = 255
    torch.testing.assert_close(hard("segmentation", z, y), F.cross_entropy(z, y, ignore_index=255))


def test_the_soft_loss_of_pixels_is_a_mean_over_those_that_count_by_a_loop() -> None:
    z, t, y = logits("segmentation"), logits("segmentation", 1), labels_for("segmentation")
    y[1] = y[2, 0, 0] = 255
    terms = []
    for sample in range(B):
        for row in range(H):
            for column in range(W):
                if y[sample, row, column] != 255:
                    p, q = ((x[sample, :, row, column] / 4).softmax(0) for x in (t, z))
                    terms.append(16 * (p * (p / q).log()).sum())
    assert len(terms) == B * H * W - H * W - 1
    torch.testing.assert_close(soft("segmentation", z, t, y), torch.stack(terms).mean())


@pytest.mark.parametrize("task", ["segmentation", Segmentation()])
def test_a_class_of_the_number_that_marks_what_does_not_count_is_not_left_out_in_silence(task: str | Task) -> None:
    z = torch.randn(2, 256, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 255, 7], [255, 254, 3]])
    with pytest.raises(ValueError, match=r"256 classes.*class 255.*tasks\.Segmentation\(ignore_index=-1\).*=255"):
        hard(task, z, y)
    torch.testing.assert_close(hard(Segmentation(ignore_index=-1), z, y), F.cross_entropy(z, y))
    for mark in (255, 7):
        torch.testing.assert_close(
            hard(Segmentation(ignore_index=mark), z, y), F.cross_entropy(z, y, ignore_index=mark)
        )
    y = y.clamp(max=254)
    torch.testing.assert_close(hard(replace(Segmentation()), z[:, :255], y), F.cross_entropy(z[:, :255], y))


def test_a_teacher_of_more_classes_says_nothing_of_the_labels() -> None:
    """They are the student's; that the classes differ is told as such."""
    maps = [nn.Conv2d(1, classes, 1) for classes in (3, 300)]
    batch = torch.randn(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="compare the same classes"):
        Distiller(*maps, Logit(), task="segmentation", example=batch)


def test_a_teacher_that_is_evaluated_has_labels_of_its_own_classes() -> None:
    batch = torch.randn(2, 1, 4, 4), torch.full((2, 4, 4), 255)
    with pytest.raises(ValueError, match=r"teacher gives logits of 300 classes, and class 255 is one of them"):
        train.evaluate(nn.Conv2d(1, 300, 1), [batch], task="segmentation", role="teacher", device="cpu")


def test_without_labels_every_class_of_segmentation_counts() -> None:
    z = torch.randn(2, 300, 3)
    assert Segmentation().rows(z, None)[0].shape == (6, 300)


def test_segmentation_takes_a_line_and_a_volume_of_positions() -> None:
    for positions in ((7,), (2, 3, 2)):
        z, y = torch.randn(B, C, *positions), torch.randint(0, C, (B, *positions))
        y[0] = 255
        torch.testing.assert_close(hard("segmentation", z, y), F.cross_entropy(z, y, ignore_index=255))


def test_rows_and_labels_are_those_of_the_positions_that_count() -> None:
    z, y = logits("segmentation"), labels_for("segmentation")
    y[0, 0, 0] = 255
    rows, kept = Segmentation().rows(z, y)
    assert torch.equal(rows[0], z[0, :, 0, 1])
    assert torch.equal(rows[-1], z[-1, :, -1, -1])
    assert torch.equal(kept, y[y != 255])


# -------------------- a class for every token


def test_tokens_are_the_cross_entropy_of_transformers() -> None:
    z, y = logits("token-classification"), labels_for("token-classification")
    y[0, 4:] = y[2, 0] = -100
    expected = F.cross_entropy(z.reshape(-1, C), y.reshape(-1), ignore_index=-100)
    torch.testing.assert_close(hard("token-classification", z, y), expected)


@pytest.mark.parametrize("loss", LOGIT_LOSSES)
@pytest.mark.parametrize("task", ["token-classification", "segmentation"])
def test_what_is_appended_as_padding_changes_neither_loss_nor_gradient(task: str, loss: str) -> None:
    z, t, y = logits(task), logits(task, 1), labels_for(task)
    dimension = 1 if task == "token-classification" else 2

    def padded(values: Tensor, where: int, fill: float) -> Tensor:
        shape = list(values.shape)
        shape[where] = 3
        return torch.cat([values, torch.full(shape, fill, dtype=values.dtype)], where)

    method = Logit(temperature=3, alpha=0.3, loss=loss)
    terms, gradient = distil(task, method, z, t, y)
    more, wider = distil(
        task, method, padded(z, dimension, 7.0), padded(t, dimension, -50.0), padded(y, 1, IGNORED[task])
    )
    for name, term in terms.items():
        torch.testing.assert_close(more[name], term)
    kept, extra = wider.split([z.shape[dimension], 3], dim=dimension)
    torch.testing.assert_close(kept, gradient)
    assert not extra.any()


class Tokens(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(2 * torch.randn(9, C, generator=torch.Generator().manual_seed(seed)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.rows[input_ids]}


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("ignored", [-100, 0])
def test_padding_of_tokens_without_labels_does_not_count(kind: torch.dtype, ignored: int) -> None:
    student, teacher = Tokens(0), Tokens(1)
    distiller = Distiller(student, teacher, Logit(temperature=2, alpha=0), task=TokenClassification(ignored))
    ids = torch.randint(1, 9, (B, L), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(B, L, dtype=kind)
    plain = distiller({"input_ids": ids, "attention_mask": mask})
    padded = distiller({"input_ids": F.pad(ids, (3, 2)), "attention_mask": F.pad(mask, (3, 2))})
    assert padded.labels is None
    assert list(padded.terms) == ["soft"]
    assert len(padded.rows) == B * L
    torch.testing.assert_close(padded.total, plain.total)
    padded.total.backward()
    assert student.rows.grad is not None
    assert not student.rows.grad[0].any()  # of the token that pads


def test_a_mask_of_other_positions_says_nothing_of_the_logits() -> None:
    ids = torch.randint(1, 9, (B, L), generator=torch.Generator().manual_seed(2))
    distiller = Distiller(Tokens(0), Tokens(1), Logit(alpha=0), task="token-classification")
    with pytest.warns(UserWarning, match="padded positions count"):
        found = distiller({"input_ids": ids, "attention_mask": torch.zeros(B, L + 1, dtype=torch.int64)})
    assert len(found.rows) == B * L
    with pytest.raises(ValueError, match="No position of this batch counts"):
        distiller({"input_ids": ids, "attention_mask": torch.zeros(B, L, dtype=torch.int64)})


class Frames(nn.Module):
    """A class for every four samples of a sound."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, C)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.fc(input_values.unflatten(1, (-1, 4)))


@pytest.mark.parametrize("example", [False, True])
def test_padding_that_counts_since_its_mask_is_of_samples_is_warned_of_once(example: bool) -> None:
    mask = torch.ones(B, 4 * L, dtype=torch.int64)
    full = {"input_values": torch.randn(B, 4 * L), "attention_mask": mask}
    padded = full | {"attention_mask": mask.index_fill(1, torch.arange(12, 24), 0)}

    def distilled(*batches: dict[str, Tensor]) -> list[int]:
        options: dict[str, Any] = {"task": "token-classification", "example": batches[0] if example else None}
        distiller = Distiller(Frames(), Frames(), Logit(alpha=0), **options)
        return [len(distiller(batch).rows) for batch in batches]

    said = r"attention_mask of shape \(4, 24\).*logits of \(4, 6, 5\).*padded positions count.*labels that are -100"
    with pytest.warns(UserWarning, match=said) as caught:
        assert distilled(padded, padded, padded) == [B * L] * 3
    assert [one.filename for one in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = torch.where(padded["attention_mask"][:, ::4] > 0, 0, -100)
        assert distilled(full, padded | {"labels": labels}) == [B * L, B * L // 2]


def test_a_task_of_ones_own_that_reads_a_mask_of_samples_is_not_warned_of_it() -> None:
    class OfFrames(TokenClassification):
        def without_labels(self, batch: Any, logits: Tensor) -> Tensor | None:
            return super().without_labels(batch | {"attention_mask": batch["attention_mask"][:, ::4]}, logits)

    mask = torch.ones(B, 4 * L, dtype=torch.int64).index_fill(1, torch.arange(12, 24), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller = Distiller(Frames(), Frames(), Logit(alpha=0), task=OfFrames())
        found = distiller({"input_values": torch.randn(B, 4 * L), "attention_mask": mask})
    assert len(found.rows) == B * L // 2


def test_a_mask_of_which_token_sees_which_says_nothing_of_padding() -> None:
    sees = torch.ones(L, L).tril().expand(B, 1, L, L)
    batch = {"input_ids": torch.ones(B, L, dtype=torch.int64), "attention_mask": sees}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Distiller(Tokens(0), Tokens(1), Logit(alpha=0), task="token-classification")(batch)


class Decoder(Tokens):
    """An encoder-decoder, whose logits are of the decoder's tokens."""

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, **masks: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": self.rows[decoder_input_ids] + self.rows[input_ids].sum()}


def test_the_mask_of_an_encoder_says_nothing_of_the_tokens_of_a_decoder() -> None:
    ids = torch.randint(1, 9, (B, L), generator=torch.Generator().manual_seed(2))
    masks = {"attention_mask": torch.zeros(B, L), "decoder_attention_mask": torch.ones(B, L)}
    masks["attention_mask"][:, 0] = 1
    distiller = Distiller(Decoder(0), Decoder(1), Logit(alpha=0), task="token-classification")
    found = distiller({"input_ids": ids, "decoder_input_ids": ids, **masks})
    assert len(found.rows) == B * L
    masks["decoder_attention_mask"][0, 1:] = 0
    assert len(distiller({"input_ids": ids, "decoder_input_ids": ids, **masks}).rows) == B * L - (L - 1)
    del masks["decoder_attention_mask"]
    assert len(distiller({"input_ids": ids, "decoder_input_ids": ids, **masks}).rows) == B * L


def test_labels_come_before_a_mask() -> None:
    ids = torch.randint(1, 9, (B, L), generator=torch.Generator().manual_seed(2))
    labels, mask = ids % C, torch.ones(B, L, dtype=torch.int64)
    labels[0, 1] = -100
    mask[:, 3:] = 0
    distiller = Distiller(Tokens(0), Tokens(1), Logit(alpha=0.5), task="token-classification")
    assert len(distiller({"input_ids": ids, "attention_mask": mask, "labels": labels}).rows) == B * L - 1


# -------------------- every loss on every task with classes


@pytest.mark.parametrize("loss", LOGIT_LOSSES)
@pytest.mark.parametrize("task", ["classification", "multilabel", "segmentation", "token-classification"])
def test_every_logit_loss_serves_every_task_with_classes(task: str, loss: str) -> None:
    method = Logit(temperature=2, alpha=0.3, loss=loss)
    if task == "multilabel" and loss in ("dkd", "standardized_kd"):
        with pytest.raises(ValueError, match=rf"{loss} needs more than the two classes.*'kd'\.$"):
            Distiller(nn.Linear(2, 2), nn.Linear(2, 2), method, task=task)
        return
    terms, gradient = distil(task, method, logits(task), logits(task, 1), labels_for(task))
    assert all(term.isfinite() and term > 0 for term in terms.values())
    assert gradient.isfinite().all()
    _, alone = distil(task, Logit(2, 0.0, loss), logits(task), logits(task, 1), labels_for(task))
    assert alone.abs().max() > 1e-4


def test_dkd_of_two_classes_is_refused_in_words() -> None:
    z, y = torch.randn(B, 2, H, W), torch.zeros(B, H, W, dtype=torch.int64)
    with pytest.raises(ValueError, match="dkd needs at least 3 classes.*kd"):
        distil("segmentation", Logit(loss="dkd"), z, z, y)


def test_dkd_without_labels_is_refused_in_words() -> None:
    z = logits("classification")
    with pytest.raises(ValueError, match="dkd looks at the labels.*none.*'kd'"):
        distil("classification", Logit(loss="dkd", alpha=0.0), z, z + 1, None)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("task", ["classification", "multilabel", "segmentation", "token-classification"])
def test_the_gradient_carries_the_square_of_the_temperature(task: str, temperature: float) -> None:
    z, t, y = logits(task), logits(task, 1), labels_for(task)
    _, gradient = distil(task, Logit(temperature, alpha=0.25), z, t, y)
    decisions = y.numel()

    if task == "multilabel":
        plain = (z.sigmoid() - y) / decisions
        softened = temperature * ((z / temperature).sigmoid() - (t / temperature).sigmoid()) / decisions
    else:
        classes = -1 if task == "token-classification" else 1
        one_hot = F.one_hot(y, C).movedim(-1, classes)
        plain = (z.softmax(classes) - one_hot) / decisions
        softened = (z / temperature).softmax(classes) - (t / temperature).softmax(classes)
        softened = temperature * softened / decisions
    torch.testing.assert_close(gradient, 0.25 * plain + 0.75 * softened)


@pytest.mark.parametrize("task", ["classification", "multilabel", "segmentation", "token-classification"])
def test_without_labels_the_teacher_alone_is_learned_from(task: str) -> None:
    z, t = logits(task), logits(task, 1)
    terms, gradient = distil(task, Logit(alpha=0.0), z, t, None)
    assert list(terms) == ["soft"]
    torch.testing.assert_close(terms["soft"], soft(task, z, t, labels_for(task)))
    assert gradient.any()
    with pytest.raises(ValueError, match=r"this batch has none.*Logit\(alpha=0\)"):
        distil(task, Logit(alpha=0.1), z, t, None)


# -------------------- mixed labels, and numbers


def test_mixed_labels_are_the_mixture_of_two_cross_entropies() -> None:
    z, t, y = logits("classification"), logits("classification", 1), labels_for("classification")
    other, share = y.flip(0), 0.7
    mixed = share * F.one_hot(y, C) + (1 - share) * F.one_hot(other, C)
    expected = share * F.cross_entropy(z, y) + (1 - share) * F.cross_entropy(z, other)
    torch.testing.assert_close(hard("classification", z, mixed), expected)
    terms, _ = distil("classification", Logit(alpha=0.4), z, t, mixed)
    torch.testing.assert_close(terms["hard"], 0.4 * expected)


def test_numbers_are_learned_by_the_functions_that_are_given() -> None:
    z, t, y = logits("regression"), logits("regression", 1), labels_for("regression")
    terms, gradient = distil("regression", Logit(alpha=0.3, loss=F.mse_loss, hard=F.mse_loss), z, t, y)
    torch.testing.assert_close(terms["hard"], 0.3 * F.mse_loss(z, y))
    torch.testing.assert_close(terms["soft"], 0.7 * F.mse_loss(z, t))
    torch.testing.assert_close(gradient, 2 * (0.3 * (z - y) + 0.7 * (z - t)) / z.numel())
    torch.testing.assert_close(distil("regression", HardLabels(hard=F.l1_loss), z, None, y)[0]["hard"], F.l1_loss(z, y))


def test_a_teacher_whose_numbers_would_be_broadcast_is_refused() -> None:
    z, t, y = torch.randn(B, 1), torch.randn(B), torch.randn(B, 1)
    with pytest.raises(ValueError, match=r"student gives.*\(4, 1\), the teacher of \(4,\)"):
        distil("regression", Logit(loss=F.mse_loss, hard=F.mse_loss), z, t, y)


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits])
def test_a_binary_cross_entropy_on_the_rows_of_several_labels_is_refused(loss: Any) -> None:
    """It would see the logits (0, z), so half of it is the same for every network."""
    batch = (torch.randn(8, 3), (torch.rand(8, 3) > 0.5).float())
    with pytest.raises(ValueError, match="leave loss out.*is the default"):
        train.evaluate(nn.Identity(), [batch], task="multilabel", loss=loss)
    found = train.evaluate(nn.Identity(), [batch], task="multilabel", device="cpu", precision="fp32")
    assert found.loss == pytest.approx(F.binary_cross_entropy_with_logits(*batch).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("output", "targets"),
    [((16, 1), (16,)), ((8, 1, 6, 6), (8, 6, 6)), ((16,), (16, 1)), ((8, 5, 1), (8, 5)), ((8, 5), (8, 5, 1))],
)
def test_targets_that_would_be_broadcast_are_refused(output: tuple[int, ...], targets: tuple[int, ...]) -> None:
    network, x, y = Given(torch.randn(output)), torch.zeros(output[0]), torch.randn(targets)
    options: dict[str, Any] = {"task": "regression", "device": "cpu", "precision": "fp32"}
    method = HardLabels(hard=lambda z, y: (z - y).square().mean())
    with pytest.raises(ValueError, match="every pair of samples") as in_fit:
        train.fit(network, [(x, y)], method=method, epochs=1, progress=False, **options)
    with pytest.raises(ValueError, match="every pair of samples") as in_evaluate:
        train.evaluate(network, [(x, y)], loss=F.mse_loss, **options)
    for caught in (in_fit, in_evaluate):
        (shape,) = re.findall(r"labels\.reshape\(([-\d, ]+)\)", str(caught.value))
        y = torch.arange(float(y.numel())).view(targets).reshape([int(size) for size in shape.split(",")])
        assert torch.equal(y, torch.arange(float(y.numel())).view(output))
        train.fit(network, [(x, y)], method=method, epochs=1, progress=False, **options)
        assert train.evaluate(network, [(x, y)], loss=F.mse_loss, **options).loss > 0


def test_targets_whose_axes_have_another_order_are_not_told_to_be_reshaped() -> None:
    with pytest.raises(ValueError, match=r"axes in the order") as caught:
        Regression().rows(torch.zeros(8, 17, 6, 6), torch.zeros(8, 6, 6, 17))
    assert "reshape" not in str(caught.value)


def test_numbers_of_any_shape_stay_as_they_are() -> None:
    for shape in ((B,), (B, 1), (B, 2, 3, 4, 5)):
        z, y = torch.randn(shape), torch.randn(shape)
        assert Regression().rows(z, y) == (z, y)


def test_a_task_of_ones_own_needs_only_its_rows() -> None:
    class Last(Task):
        """The class of a sequence stands at its last position."""

        def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
            return logits[:, -1], labels

    z, t, y = logits("token-classification"), logits("token-classification", 1), torch.arange(B)
    terms, _ = distil(Last(), Logit(alpha=0.5), z, t, y)
    torch.testing.assert_close(terms["hard"], 0.5 * F.cross_entropy(z[:, -1], y))


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_is_found_by_its_name_or_given_as_it_is(name: str) -> None:
    task = tasks.resolve(name)
    assert type(task) is tasks.TASKS[name]
    assert tasks.resolve(task) is task


def test_the_teachers_rows_are_those_of_the_students_positions() -> None:
    z, t, y = logits("token-classification"), logits("token-classification", 1), labels_for("token-classification")
    y[1, 2:] = -100
    student, teacher, kept = TokenClassification().prepare(ModelOutput(z), ModelOutput(t), y)
    assert teacher is not None
    assert torch.equal(student.logits, z[y != -100])
    assert torch.equal(teacher.logits, t[y != -100])
    assert torch.equal(kept, y[y != -100])


@pytest.mark.parametrize("task", ["segmentation", "token-classification"])
def test_which_positions_count_is_looked_for_once_for_both_networks(task: str) -> None:
    z, t, y = logits(task), logits(task, 1), labels_for(task)
    y[1, 1:] = IGNORED[task]
    with Looks() as looks:
        student, teacher, kept = tasks.resolve(task).prepare(ModelOutput(z), ModelOutput(t), y)
    assert looks.count == 1
    assert len(student.logits) == len(teacher.logits) == len(kept) == int((y != IGNORED[task]).sum())


def test_which_of_several_labels_are_known_is_looked_for_once_for_both_networks() -> None:
    z, t, y = logits("multilabel"), logits("multilabel", 1), labels_for("multilabel").float()
    y[1, 1:] = -100
    with Looks() as looks:
        student, teacher, kept = MultiLabel().prepare(ModelOutput(z), ModelOutput(t), y)
    assert looks.count == 1
    for found, given in ((student, z), (teacher, t)):
        assert found is not None
        assert torch.equal(found.logits, MultiLabel().rows(given, y)[0])
    assert torch.equal(kept, MultiLabel().rows(z, y)[1])


def test_entries_that_a_task_of_ones_own_leaves_out_are_left_out_of_both_networks() -> None:
    class ButTheFirst(MultiLabel):
        """The first label is that of something else."""

        def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
            return super().rows(logits[:, 1:], None if labels is None else labels[:, 1:], role)

    z, t, y = logits("multilabel"), logits("multilabel", 1), labels_for("multilabel")
    student, teacher, kept = ButTheFirst().prepare(ModelOutput(z), ModelOutput(t), y)
    assert teacher is not None
    assert torch.equal(student.logits[:, 1], z[:, 1:].flatten())
    assert torch.equal(teacher.logits[:, 1], t[:, 1:].flatten())
    assert torch.equal(kept, y[:, 1:].flatten())


def test_positions_that_a_task_of_ones_own_leaves_out_are_left_out_of_both_networks() -> None:
    class ButTheFirst(TokenClassification):
        """The first token is that of the whole text."""

        def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
            return super().rows(logits[:, 1:], None if labels is None else labels[:, 1:], role)

    z, t, y = logits("token-classification"), logits("token-classification", 1), labels_for("token-classification")
    y[2, 3:] = -100
    student, teacher, kept = ButTheFirst().prepare(ModelOutput(z), ModelOutput(t), y)
    counts = y[:, 1:] != -100
    assert teacher is not None
    assert torch.equal(student.logits, z[:, 1:][counts])
    assert torch.equal(teacher.logits, t[:, 1:][counts])
    assert torch.equal(kept, y[:, 1:][counts])


def test_a_teacher_of_more_classes_has_rows_of_a_task_of_ones_own_with_the_ignored_label_of_default() -> None:
    class OfTheFirst(Segmentation):
        """The student's classes are the first of the teacher's."""

        def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
            rows, kept = super().rows(logits, labels, role)
            return rows[:, :C], kept

    z, y = logits("segmentation"), labels_for("segmentation")
    wide = torch.cat([z, torch.zeros(B, 300, *z.shape[2:])], dim=1)
    _, teacher, _ = OfTheFirst().prepare(ModelOutput(z), ModelOutput(wide), y)
    assert teacher is not None
    assert torch.equal(teacher.logits, z.movedim(1, -1).flatten(0, -2))


# -------------------- what fits no task


def rows(task: Task, shape: tuple[int, ...], labels: Any) -> Callable[[], Any]:
    return lambda: task.rows(torch.zeros(shape), labels)


def full(*shape: int, value: float = 0) -> Tensor:
    return torch.full(shape, value)


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "maps for samples": (rows(Classification(), (B, C, H, W), None), ValueError, r"\(4, 5, 3, 2\).*'segmentation'"),
    "tokens for samples": (rows(Classification(), (B, L, C), None), ValueError, "'token-classification'"),
    "no classes": (rows(Classification(), (B,), None), ValueError, r"batch x classes.*DataLoader\(.*B x 1"),
    "several labels as one": (rows(MultiLabel(), (B, C), full(B)), ValueError, r"\(4, 5\) and labels \(4,\)"),
    "several labels, other count": (rows(MultiLabel(), (B, C), full(B, C + 1)), ValueError, r"labels \(4, 6\)"),
    "labels above one": (rows(MultiLabel(), (B, C), full(B, C, value=2)), ValueError, r"\[0, 1\].* 2 to 2"),
    "labels below zero": (rows(MultiLabel(), (B, C), full(B, C, value=-0.5)), ValueError, r"\[0, 1\].*-0.5"),
    "labels not a number": (rows(MultiLabel(), (B, C), full(B, C, value=math.nan)), ValueError, r"\[0, 1\]"),
    "no label known": (rows(MultiLabel(), (B, C), full(B, C, value=-100)), ValueError, "No position.*Leave such"),
    "samples for pixels": (rows(Segmentation(), (B, C), None), ValueError, r"\(4, 5\).*classes x positions"),
    "masks of another size": (rows(Segmentation(), (B, C, H, W), full(B, 6, 4)), ValueError, r"\(4, 6, 4\). Resize"),
    "pixels with classes last": (
        rows(Segmentation(), (B, H, W, C), full(B, H, W)),
        ValueError,
        r"seem to be the last.*task='token-classification'.*movedim\(-1, 1\)\.$",
    ),
    "tokens with classes second": (
        rows(TokenClassification(), (B, C, L), full(B, L)),
        ValueError,
        r"seem to be the second.*task='segmentation'.*movedim\(1, -1\)\.$",
    ),
    "targets of CTC": (
        rows(TokenClassification(), (B, L, C), full(B, 4)),
        ValueError,
        r"one label for each position.*CTC.*loss of your own: task='regression'",
    ),
    "masks with a channel": (rows(Segmentation(), (B, C, H, W), full(B, 1, H, W)), ValueError, r"\(4, 1, 3, 2\)"),
    "masks of other samples": (rows(Segmentation(), (B, C, H, W), full(2, H, W)), ValueError, r"\(4, 3, 2\); got"),
    "no pixel counts": (rows(Segmentation(), (B, C, H, W), full(B, H, W, value=255)), ValueError, "No position"),
    "samples for tokens": (rows(TokenClassification(), (B, C), None), ValueError, "batch x positions x classes"),
    "tokens, one label": (rows(TokenClassification(), (B, L, C), full(B)), ValueError, r"\(4, 6\); got \(4,\)"),
    "no token counts": (rows(TokenClassification(), (B, L, C), full(B, L, value=-100)), ValueError, "No position"),
    "another mark of pixels": (
        rows(Segmentation(), (B, C, H, W), full(B, H, W, value=-1)),
        ValueError,
        r"-1.*255.*tasks\.Segmentation\(ignore_index=-1\)",
    ),
    "another mark of tokens": (
        rows(TokenClassification(), (B, L, C), torch.tensor([[0, -100, -7, 1, 2, 3]] * B)),
        ValueError,
        r"-7.*-100.*tasks\.TokenClassification\(ignore_index=-7\)",
    ),
    "labels in a list": (rows(Segmentation(), (B, C, H, W), [[0]]), TypeError, "labels are a tensor; got list"),
    "names as labels": (rows(MultiLabel(), (B, C), ["cat", "dog"]), TypeError, "labels are a tensor; got list"),
    "unknown task": (lambda: tasks.resolve("segmentatoin"), ValueError, "Did you mean 'segmentation'"),
    "a class of task": (lambda: tasks.resolve(Segmentation), TypeError, "kdlib.tasks.Task; got type"),  # type: ignore[arg-type]
    "no task": (lambda: tasks.resolve(None), TypeError, "multilabel.*got NoneType"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
def test_what_fits_no_task_is_refused_in_a_sentence(name: str) -> None:
    call, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        call()


def test_one_label_for_a_bag_of_samples_is_for_a_loss_of_ones_own() -> None:
    """The loss says what it means."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.mean(0), y)

    for shape in ((B, 4), (B, 3, 4)):  # a bag of vectors, and one of series
        network = nn.Sequential(nn.Flatten(1), nn.LazyLinear(C))
        network(torch.zeros(shape))
        bags = [(torch.randn(shape), torch.tensor(n)) for n in range(2)]
        train.fit(network, bags, method=HardLabels(hard=loss), epochs=1, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (torch.full((B,), C), ValueError, r"lie in 0 \.\. 4"),
        (torch.full((B,), -100), ValueError, r"lie in 0 \.\. 4.*ignore_index=-100"),
        (torch.zeros(B, dtype=torch.int32), TypeError, r"int32.*\.long\(\)"),
        (torch.zeros(B + 1, dtype=torch.int64), ValueError, r"\(4,\).*\(5,\)"),
        (torch.full((B, C), 0.5), ValueError, "sums to 1"),
        (torch.full((B, C + 1), 1 / 6), ValueError, "shape of the logits"),
        ([0, 1, 2, 3], TypeError, "list"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        hard("classification", logits("classification"), labels)


@pytest.mark.parametrize(("task", "advice"), [("segmentation", "Resize"), ("token-classification", "tokenizer")])
def test_a_teacher_with_other_positions_is_refused(task: str, advice: str) -> None:
    z, y = logits(task), labels_for(task)
    wide = torch.cat([z, z], dim=2 if task == "segmentation" else 1)
    with pytest.raises(ValueError, match=rf"The teacher gives logits.*labels.*{advice}") as refused:
        distil(task, Logit(), z, wide, y)
    assert ("Resize" in str(refused.value)) == (task == "segmentation")


def test_a_loss_of_ones_own_takes_sequences_of_another_length() -> None:
    """As the error of other positions advises."""

    def ctc(z: Tensor, y: Tensor) -> Tensor:
        lengths = [torch.full((len(one),), one.shape[1]) for one in (z, y)]
        return F.ctc_loss(z.log_softmax(-1).transpose(0, 1), y, *lengths)

    z, y = logits("token-classification"), torch.tensor([[1, 2], [3, 1], [4, 4], [2, 3]])
    torch.testing.assert_close(distil("regression", HardLabels(hard=ctc), z, None, y)[0]["hard"], ctc(z, y))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Logit(), r"cross-entropy.*no classes.*Logit\(loss=F\.mse_loss, hard=F\.mse_loss\)"),
        (Logit(loss=F.mse_loss), r"cross-entropy.*no classes.*Logit\(hard=F\.mse_loss\)"),
        (Logit(hard=F.mse_loss), r"kd compares probabilities.*none.*loss=F\.mse_loss"),
        (Logit(loss="dist", hard=F.mse_loss), "dist compares probabilities"),
        (HardLabels(), r"no classes.*HardLabels\(hard=F\.mse_loss\)"),
        (HardLabels() + Feature({"0": "0"}), r"no classes.*HardLabels\(hard=F\.mse_loss\)"),
    ],
)
def test_losses_of_classes_are_refused_for_numbers(method: Method, words: str) -> None:
    networks = [nn.Sequential(nn.Linear(2, 2)) for _ in range(2)]
    with pytest.raises(ValueError, match=words):
        Distiller(*networks, method, task="regression")  # type: ignore[misc]


def test_validation_that_nothing_can_measure_is_refused_before_the_first_step() -> None:
    student, teacher = (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)) for _ in range(2))
    batches, seen = [(torch.randn(4, 3), torch.randn(4, 2))], []
    student.register_forward_hook(lambda *_: seen.append(1))
    options: dict[str, Any] = {
        "task": "regression",
        "epochs": 1,
        "device": "cpu",
        "precision": "fp32",
        "progress": False,
    }
    method = Feature({"1": "1"})
    with pytest.raises(ValueError, match=r"no classes.*validation.*HardLabels\(hard=F\.mse_loss\)"):
        train.fit(student, batches, validation=batches, teacher=teacher, method=method, **options)
    assert not seen
    both = method + HardLabels(hard=F.mse_loss)
    assert train.fit(student, batches, validation=batches, teacher=teacher, method=both, **options).rows


@pytest.mark.parametrize(
    ("task", "shape", "labels"),
    [("segmentation", (2, 3, 4, 4), (2, 4, 4)), ("token-classification", (2, 5, 3), (2, 5))],
)
def test_a_batch_of_which_nothing_counts_has_no_weight_in_an_evaluation(
    task: str, shape: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    """Such as a picture that is all background."""
    ignored = 255 if task == "segmentation" else -100
    torch.manual_seed(0)
    batches = [(torch.randn(shape), torch.randint(0, 3, labels)) for _ in range(2)]
    empty = (torch.randn(shape), torch.full(labels, ignored))
    network = nn.Identity()
    whole = train.evaluate(network, batches, task=task)
    with_empty = train.evaluate(network, [batches[0], empty, batches[1]], task=task)
    assert (with_empty.accuracy, with_empty.loss) == (whole.accuracy, whole.loss)
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        train.evaluate(network, [empty], task=task)


def test_a_batch_of_a_regression_has_the_weight_of_its_samples() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 3), torch.randn(12, 3)
    parts = [(x[:2], y[:2]), (x[2:], y[2:])]
    found = train.evaluate(nn.Identity(), parts, task="regression", loss=F.mse_loss, precision="fp32")
    assert found.loss == pytest.approx(F.mse_loss(x, y).item(), rel=1e-6)


def of_pairs(loss: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    return loss(torch.stack((torch.zeros_like(z), z), -1).flatten(0, -2), y.flatten())


@pytest.mark.parametrize("least", [0.5, 0.0])
@pytest.mark.parametrize("task", ["multilabel", "segmentation", "token-classification"])
def test_the_loss_of_weighted_classes_does_not_depend_on_the_batches(task: str, least: float) -> None:
    """It is that of one batch, the mean over all labels, each with its class's weight; some batches may have none."""
    classes = 2 if task == "multilabel" else C
    z, y = logits(task), labels_for(task) // 2
    y[0].flatten()[0], y[1] = classes - 1, 0
    if task in IGNORED:
        y[2].flatten()[:3] = IGNORED[task]
    loss = nn.CrossEntropyLoss(weight=torch.linspace(least, 6.0, classes), ignore_index=IGNORED.get(task, -100))
    expected = of_pairs(loss, z, y) if task == "multilabel" else loss(z if task == "segmentation" else z.mT, y)
    plain = train.evaluate(nn.Identity(), [(z, y)], task=task, precision="fp32")
    for size in (1, 3, B):
        batches = list(zip(z.split(size), y.split(size), strict=True))
        found = train.evaluate(nn.Identity(), batches, task=task, loss=loss, precision="fp32")
        assert found.loss == pytest.approx(expected.item(), rel=1e-5)
        assert found.accuracy == pytest.approx(plain.accuracy)


def test_weighted_classes_of_masks_in_bytes_are_looked_up_by_number() -> None:
    """As an index, bytes are a mask in torch."""
    z, y = logits("segmentation"), labels_for("segmentation") // 2
    loss = nn.CrossEntropyLoss(weight=torch.linspace(0.5, 6.0, C))
    batches = list(zip(z.split(1), y.to(torch.uint8).split(1), strict=True))
    found = train.evaluate(nn.Identity(), batches, task="segmentation", loss=loss, precision="fp32")
    assert found.loss == pytest.approx(loss(z, y).item(), rel=1e-5)


def test_a_weighted_loss_with_a_forward_of_its_own_is_a_mean_over_rows() -> None:
    class Focal(nn.CrossEntropyLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            each = F.cross_entropy(input, target, self.weight, reduction="none")
            return ((1 - (-each).exp()) ** 2 * each).mean()

    z, y = logits("segmentation"), labels_for("segmentation") // 2
    loss = Focal(weight=torch.linspace(0.5, 6.0, C))
    found = train.evaluate(nn.Identity(), [*zip(z.split(1), y.split(1), strict=True)], task="segmentation", loss=loss)
    assert found.loss == pytest.approx(loss(z, y).item(), rel=1e-2)


def test_the_loss_of_labels_that_are_shares_is_a_mean_over_rows_whatever_the_weights() -> None:
    """As torch has it, and pos_weight needs it."""
    z, y, w = logits("multilabel"), labels_for("multilabel").float(), torch.tensor([1.0, 3.0])
    found = train.evaluate(
        nn.Identity(),
        list(zip(z.split(3), y.split(3), strict=True)),
        task="multilabel",
        loss=nn.CrossEntropyLoss(weight=w),
        precision="fp32",
    )
    assert found.loss == pytest.approx(F.binary_cross_entropy_with_logits(z, y, pos_weight=w[1]).item(), rel=1e-5)


def test_labels_that_are_shares_are_smoothed_too() -> None:
    torch.manual_seed(0)
    shares, logits = torch.rand(4, 3).softmax(1), torch.randn(4, 3)
    found = HardLabels(0.2)(ModelOutput(logits), None, shares)["hard"]
    expected = -((0.8 * shares + 0.2 / 3) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, expected)


def test_one_logit_a_sample_is_no_classification() -> None:
    """Of one class every answer is right: the accuracy was 1, whatever the network had learned."""
    network, batch = nn.Linear(3, 1), (torch.randn(8, 3), torch.ones(8, 1))
    with pytest.raises(ValueError, match=r"one logit for each sample.*task='multilabel'.*task='regression'"):
        train.evaluate(network, [batch], loss=nn.BCEWithLogitsLoss())
    assert train.evaluate(network, [batch], task="multilabel").accuracy <= 1
    with pytest.raises(ValueError, match="one logit for each sample"):
        Distiller(network, None, HardLabels(hard=nn.BCEWithLogitsLoss()), example=batch)


def log_loss_of_one(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z[:, 0], y.float())


ONE_LOGIT: dict[
    str, tuple[nn.Module, Tensor, int, int]
] = {  # network, inputs, the dimension of classes, what is ignored
    "segmentation": (nn.Conv2d(3, 1, 1), torch.randn(2, 3, 4, 4), 1, 255),
    "token-classification": (nn.Linear(3, 1), torch.randn(2, 4, 3), 2, -100),
}


@pytest.mark.parametrize("task", ONE_LOGIT)
def test_one_logit_a_position_is_no_class_but_a_label(task: str) -> None:
    """Of one class each is 0, so the accuracy was the share of background; what the error advises is right."""
    network, x, dim, ignored = ONE_LOGIT[task]
    with torch.no_grad():
        z = network(x)
    labels = (z > 0).long().squeeze(dim)  # so every answer is right
    labels[0, 0] = ignored
    advice = rf"one logit for each position.*tasks\.MultiLabel\(ignore_index={ignored}\).*labels\.unsqueeze\({dim}\)"
    with pytest.raises(ValueError, match=advice):
        train.evaluate(network, [(x, labels)], task=task, loss=log_loss_of_one)
    with pytest.raises(ValueError, match=advice):
        Distiller(network, None, HardLabels(hard=log_loss_of_one), task=task, example=(x, labels))
    with pytest.raises(ValueError, match="The teacher gives one logit for each position"):
        Distiller(Given(torch.cat([z, -z], dim)), lambda batch: z, Logit(), task=task, example=(x, labels))

    batch, of_labels = (x, labels.unsqueeze(dim)), MultiLabel(ignore_index=ignored)
    counts = labels != ignored
    expected = F.binary_cross_entropy_with_logits(z.squeeze(dim)[counts], labels[counts].float())
    found = train.evaluate(network, [batch], task=of_labels, precision="fp32")
    assert (found.accuracy, found.loss) == (1.0, pytest.approx(expected.item(), rel=1e-5))
    torch.testing.assert_close(distil(of_labels, HardLabels(), z, None, batch[1])[0]["hard"], expected)


def test_the_warning_of_an_evaluation_points_to_the_callers_line() -> None:
    ids = torch.ones(2, 4, dtype=torch.int64)
    batch = {"input_ids": ids, "labels": ids}
    with pytest.warns(UserWarning, match="the token itself") as found:
        train.evaluate(
            nn.Embedding(5, 5),
            [batch],
            adapter=Adapter(inputs=lambda one: one["input_ids"]),
            task=TokenClassification(),
        )
    assert found[0].filename == __file__


@pytest.mark.parametrize("ignored", [-100, -1])
def test_a_label_of_eight_bits_is_not_taken_for_a_negative_one(ignored: int) -> None:
    labels = torch.tensor([[[0, 1], [156, 255]]], dtype=torch.uint8)
    rows, kept = tasks.Segmentation(ignore_index=ignored).rows(torch.randn(1, 256, 2, 2), labels)
    assert (len(rows), kept.tolist()) == (4, [0, 1, 156, 255])
    with pytest.raises(ValueError, match="156"):
        tasks.MultiLabel(ignore_index=ignored).rows(torch.randn(1, 2), torch.tensor([[1, 156]], dtype=torch.uint8))
