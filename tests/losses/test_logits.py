"""kd, dkd, dist, standardized_kd, label_smoothing: values, closed forms, identities, invariances, errors."""

import math
import os
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from on_mps import Mps

from kdlib.losses import (
    dist,
    dkd,
    kd,
    label_smoothing,
    soften,
    standardized_kd,
    warn_if_probabilities,
)

few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
temperatures = st.floats(0.5, 20)


def lin(shape, a, b):
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * a + b).reshape(shape)


s = 2 * lin((4, 5), 0.7, 0.1)
t = 3 * lin((4, 5), 1.3, 0.4)
y = torch.tensor([0, 3, 1, 4])

PAIRED = [kd, dist, standardized_kd, lambda a, b: dkd(a, b, y)]


def exactly(text):
    return "^" + re.escape(text) + "$"


def random_logits(seed, shape=(4, 5), scale=2.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -------------------- the formulas once more, in plain Python


def softmax_rows(logits, temperature):
    rows = []
    for row in logits.tolist():
        exps = [math.exp(z / temperature) for z in row]
        rows.append([e / sum(exps) for e in exps])
    return np.array(rows)


def kl_row(teacher, student):
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


def kd_by_hand(student, teacher, temperature):
    q, p = softmax_rows(student, temperature), softmax_rows(teacher, temperature)
    return temperature**2 * sum(kl_row(p[b], q[b]) for b in range(len(p))) / len(p)


def dkd_parts_by_hand(student, teacher, labels, temperature):
    """(TCKD_b, NCKD_b, teacher's p_target) of every sample."""
    q, p = softmax_rows(student, temperature), softmax_rows(teacher, temperature)
    parts = []
    for q_b, p_b, label in zip(q, p, labels.tolist(), strict=True):
        tckd = kl_row([p_b[label], 1 - p_b[label]], [q_b[label], 1 - q_b[label]])
        q_others, p_others = np.delete(q_b, label), np.delete(p_b, label)
        nckd = kl_row(p_others / p_others.sum(), q_others / q_others.sum())
        parts.append((tckd, nckd, p_b[label]))
    return np.array(parts)


def dkd_by_hand(student, teacher, labels, temperature, alpha, beta):
    tckd, nckd, _ = dkd_parts_by_hand(student, teacher, labels, temperature).mean(0)
    return temperature**2 * (alpha * tckd + beta * nckd)


def dist_by_hand(student, teacher, temperature, inter, intra):
    q, p = softmax_rows(student, temperature), softmax_rows(teacher, temperature)
    rows = np.mean([1 - np.corrcoef(q[b], p[b])[0, 1] for b in range(q.shape[0])])
    columns = np.mean([1 - np.corrcoef(q[:, c], p[:, c])[0, 1] for c in range(q.shape[1])])
    return temperature**2 * (inter * rows + intra * columns)


def z_scores(logits):
    rows = logits.numpy()  # whose std divides by C
    return torch.tensor(np.array([(row - row.mean()) / row.std() for row in rows]))


def centred(logits):
    return logits - logits.mean(1, keepdim=True)


def pearson(a, b):
    """Of each row of a with the same row of b."""
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a, b, strict=True)])


# -------------------- soften


def test_soften_is_the_softmax_of_the_scaled_logits():
    assert torch.allclose(soften(t, 4), torch.tensor(softmax_rows(t, 4)), rtol=1e-12)
    assert torch.allclose(soften(t[0], 4), soften(t, 4)[0])
    assert torch.allclose(soften(t.reshape(2, 2, 5), 4), soften(t, 4).reshape(2, 2, 5))


def test_soften_flattens_and_sharpens():
    assert torch.allclose(soften(t, 1e9), torch.full_like(t, 0.2))
    assert torch.allclose(soften(t, 1e-3), F.one_hot(t.argmax(1), 5).double())


def test_soften_computes_half_precision_in_float32():
    assert soften(t.half(), 4).dtype == torch.float32
    assert soften(t, 4).dtype == torch.float64


# -------------------- kd


