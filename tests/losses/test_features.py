"""hint, attention, vid: values, formulas by hand, invariances, errors."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.losses import attention, attention_map, hint, vid

few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def lin(shape, a, b):
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * a + b).reshape(shape)


f_s = F.relu(lin((4, 3, 4, 4), 0.11, 0.2))
f_t = F.relu(1.5 * lin((4, 3, 4, 4), 0.23, 0.5))


def exactly(text):
    return "^" + re.escape(text) + "$"


def random_map(seed, shape=(2, 3, 2, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -------------------- hint


def test_hint_of_a_small_example():
    student = torch.tensor([[[[1.0, 2.0]], [[0.0, -1.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0]], [[3.0, -2.0]]]])
    assert hint(student, teacher).item() == (0 + 4 + 9 + 1) / 4


def test_hint_is_the_mean_over_all_elements():
    assert hint(f_s, f_t).item() == pytest.approx(np.mean((f_s.numpy() - f_t.numpy()) ** 2), rel=1e-12)
    assert hint(f_s.flatten(1), f_t.flatten(1)).item() == pytest.approx(hint(f_s, f_t).item(), rel=1e-12)


def test_hint_gradient_is_the_difference():
    student = f_s.clone().requires_grad_()
    hint(student, f_t).backward()
    assert torch.allclose(student.grad, 2 * (f_s - f_t) / f_s.numel())


def test_hint_errors():
    for other in (f_t[:, :2], f_t[:3], f_t[..., :2]):
        message = (
            f"student_map (4, 3, 4, 4) and teacher_map {tuple(other.shape)} must have the same shape: "
            "project the channels with a 1x1 convolution and pool the larger map first"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            hint(f_s, other)
    message = "student_map and teacher_map must be batch x features, got shape (4,)"
    with pytest.raises(ValueError, match=exactly(message)):
        hint(f_s[:, 0, 0, 0], f_t[:, 0, 0, 0])


# -------------------- attention


def attention_map_by_hand(f):
    maps = []
    for sample in f.numpy():
        channels, height, width = sample.shape
        energy = [
            sum(sample[c, i, j] ** 2 for c in range(channels)) / channels for i in range(height) for j in range(width)
        ]
        norm = math.sqrt(sum(e * e for e in energy))
        maps.append([e / norm for e in energy])
    return np.array(maps)


def test_attention_value():
    assert attention(f_s, f_t).item() == pytest.approx(0.0134155669, abs=1e-9)


@pytest.mark.slow
@few
@given(seed=seeds)
def test_attention_is_the_formula(seed):
    student, teacher = random_map(seed), random_map(seed + 1, (2, 4, 2, 5))
    by_hand = attention_map_by_hand(student), attention_map_by_hand(teacher)
    assert np.allclose(attention_map(student).numpy(), by_hand[0], rtol=1e-12)
    expected = np.mean((by_hand[0] - by_hand[1]) ** 2)
    assert attention(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_attention_map_of_a_small_example():
    f = torch.tensor([[[[1.0, 2.0], [0.0, 0.0]], [[1.0, 2.0], [0.0, 0.0]]]])  # energies 1, 4, 0, 0
    assert attention_map(f)[0].tolist() == pytest.approx([1 / math.sqrt(17), 4 / math.sqrt(17), 0, 0])
    assert attention_map(f).shape == (1, 4)


@few
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_attention_ignores_scale_sign_and_order_of_channels(seed, scale):
    student, teacher = random_map(seed), random_map(seed + 1)
    expected = attention(student, teacher).item()
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    signs = torch.sign(random_map(seed + 2, (1, 3, 1, 1)))
    scales = scale * random_map(seed + 3, (2, 1, 1, 1)).exp()
    for moved in (student[:, order], signs * student, scales * student, student.repeat(1, 2, 1, 1)):
        assert attention(moved, teacher).item() == pytest.approx(expected, rel=1e-9)
        assert attention(teacher, moved).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_attention_far_from_one_in_float32(scale):
    student, teacher = random_map(1).float().requires_grad_(), random_map(2).float()
    attention(student, teacher).backward()
    far = (scale * student.detach()).requires_grad_()
    loss = attention(far, teacher)
    loss.backward()
    torch.testing.assert_close(loss, attention(student, teacher))
    torch.testing.assert_close(scale * far.grad, student.grad)


@few
@given(seed=seeds)
def test_attention_lies_between_zero_and_two_over_the_positions(seed):
    student, teacher = random_map(seed), random_map(seed + 1)
    assert 0 < attention(student, teacher) <= 2 / 10
    assert attention(student, student) == 0
    assert torch.allclose(attention_map(student).norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_attention_to_disjoint_positions_is_the_largest():
    student, teacher = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    student[:, :, 0, 0] = 5
    teacher[:, :, 1, 1] = 7
    assert attention(student, teacher).item() == pytest.approx(2 / 4)


def test_dead_map_has_zero_attention_and_no_gradient():
    student = f_s.clone()
    student[1] = 0
    student.requires_grad_()
    loss = attention(student, f_t)
    loss.backward()
    alive = [0, 2, 3]
    expected = (3 * attention(f_s[alive], f_t[alive]) + 1 / 16) / 4  # a unit vector against zero
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert not attention_map(student)[1].any()
    assert not student.grad[1].any()


def test_attention_errors():
    for other in (f_t[:3], f_t[:, :, :2], f_t[..., :2]):
        message = (
            f"student_map (4, 3, 4, 4) and teacher_map {tuple(other.shape)} must agree in batch, height and "
            "width: pool the larger map first"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            attention(f_s, other)
    bad = f_s[0]
    message = "{} must be batch x channels x height x width, got shape (3, 4, 4)"
    for call, name in (
        (lambda: attention(bad, f_t), "student_map"),
        (lambda: attention(f_s, bad), "teacher_map"),
        (lambda: attention_map(bad), "f"),
    ):
        with pytest.raises(ValueError, match=exactly(message.format(name))):
            call()


def test_features_name_what_is_no_tensor():
    raw = torch.zeros(3)
    for call, name in (
        (lambda x: hint(x, f_t), "student_map"),
        (lambda x: hint(f_s, x), "teacher_map"),
        (lambda x: attention(x, f_t), "student_map"),
        (lambda x: attention(f_s, x), "teacher_map"),
        (attention_map, "f"),
        (lambda x: vid(x, raw, f_t), "predicted_mean"),
        (lambda x: vid(f_s, x, f_t), "raw_variance"),
        (lambda x: vid(f_s, raw, x), "teacher_map"),
    ):
        message = f"{name} must be a torch.Tensor, got float: use torch.as_tensor"
        with pytest.raises(TypeError, match=exactly(message)):
            call(1.0)


# -------------------- vid


def vid_by_hand(mean, raw, teacher):
    total = 0.0
    for index in np.ndindex(*teacher.shape):
        variance = math.log(1 + math.exp(raw[index[1]])) + 1e-5
        total += math.log(variance) / 2 + (teacher[index] - mean[index]) ** 2 / (2 * variance)
    return total / teacher.size


@few
@given(seed=seeds)
def test_vid_is_the_formula(seed):
    mean, teacher, raw = random_map(seed), random_map(seed + 1), random_map(seed + 2, (3,))
    expected = vid_by_hand(mean.numpy(), raw.numpy(), teacher.numpy())
    assert vid(mean, raw, teacher).item() == pytest.approx(expected, rel=1e-10)
    rows = mean[:, :, 0, 0], teacher[:, :, 0, 0]
    expected = vid_by_hand(rows[0].numpy(), raw.numpy(), rows[1].numpy())
    assert vid(rows[0], raw, rows[1]).item() == pytest.approx(expected, rel=1e-10)


@few
@given(seed=seeds)
def test_vid_is_torchs_gaussian_likelihood(seed):
    mean, teacher, raw = random_map(seed), random_map(seed + 1), random_map(seed + 2, (3,))
    variance = (F.softplus(raw) + 1e-5).reshape(1, 3, 1, 1).expand_as(mean)
    expected = F.gaussian_nll_loss(mean, teacher, variance)
    assert vid(mean, raw, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_vid_variance_settles_at_the_mean_squared_error_of_its_channel():
    raw = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([raw], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimiser.zero_grad()
        loss = vid(f_s, raw, f_t)
        loss.backward()
        return loss

    optimiser.step(closure)
    expected = ((f_t - f_s) ** 2).mean((0, 2, 3))
    assert torch.allclose(F.softplus(raw) + 1e-5, expected, rtol=1e-4)


def test_vid_moves_with_its_channels():
    raw = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    order = [2, 0, 1]
    expected = vid(f_s, raw, f_t).item()
    assert vid(f_s[:, order], raw[order], f_t[:, order]).item() == pytest.approx(expected, rel=1e-12)
    assert vid(f_s, raw[order], f_t).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("raw", [-1e4, -100.0, 100.0, 1e4])
def test_vid_of_extreme_variances(raw):
    raw_variance = torch.full((3,), raw, requires_grad=True)
    mean = f_s.float().requires_grad_()
    loss = vid(mean, raw_variance, f_t.float())
    loss.backward()
    variance = max(raw, 0) + 1e-5
    error = ((f_t - f_s) ** 2).mean().item()
    assert loss.item() == pytest.approx((math.log(variance) + error / variance) / 2, rel=1e-5)
    assert torch.isfinite(raw_variance.grad).all()
    assert torch.isfinite(mean.grad).all()


def test_vid_errors():
    raw = torch.zeros(3)
    for other in (f_s[:, :2], f_s[:3], f_s[..., :2]):
        message = (
            f"predicted_mean {tuple(other.shape)} and teacher_map (4, 3, 4, 4) must have the same shape, "
            "batch x channels x ...: project the student to the teacher's channels first"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            vid(other, raw, f_t)
    with pytest.raises(ValueError, match=r"^predicted_mean \(4,\) and teacher_map \(4,\) must have"):
        vid(f_s[:, 0, 0, 0], raw, f_t[:, 0, 0, 0])
    for bad in (torch.zeros(2), torch.zeros(4), torch.zeros(3, 1), torch.tensor(0.0)):
        message = f"raw_variance must have shape (3,), one per channel, got {tuple(bad.shape)}"
        with pytest.raises(ValueError, match=exactly(message)):
            vid(f_s, bad, f_t)