def test_kd_value():
    assert kd(s, t).item() == pytest.approx(2.6966376769, abs=1e-9)
    assert kd(s, t, 4.0).item() == pytest.approx(2.6966376769, abs=1e-9)


def test_total_value():
    hard = F.cross_entropy(s, y)
    assert hard.item() == pytest.approx(1.4998151377, abs=1e-9)
    assert (0.1 * hard + 0.9 * kd(s, t)).item() == pytest.approx(2.5769554230, abs=1e-9)


def test_kd_gradient_value():
    student = s.clone().requires_grad_()
    kd(student, t).backward()
    expected = [-0.08012492, -0.15843288, 0.04809137, 0.13325123, 0.05721519]
    assert student.grad[0].tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("mistake", "value"),
    [
        (lambda: divergence(s, t), 0.1685398548),  # T^2 left out
        (lambda: 16 * divergence(s, t, "mean"), 0.5393275354),  # mean instead of batchmean
        (lambda: 16 * divergence(F.softmax(s, 1), F.softmax(t, 1)), 0.0585693491),  # softmax twice
        (lambda: 16 * divergence(t, s), None),  # student and teacher swapped
        (lambda: 16 * divergence(s, t, "sum"), None),  # sum instead of batchmean
        (lambda: 4 * divergence(s, t), None),  # T instead of T^2
    ],
)
def test_known_mistakes_give_other_numbers(mistake, value):
    wrong = mistake().item()
    assert abs(wrong - kd(s, t).item()) > 0.05
    if value is not None:
        assert wrong == pytest.approx(value, abs=1e-9)


def divergence(student, teacher, reduction="batchmean"):
    """By torch, at T = 4 and without T^2."""
    return F.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction=reduction)


def test_in_float64_a_temperature_may_be_a_million():
    assert bool(kd(s.double(), t.double(), 1e6).isfinite())
    with pytest.raises(ValueError, match="temperature"):
        kd(s.double(), t.double(), 1.01e6)
    with pytest.raises(ValueError, match="temperature"):
        kd(s.float(), t.float(), 1.01e3)


@few
@given(seed=seeds, temperature=temperatures)
def test_kd_is_the_formula(seed, temperature):
    student, teacher = random_logits(seed), random_logits(seed + 1)
    expected = kd_by_hand(student, teacher, temperature)
    assert kd(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9)


@few
@given(seed=seeds, temperature=temperatures)
def test_kd_gradient_in_closed_form(seed, temperature):
    student, teacher = random_logits(seed).requires_grad_(), random_logits(seed + 1)
    kd(student, teacher, temperature).backward()
    expected = temperature * (soften(student, temperature) - soften(teacher, temperature)) / 4
    assert torch.allclose(student.grad, expected.detach(), atol=1e-12)


def test_kd_at_high_temperature_is_half_the_mean_squared_difference():
    student, teacher = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    limit = ((student - teacher) ** 2).sum(1).mean() / (2 * 5)
    assert kd(student, teacher, 1e4).item() == pytest.approx(limit.item(), rel=1e-3)


def test_kd_gradient_keeps_its_scale_over_temperatures():
    sizes = []
    for temperature in (10.0, 100.0):
        student = s.clone().requires_grad_()
        kd(student, t, temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[1] / sizes[0] == pytest.approx(1, abs=0.2)  # without T^2 it would be 1/100


def test_kd_of_two_classes_is_accepted():
    assert kd(s[:, :2], t[:, :2]).item() == pytest.approx(kd_by_hand(s[:, :2], t[:, :2], 4), rel=1e-12)


def test_kd_of_a_confidently_wrong_student():
    wrong, right = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1e4, 1e4, 0.0]])
    assert kd(wrong, right, 1.0).item() == pytest.approx(2e4)


# -------------------- dkd


def test_dkd_defaults():
    assert dkd(s, t, y).item() == pytest.approx(dkd_by_hand(s, t, y, 4, 1, 8), rel=1e-12)


@few
@given(seed=seeds, temperature=temperatures, alpha=st.floats(0, 3), beta=st.floats(0, 9))
def test_dkd_is_the_formula(seed, temperature, alpha, beta):
    student, teacher = random_logits(seed), random_logits(seed + 1)
    expected = dkd_by_hand(student, teacher, y, temperature, alpha, beta)
    assert dkd(student, teacher, y, temperature, alpha, beta).item() == pytest.approx(expected, rel=1e-7)


@few
@given(seed=seeds, temperature=temperatures)
def test_dkd_parts_make_up_kd(seed, temperature):
    student, teacher = random_logits(seed), random_logits(seed + 1)
    target = soften(teacher, temperature).gather(1, y[:, None])[:, 0]
    tckd = dkd(student, teacher, y, temperature, alpha=1, beta=0)
    nckd = torch.stack(
        [dkd(student[b : b + 1], teacher[b : b + 1], y[b : b + 1], temperature, alpha=0, beta=1) for b in range(4)]
    )
    whole = tckd + ((1 - target) * nckd).mean()
    assert kd(student, teacher, temperature).item() == pytest.approx(whole.item(), rel=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (0, 1), (1, 8)])
def test_dkd_at_high_temperature(alpha, beta):
    """Of probabilities p and q that are nearly the same the KL divergence is sum_c (p - q)^2 / (2 p)."""
    difference, classes = s - t, s.shape[1]
    target = centred(difference).gather(1, y[:, None])[:, 0]
    others = centred(difference[torch.arange(classes) != y[:, None]].reshape(-1, classes - 1))
    tckd = target.square().mean() / (2 * (classes - 1))
    nckd = others.square().sum(1).mean() / (2 * (classes - 1))
    limit = alpha * tckd + beta * nckd
    assert dkd(s, t, y, 1e4, alpha, beta).item() == pytest.approx(limit.item(), rel=1e-3)


def test_dkd_of_three_classes_and_every_label():
    for label in range(3):
        labels = torch.full((4,), label)
        expected = dkd_by_hand(s[:, :3], t[:, :3], labels, 4, 1, 8)
        assert dkd(s[:, :3], t[:, :3], labels).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dkd_of_a_confidently_wrong_student(dtype):
    # log(softmax) is log(0) here. The teacher is split evenly over its two other classes.
    wrong = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[1e4, 0.0, 0.0]], dtype=dtype)
    loss = dkd(wrong, teacher, torch.tensor([0]), temperature=1.0, alpha=1.0, beta=2.0)
    loss.backward()
    tckd, nckd = 2e4, -math.log(2) + 1e4 / 2
    assert loss.item() == pytest.approx(tckd + 2 * nckd, rel=1e-6)
    assert wrong.grad[0].tolist() == pytest.approx([-1, 1 + 2 * 0.5, -2 * 0.5])


def test_dkd_keeps_the_others_apart_when_the_target_dwarfs_them():
    # In float32 the others' log-probabilities are near -1e4, where steps are 1e-3: too coarse.
    student, teacher = torch.tensor([[1e4, 0.0, 1e-3, 0.0]]), torch.tensor([[1e4, 1e-3, 0.0, 0.0]])
    labels = torch.tensor([0])
    exact = dkd(student.double(), teacher.double(), labels, 1.0, 0.0, 1e6)
    assert dkd(student, teacher, labels, 1.0, 0.0, 1e6).item() == pytest.approx(exact.item(), rel=0.2)


# -------------------- dist


def test_dist_defaults():
    assert dist(s, t).item() == pytest.approx(dist_by_hand(s, t, 1, 1, 1), rel=1e-12)


@few
@given(seed=seeds, temperature=temperatures, inter=st.floats(0, 3), intra=st.floats(0, 3))
def test_dist_is_the_formula(seed, temperature, inter, intra):
    student, teacher = random_logits(seed), random_logits(seed + 1)
    expected = dist_by_hand(student, teacher, temperature, inter, intra)
    assert dist(student, teacher, temperature, inter, intra).item() == pytest.approx(expected, abs=1e-9)


@few
@given(seed=seeds)
def test_dist_sees_only_the_pattern_of_the_probabilities(seed):
    # Mixing with the uniform distribution scales and shifts a row: by another share in each row it leaves the
    # correlation between rows alone, by the same share also the one between columns.
    student, teacher = random_logits(seed), random_logits(seed + 1)
    shares = torch.rand(4, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.9
    own = ((1 - shares) * soften(student, 1) + shares / 5).log()
    common = (0.3 * soften(student, 1) + 0.7 / 5).log()
    rows, columns = dist(student, teacher, intra=0).item(), dist(student, teacher, inter=0).item()
    assert dist(own, teacher, intra=0).item() == pytest.approx(rows, abs=1e-9)
    assert dist(own, teacher, inter=0).item() != pytest.approx(columns, abs=1e-6)
    assert dist(common, teacher).item() == pytest.approx(dist(student, teacher).item(), abs=1e-9)


@pytest.mark.parametrize("wrong", [-1, 5])
@pytest.mark.parametrize("loss", [lambda z, y: dkd(z, z, y), label_smoothing])
def test_a_label_that_is_no_class_is_refused_where_torch_would_leave_it_out(loss, wrong):
    with Mps() as mps, pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 4"):
        loss(mps.put(torch.randn(2, 5)), mps.put(torch.tensor([0, wrong])))


def test_dist_compares_classes_that_are_nowhere_likely():
    same = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    same[:, 3] -= 60.0  # probabilities of 1e-26, whose squares are no numbers of float32
    assert dist(same, same, temperature=1).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("gap", [60.0, 80.0, 95.0, 100.0, 103.0, 200.0])
def test_dist_has_a_finite_gradient_where_a_class_is_hardly_possible(gap):
    student = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    student[:, 3] -= gap
    student.requires_grad_()
    dist(student, torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), temperature=1).backward()
    assert student.grad.isfinite().all()


def test_dist_of_opposite_patterns_is_two():
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    opposite = 2 / 3 - p  # sums to 1, and falls where p rises
    assert dist(opposite.log(), p.log(), intra=0).item() == pytest.approx(2)
    assert dist(opposite.log(), p.log(), temperature=1.0, inter=3, intra=0).item() == pytest.approx(6)


@pytest.mark.parametrize(("inter", "intra"), [(1, 0), (0, 1), (2, 3)])
def test_dist_at_high_temperature_correlates_the_logits(inter, intra):
    """Those of a class less the mean of their rows, which no probability shows."""
    rows, columns = pearson(s, t), pearson(centred(s).T, centred(t).T)
    limit = inter * (1 - rows.mean()) + intra * (1 - columns.mean())
    assert dist(s, t, 1e4, inter, intra).item() / 1e8 == pytest.approx(limit.item(), rel=1e-3)


def test_dist_of_a_constant_row_counts_as_uncorrelated():
    student = s.clone()
    student[1] = 0.1
    student.requires_grad_()
    loss = dist(student, t, inter=1, intra=0)
    loss.backward()
    rows = [np.corrcoef(soften(s, 1)[b], soften(t, 1)[b])[0, 1] for b in (0, 2, 3)]
    assert loss.item() == pytest.approx(1 - sum(rows) / 4, rel=1e-9)
    assert student.grad[1].tolist() == [0] * 5


def test_dist_of_one_sample_has_no_correlation_between_samples():
    assert dist(s[:1], t[:1], inter=0).item() == 1
    assert dist(s[:1], t[:1]).item() == pytest.approx(1 + 1 - np.corrcoef(soften(s[:1], 1), soften(t[:1], 1))[0, 1])


# -------------------- standardized_kd


def test_standardized_kd_defaults():
    assert standardized_kd(s, t).item() == pytest.approx(kd_by_hand(z_scores(s), z_scores(t), 2), rel=1e-12)


@few
@given(seed=seeds, temperature=temperatures)
def test_standardized_kd_is_kd_on_z_scores(seed, temperature):
    student, teacher = random_logits(seed), random_logits(seed + 1)
    expected = kd_by_hand(z_scores(student), z_scores(teacher), temperature)
    assert standardized_kd(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9)


@few
@given(seed=seeds)
def test_standardized_kd_ignores_scale_and_shift_of_each_row(seed):
    student, teacher = random_logits(seed), random_logits(seed + 1)
    scale = random_logits(seed + 2, (4, 1)).exp()
    shift = random_logits(seed + 3, (4, 1), 10)
    expected = standardized_kd(student, teacher).item()
    assert standardized_kd(scale * student + shift, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert standardized_kd(student, scale * teacher + shift).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("offset", [1.0, -300.0])
def test_a_spread_below_a_millionth_is_rounding(offset):
    pattern = z_scores(s)  # norm sqrt(C), as a row of C ones has
    for share, is_signal in ((1.4e-6, True), (0.7e-6, False)):
        student = (offset * (1 + share * pattern)).requires_grad_()
        loss = standardized_kd(student, t)
        loss.backward()
        seen = math.copysign(1, offset) * pattern if is_signal else torch.zeros_like(s)
        assert loss.item() == pytest.approx(kd_by_hand(seen, z_scores(t), 2), rel=1e-6)
        assert student.grad.any() == is_signal


def test_standardized_kd_at_high_temperature_is_one_less_the_correlation_of_the_logits():
    assert standardized_kd(s, t, 1e4).item() == pytest.approx(1 - pearson(s, t).mean().item(), rel=1e-3)


# -------------------- label_smoothing


def test_label_smoothing_by_hand():
    log_p = np.log(softmax_rows(s, 1))
    for smoothing in (0.0, 0.1, 0.3):
        target = (1 - smoothing) * np.eye(5)[y] + smoothing / 5
        expected = -(target * log_p).sum() / 4
        assert label_smoothing(s, y, smoothing).item() == pytest.approx(expected, rel=1e-12)


def test_label_smoothing_is_that_of_torch():
    assert torch.equal(label_smoothing(s, y), F.cross_entropy(s, y, label_smoothing=0.1))
    assert label_smoothing(s, y, 0).item() == pytest.approx(1.4998151377, abs=1e-9)


# -------------------- invariances of all


@few
@given(seed=seeds)
def test_a_constant_added_to_the_logits_of_a_sample_changes_nothing(seed):
    student, teacher = random_logits(seed), random_logits(seed + 1)
    for loss in PAIRED:
        expected = loss(student, teacher).item()
        for shift in (random_logits(seed + 2, (4, 1), 10), 100.0):
            assert loss(student + shift, teacher).item() == pytest.approx(expected, rel=1e-8)
            assert loss(student, teacher + shift).item() == pytest.approx(expected, rel=1e-8)


@few
@given(seed=seeds)
def test_renaming_classes_and_reordering_samples_changes_nothing(seed):
    student, teacher = random_logits(seed), random_logits(seed + 1)
    generator = torch.Generator().manual_seed(seed)
    names, order = torch.randperm(5, generator=generator), torch.randperm(4, generator=generator)
    labels = torch.argsort(names)[y][order]
    for loss in (kd, dist, standardized_kd):
        moved = loss(student[order][:, names], teacher[order][:, names])
        assert moved.item() == pytest.approx(loss(student, teacher).item(), rel=1e-10)
    moved = dkd(student[order][:, names], teacher[order][:, names], labels)
    assert moved.item() == pytest.approx(dkd(student, teacher, y).item(), rel=1e-10)
    moved = label_smoothing(student[order][:, names], labels)
    assert moved.item() == pytest.approx(label_smoothing(student, y).item(), rel=1e-10)


@few
@given(seed=seeds)
def test_never_negative_and_zero_only_for_the_teachers_output(seed):
    student, teacher = random_logits(seed), random_logits(seed + 1)
    for loss in PAIRED:
        assert loss(student, teacher) > 0
        assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", [loss for loss in PAIRED if loss is not dist])  # correlations are symmetric
def test_student_and_teacher_are_not_interchangeable(loss):
    skewed = t.exp()  # sine waves are too alike
    assert abs(loss(s, skewed) - loss(skewed, s)) > 0.01


def test_the_minimum_is_where_gradient_descent_ends():
    for loss in PAIRED:
        student = s.clone().requires_grad_()
        optimiser = torch.optim.Adam([student], lr=0.05)
        start = loss(student, t).item()
        for _ in range(60):
            optimiser.zero_grad()
            loss(student, t).backward()
            optimiser.step()
        assert loss(student, t).item() < 0.2 * start


# -------------------- errors

ALL_TEMPERATURES = [
    lambda temperature: soften(s, temperature),
    lambda temperature: kd(s, t, temperature),
    lambda temperature: dkd(s, t, y, temperature),
    lambda temperature: dist(s, t, temperature),
    lambda temperature: standardized_kd(s, t, temperature),
]


@pytest.mark.parametrize("call", ALL_TEMPERATURES)
def test_bad_temperature(call):
    for bad in (0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=exactly(f"temperature must be finite and above 0, got {bad}")):
            call(bad)
    for bad, kind in (("4", "str"), (None, "NoneType"), (torch.tensor(4.0), "Tensor")):
        message = f"temperature must be a plain number, got {kind}: convert it before training"
        with pytest.raises(TypeError, match=exactly(message)):
            call(bad)


@pytest.mark.parametrize("call", ALL_TEMPERATURES)
def test_good_temperature(call):
    for good in (0.5, 1, np.float32(4), np.float64(4), np.int64(4)):
        assert torch.isfinite(call(good)).all()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("alpha", lambda w: dkd(s, t, y, alpha=w)),
        ("beta", lambda w: dkd(s, t, y, beta=w)),
        ("inter", lambda w: dist(s, t, inter=w)),
        ("intra", lambda w: dist(s, t, intra=w)),
    ],
)
def test_bad_weight(name, call):
    for bad in (-1, -0.001, math.nan, math.inf):
        with pytest.raises(ValueError, match=exactly(f"{name} must be finite and at least 0, got {bad}")):
            call(bad)
    with pytest.raises(TypeError, match=f"^{name} must be a plain number, got str"):
        call("1")
    assert torch.isfinite(call(0))


@pytest.mark.parametrize("loss", PAIRED)
def test_shapes_that_differ(loss):
    for other in (t[:, :4], t[:3]):
        message = (
            f"student_logits (4, 5) and teacher_logits {tuple(other.shape)} must have the same shape: "
            "the same batch and the same classes in the same order"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            loss(s, other)


@pytest.mark.parametrize("loss", PAIRED)
def test_wrong_rank(loss):
    for bad in (s[0], s.reshape(2, 2, 5)):
        message = (
            f"student_logits and teacher_logits must be batch x classes, got shape {tuple(bad.shape)}: "
            "move the classes last and flatten the rest into the batch"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            loss(bad, bad)


@pytest.mark.parametrize("loss", [kd, dist, standardized_kd])
def test_one_class(loss):
    message = (
        "student_logits and teacher_logits need at least 2 classes, got 1: write a single logit z as the pair (0, z)"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        loss(s[:, :1], t[:, :1])


def test_label_smoothing_checks_its_logits():
    with pytest.raises(ValueError, match=r"^student_logits must be batch x classes, got shape \(5,\): move"):
        label_smoothing(s[0], y)
    with pytest.raises(ValueError, match=r"^student_logits need at least 2 classes, got 1: write"):
        label_smoothing(s[:, :1], y)


def test_dkd_of_two_classes():
    message = "dkd needs at least 3 classes, got 2: a single other class has no split, use kd"
    with pytest.raises(ValueError, match=exactly(message)):
        dkd(s[:, :2], t[:, :2], torch.tensor([0, 1, 1, 0]))


def test_standardized_kd_of_two_classes():
    message = (
        "standardized_kd needs at least 3 classes, got 2: the z-scores of two numbers are always -1 and 1, "
        "without gradient; use kd"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        standardized_kd(s[:, :2], t[:, :2])


def test_standardized_kd_of_three_classes():
    student = s[:, :3].clone().requires_grad_()
    loss = standardized_kd(student, t[:, :3])
    loss.backward()
    assert loss.item() == pytest.approx(kd_by_hand(z_scores(s[:, :3]), z_scores(t[:, :3]), 2), rel=1e-12)
    assert student.grad.abs().max() > 1e-3


def test_dist_of_two_classes_learns_from_the_columns_alone():
    gradients = []
    for inter, intra in ((1, 0), (0, 1), (1, 1)):
        student = s[:, :2].clone().requires_grad_()
        dist(student, t[:, :2], inter=inter, intra=intra).backward()
        gradients.append(student.grad)
    rows, columns, both = gradients
    assert rows.abs().max() < 1e-6 < 1e-3 < columns.abs().max()
    torch.testing.assert_close(both, columns)


LABELLED = {"dkd": lambda labels: dkd(s, t, labels), "label_smoothing": lambda labels: label_smoothing(s, labels)}


@pytest.mark.parametrize("name", LABELLED)
def test_bad_labels(name):
    call = LABELLED[name]
    for bad, kind in (
        (y.float(), "torch.float32"),
        (y.int(), "torch.int32"),
        (y > 1, "torch.bool"),
    ):
        message = f"labels must be class indices in a torch.int64 tensor, got {kind}: call .long() on them"
        with pytest.raises(TypeError, match=exactly(message)):
            call(bad)
    for bad, kind in (([0, 3, 1, 4], "list"), ({"name": y}, "dict")):
        with pytest.raises(TypeError, match=rf"labels must be class indices .*, got {kind}: .*Adapter\(labels="):
            call(bad)
    for bad in (y[:3], y[:, None], F.one_hot(y, 5)):
        message = f"labels must have shape (4,), one per row of logits, got {tuple(bad.shape)}"
        with pytest.raises(ValueError, match=exactly(message)):
            call(bad)
    for bad, low, high in (([0, 1, 2, 5], 0, 5), ([-1, 0, 1, 2], -1, 2), ([-100, 1, 1, 1], -100, 1)):
        other = {
            "dkd": ": dkd needs the label of every sample. Or take kd, with a hard= that leaves them out",
            "label_smoothing": f", or say so: hard=lambda z, y: F.cross_entropy(z, y, ignore_index={low}, "
            "reduction='sum') / (y >= 0).sum().clamp(min=1) for a method, loss= for evaluate",
        }
        advice = f". If {low} marks samples without a label, leave them out{other[name]}"
        message = f"labels must lie in 0 .. 4, got values from {low} to {high}{advice if low < 0 else ''}"
        with pytest.raises(ValueError, match=exactly(message)):
            call(torch.tensor(bad))


def test_label_values_are_not_read_on_other_devices():
    logits, labels = s.to("meta"), y.to("meta")
    assert dkd(logits, logits, labels).device.type == "meta"
    assert label_smoothing(logits, labels).device.type == "meta"


def test_bad_smoothing():
    for bad in (-0.1, 1, 1.0, 1.5, math.nan, math.inf):
        message = f"smoothing must be in [0, 1), got {bad}: 0 is plain cross-entropy, 0.1 is usual"
        with pytest.raises(ValueError, match=exactly(message)):
            label_smoothing(s, y, bad)
    assert torch.isfinite(label_smoothing(s, y, 0.999))


@pytest.mark.parametrize("loss", PAIRED)
def test_arguments_are_named_when_they_are_no_batch_of_floats(loss):
    cases = [
        ([[1.0, 2.0]], TypeError, "{} must be a torch.Tensor, got list: use torch.as_tensor"),
        (y, TypeError, "{} must hold floating-point numbers, got torch.int64: call .float() on it"),
        (
            s.to(torch.complex64),
            TypeError,
            "{} must hold floating-point numbers, got torch.complex64: call .float() on it",
        ),  # fmt: skip # noqa: E501
        (s[:0], ValueError, "{} is empty, shape (0, 5): a batch needs at least one sample"),
    ]
    for bad, kind, message in cases:
        with pytest.raises(kind, match=exactly(message.format("student_logits"))):
            loss(bad, t)
        with pytest.raises(kind, match=exactly(message.format("teacher_logits"))):
            loss(s, bad)


def test_soften_and_label_smoothing_name_their_argument():
    with pytest.raises(TypeError, match="^logits must be a torch.Tensor, got list"):
        soften([1.0], 1)
    with pytest.raises(TypeError, match="^student_logits must be a torch.Tensor, got list"):
        label_smoothing([1.0], y)


# -------------------- warn_if_probabilities

NO_PROBABILITIES = {
    "logits": s,
    "one row is not": torch.stack([F.softmax(s[0], 0), s[1]]),
    "a negative one": torch.tensor([[-0.1, 0.6, 0.5]]),
    "one above 1": torch.tensor([[1.1, 0.0, -0.1]]),
    "sums too small": torch.tensor([[0.5, 0.4988]]),
    "sums too large": torch.tensor([[0.5, 0.5012]]),
    "zeros": torch.zeros(2, 3),
    "sigmoids": torch.sigmoid(s),
    "log-probabilities": F.log_softmax(s, 1),
    "columns sum to 1": torch.tensor([[0.9, 0.8], [0.1, 0.2]]),
}
PROBABILITIES = {
    "softmax": F.softmax(s, 1),
    "half": F.softmax(s, 1).half(),
    "one-hot": torch.eye(3),
    "nearly 1 from below": torch.tensor([[0.5, 0.4992]]),
    "nearly 1 from above": torch.tensor([[0.5, 0.5008]]),
    "a single vector": F.softmax(s[0], 0),
    "rounded to bfloat16": torch.tensor([[0.65234375, 0.115234375, 0.115234375, 0.11474609375]]),  # sums to 0.9976
}


@pytest.mark.parametrize("kind", PROBABILITIES)
def test_probabilities_are_noticed(kind):
    message = (
        "teacher logits look like probabilities: all are in [0, 1] and every row sums to 1. "
        "Pass logits, the numbers before the softmax: the loss applies its own."
    )
    with pytest.warns(UserWarning, match=exactly(message)) as caught:
        warn_if_probabilities(PROBABILITIES[kind], "teacher logits")
    assert [warning.category for warning in caught] == [UserWarning]


@pytest.mark.skipif("MUTANT_UNDER_TEST" in os.environ, reason="mutmut puts a frame of its own in between")
def test_the_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="Pass logits") as caught:
        warn_if_probabilities(torch.eye(3), "logits")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("kind", NO_PROBABILITIES)
def test_logits_pass_in_silence(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_if_probabilities(NO_PROBABILITIES[kind], "logits") is None


def test_the_losses_themselves_do_not_look():
    p = F.softmax(s, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in PAIRED:
            loss(p, p)


def test_warn_if_probabilities_names_what_is_no_batch_of_floats():
    with pytest.raises(TypeError, match="^outputs must hold floating-point numbers, got torch.int64"):
        warn_if_probabilities(y, "outputs")
    with pytest.raises(ValueError, match=r"^outputs is empty, shape \(0, 5\)"):
        warn_if_probabilities(s[:0], "outputs")


def test_no_label_is_left_out_in_silence_where_values_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdlib.losses.logits.check_labels", lambda *given: None)  # as on a GPU
    with pytest.raises((IndexError, RuntimeError)):
        label_smoothing(torch.zeros(2, 3), torch.tensor([0, -100]), 0.0)
    with pytest.raises((IndexError, RuntimeError)):
        label_smoothing(torch.zeros(2, 3), torch.tensor([-100, -100]), 0.1)


def test_shares_that_bfloat16_has_rounded_are_taken() -> None:
    shares = torch.tensor([[0.6542, 0.11543, 0.11543, 0.11494]]).bfloat16()
    assert abs(shares.float().sum() - 1) > 2e-3
    found = label_smoothing(torch.zeros(1, 4), shares, 0.1)
    assert found == pytest.approx(0.99756 * math.log(4), abs=1e-3)
    with pytest.raises(ValueError, match="every row sums to 1"):
        label_smoothing(torch.zeros(1, 4), shares.float() + torch.tensor([[0, 0, 0, 1e-4]]), 0.1)


def test_a_loss_of_one_class_a_sample_says_so_of_mixed_labels() -> None:
    logits, shares = torch.randn(4, 5), torch.full((4, 5), 0.2)
    with pytest.raises(TypeError, match=r"hold the share of each class.* For mixed samples take .* kd"):
        dkd(logits, logits, shares)
