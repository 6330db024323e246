"""Relations between layers and between samples: values, formulas by hand, invariances, errors."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_mps import MPS, Mps

from kdlib.losses import (
    correlation_congruence,
    fsp,
    fsp_matrix,
    layer_correlation,
    layer_information,
    layer_relation_matrix,
    linear_cka,
    renyi_information,
    rkd_angle,
    rkd_distance,
    similarity,
)

few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
scales = st.floats(1e-3, 1e3)


def lin(shape, a, b):
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * a + b).reshape(shape)


e_s = lin((4, 6), 0.41, 0.3)
e_t = lin((4, 8), 0.91, 0.7)
BETWEEN_SAMPLES = [rkd_distance, rkd_angle, similarity, correlation_congruence]
BETWEEN_TWO_LAYERS = [linear_cka, renyi_information]
BETWEEN_LAYERS = [layer_correlation, layer_information]


def exactly(text):
    return "^" + re.escape(text) + "$"


def rows(seed, shape=(5, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed, size=4):
    return torch.linalg.qr(rows(seed, (size, size)))[0]


def close(tensor, expected, rel=1e-9, abs=1e-11):
    return tensor.item() == pytest.approx(float(expected), rel=rel, abs=abs)


def huber(difference):
    return np.mean(np.where(abs(difference) < 1, difference**2 / 2, abs(difference) - 0.5))


# -------------------- fsp


def pool_by_hand(f, height, width):
    """Adaptive average pooling: cell i averages the inputs from floor(i H / h) to ceil((i + 1) H / h)."""
    batch, channels, high, wide = f.shape
    pooled = np.zeros((batch, channels, height, width))
    for i in range(height):
        for j in range(width):
            top, bottom = i * high // height, -(-(i + 1) * high // height)
            left, right = j * wide // width, -(-(j + 1) * wide // width)
            pooled[:, :, i, j] = f[:, :, top:bottom, left:right].mean((2, 3))
    return pooled


def fsp_matrix_by_hand(a, b):
    a, b = a.numpy(), b.numpy()
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    a, b = pool_by_hand(a, height, width), pool_by_hand(b, height, width)
    result = np.zeros((a.shape[0], a.shape[1], b.shape[1]))
    for n, p, q in np.ndindex(*result.shape):
        total = sum(a[n, p, i, j] * b[n, q, i, j] for i in range(height) for j in range(width))
        result[n, p, q] = total / (height * width)
    return result


def test_fsp_matrix_of_a_small_example():
    a = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]])
    b = torch.tensor([[[[3.0, 4.0]]]])
    assert fsp_matrix(a, b).tolist() == [[[(3 + 8) / 2], [4 / 2]]]
    assert fsp_matrix(b, a).tolist() == [[[(3 + 8) / 2, 4 / 2]]]


@pytest.mark.parametrize(
    "sizes", [((4, 4), (2, 2)), ((2, 3), (6, 5)), ((5, 2), (3, 4)), ((3, 3), (3, 3)), ((4, 1), (1, 4))]
)
def test_fsp_matrix_is_the_formula(sizes):
    a, b = rows(1, (2, 3, *sizes[0])), rows(2, (2, 4, *sizes[1]))
    assert np.allclose(fsp_matrix(a, b).numpy(), fsp_matrix_by_hand(a, b), rtol=1e-12)


@few
@given(seed=seeds)
def test_fsp_matrix_moves_with_the_channels(seed):
    a, b = rows(seed, (2, 3, 4, 4)), rows(seed + 1, (2, 4, 2, 2))
    order_a, order_b = torch.tensor([2, 0, 1]), torch.tensor([1, 3, 0, 2])
    moved = fsp_matrix(a[:, order_a], b[:, order_b])
    assert torch.allclose(moved, fsp_matrix(a, b)[:, order_a][:, :, order_b])
    assert torch.allclose(fsp_matrix(b, a), fsp_matrix(a, b).mT)
    assert torch.allclose(fsp_matrix(2 * a, 3 * b), 6 * fsp_matrix(a, b))


@few
@given(seed=seeds)
def test_fsp_is_the_mean_squared_difference(seed):
    student = rows(seed, (2, 3, 4, 4)), rows(seed + 1, (2, 4, 2, 2))
    teacher = rows(seed + 2, (2, 3, 5, 3)), rows(seed + 3, (2, 4, 6, 6))
    expected = np.mean((fsp_matrix_by_hand(*student) - fsp_matrix_by_hand(*teacher)) ** 2)
    assert close(fsp(student, teacher), expected)
    assert close(fsp(list(student), list(teacher)), expected)
    assert fsp(student, student) == 0


def test_fsp_errors():
    a, b = rows(1, (2, 3, 4, 4)), rows(2, (2, 4, 2, 2))
    for bad_a, bad_b in ((a[:, 0], b), (a, b[:, 0]), (a[:1], b)):
        message = (
            f"a {tuple(bad_a.shape)} and b {tuple(bad_b.shape)} must be two feature maps of one network, "
            "batch x channels x height x width, on the same batch"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            fsp_matrix(bad_a, bad_b)
    for call, name, count in (
        (lambda: fsp((a,), (a, b)), "student_pair", 1),
        (lambda: fsp((a, b), (a, b, b)), "teacher_pair", 3),
    ):
        message = f"{name} must hold two maps, (first layer, second layer), got {count}"
        with pytest.raises(ValueError, match=exactly(message)):
            call()
    message = "student_pair has batch 2 and teacher_pair 1: use one batch"
    with pytest.raises(ValueError, match=exactly(message)):
        fsp((a, b), (a[:1], b[:1]))
    for other, widths in (((a[:, :2], b), "2 and 4"), ((a, b[:, :3]), "3 and 3")):
        message = (
            f"student_pair has 3 and 4 channels, teacher_pair {widths}: project the student to the teacher's widths"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            fsp((a, b), other)
    with pytest.raises(TypeError, match=exactly("a must be a torch.Tensor, got float: use torch.as_tensor")):
        fsp_matrix(1.0, b)
    with pytest.raises(TypeError, match=exactly("b must be a torch.Tensor, got float: use torch.as_tensor")):
        fsp_matrix(a, 1.0)


# -------------------- linear_cka and renyi_information


def cka_by_hand(a, b):
    """From the D x D cross-covariances, not from the Gram matrices."""
    a, b = a.flatten(1).numpy(), b.flatten(1).numpy()
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.linalg.norm
    return norm(a.T @ b) ** 2 / (norm(a.T @ a) * norm(b.T @ b))


def information_by_hand(a, b):
    """From the eigenvalues of the normalised kernel matrices, the definition of the matrix-based entropy."""

    def kernel(x):
        x = x.flatten(1).numpy()
        n = len(x)
        squared = np.array([[((x[i] - x[j]) ** 2).sum() for j in range(n)] for i in range(n)])
        return np.exp(-squared / squared[~np.eye(n, dtype=bool)].mean())

    def entropy(k):
        return -np.log2((np.linalg.eigvalsh(k / np.trace(k)) ** 2).sum())

    k_a, k_b = kernel(a), kernel(b)
    return entropy(k_a) + entropy(k_b) - entropy(k_a * k_b)


@few
@given(seed=seeds)
def test_cka_and_information_are_the_formulas(seed):
    a, b = rows(seed), rows(seed + 1, (5, 2, 3))
    assert close(linear_cka(a, b), cka_by_hand(a, b))
    assert close(renyi_information(a, b), information_by_hand(a, b))


def test_cka_of_a_small_example():
    a = torch.tensor([[1.0], [-1.0], [0.0], [0.0]], dtype=torch.float64)
    b = torch.tensor([[2.0], [0.0], [-2.0], [0.0]], dtype=torch.float64)
    assert close(linear_cka(a, b), 0.5**2)  # in one dimension CKA is the correlation squared
    assert close(linear_cka(a, torch.tensor([[0.0], [0.0], [1.0], [-1.0]])), 0)


def test_information_of_two_samples():
    # One pair: d^2 is its own mean, so the kernel is ((1, 1/e), (1/e, 1)) for any two different samples.
    a = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    entropy = [-math.log2((1 + math.exp(-2 * n)) / 2) for n in (1, 2)]
    assert close(renyi_information(a, -a), 2 * entropy[0] - entropy[1])


@few
@given(seed=seeds, scale=scales)
def test_cka_and_information_ignore_rotation_scale_and_offset(seed, scale):
    a, b = rows(seed), rows(seed + 1, (5, 3))
    for relation in BETWEEN_TWO_LAYERS:
        expected = relation(a, b).item()
        for moved in (a @ rotation(seed), scale * a, -a, a + rows(seed + 2, (1, 4))):
            assert close(relation(moved, b), expected)
            assert close(relation(b, moved), expected)


@few
@given(seed=seeds)
def test_cka_and_information_are_symmetric_and_bounded(seed):
    a, b = rows(seed), rows(seed + 1, (5, 3))
    assert close(linear_cka(a, a), 1)
    assert 0 <= linear_cka(a, b) < 1
    assert 0 <= renyi_information(a, b) < renyi_information(a, a) <= math.log2(5)
    for relation in BETWEEN_TWO_LAYERS:
        assert close(relation(a, b), relation(b, a))


def test_information_falls_below_zero_where_two_layers_tell_apart_different_samples():
    half = torch.zeros(128, 65, dtype=torch.float64)
    half[:64, 64] = 1  # all alike
    half[64:, :64] = torch.eye(64)  # all different
    assert -math.log2(128) < renyi_information(half, half.flip(0)) < -1


def test_cka_sees_a_change_that_is_no_rotation():
    stretched = e_s * torch.tensor([5.0, 1, 1, 1, 1, 1])
    for relation in BETWEEN_TWO_LAYERS:
        assert abs(relation(stretched, e_t) - relation(e_s, e_t)) > 1e-3


@pytest.mark.parametrize("relation", BETWEEN_TWO_LAYERS)
def test_samples_that_differ_by_less_than_a_millionth_are_alike(relation):
    pattern = rows(1, (4, 6))
    pattern = pattern - pattern.mean(0)
    pattern = pattern / pattern.norm()
    base = torch.full((4, 6), 24**-0.5, dtype=torch.float64)  # norm 1 as well
    for size in (1.0, 1e-3, 1e4):
        clear = (size * (base + 1.4e-6 * pattern)).requires_grad_()
        noise = (size * (base + 0.7e-6 * pattern)).requires_grad_()
        assert close(relation(clear, e_t), relation(pattern, e_t), rel=1e-5)
        assert close(relation(noise, e_t), 0)
        relation(noise, e_t).backward()
        assert not noise.grad.any()


@pytest.mark.parametrize("relation", BETWEEN_TWO_LAYERS)
def test_very_small_and_large_layers_keep_their_relation(relation):
    # In float32 the squares of 1e-15 and the fourth powers of 1e12 do not fit.
    expected = relation(e_s, e_t).item()
    for size in (1e-15, 1e12):
        student = (size * e_s).float().requires_grad_()
        value = relation(student, e_t.float())
        value.backward()
        assert close(value, expected, rel=1e-5)
        assert torch.isfinite(student.grad).all()


# -------------------- relations between layers


def layers_of(seed):
    return rows(seed, (5, 2, 3, 3)), rows(seed + 1, (5, 4)), rows(seed + 2, (5, 3, 2, 2))


NAMED = {"correlation": cka_by_hand, "information": information_by_hand}
LOSSES = {"correlation": layer_correlation, "information": layer_information}
FUNCTIONS = {"correlation": linear_cka, "information": renyi_information}


@pytest.mark.parametrize("name", NAMED)
def test_layer_relation_matrix_is_the_relation_of_all_pairs(name):
    layers = layers_of(1)
    matrix = layer_relation_matrix(layers, name)
    expected = np.array([[NAMED[name](a, b) for b in layers] for a in layers])
    assert matrix.shape == (3, 3)
    assert np.allclose(matrix.numpy(), expected, rtol=1e-9)
    assert torch.allclose(layer_relation_matrix(list(layers), FUNCTIONS[name]), matrix)


def test_layer_relation_matrix_takes_any_function_of_two_layers():
    layers = layers_of(1)
    matrix = layer_relation_matrix(layers, lambda a, b: a.mean() - 2 * b.amax())
    for i, j in np.ndindex(3, 3):
        assert close(matrix[i, j], layers[i].mean() - 2 * layers[j].amax())
    shapes = []
    layer_relation_matrix(layers, lambda a, b: shapes.append(a.shape) or a.sum())
    assert shapes[0] == (5, 2, 3, 3)  # the function sees maps as they are


@few
@given(seed=seeds)
def test_layer_losses_are_the_mean_squared_difference(seed):
    student, teacher = layers_of(seed), layers_of(seed + 10)
    for name, loss in LOSSES.items():
        expected = np.mean(
            [
                (NAMED[name](student[i], student[j]) - NAMED[name](teacher[i], teacher[j])) ** 2
                for i in range(3)
                for j in range(3)
            ]
        )
        assert close(loss(student, teacher), expected)
        assert loss(student, student) == 0


@few
@given(seed=seeds, scale=scales)
def test_layer_losses_ignore_rotation_scale_and_width(seed, scale):
    student, teacher = layers_of(seed), layers_of(seed + 10)
    moved = (scale * student[0], student[1] @ rotation(seed), student[2] + 3)
    wider = (torch.cat([student[0], 0 * student[0]], dim=1), *student[1:])
    for loss in BETWEEN_LAYERS:
        assert close(loss(moved, teacher), loss(student, teacher))
        assert close(loss(wider, teacher), loss(student, teacher))


def test_a_dead_layer_relates_to_nothing():
    student, teacher = layers_of(1), layers_of(11)
    dead = (student[0], torch.zeros(5, 4, dtype=torch.float64), student[2])
    for name, loss in LOSSES.items():
        matrix = layer_relation_matrix(dead, name)
        assert not matrix[1].any()
        assert not matrix[:, 1].any()
        assert loss(dead, teacher) > loss(student, teacher)


def test_layer_losses_take_mixed_precision():
    student, teacher = layers_of(1), layers_of(11)
    mixed = (student[0].float(), student[1].double(), student[2].half())
    for loss in BETWEEN_LAYERS:
        assert loss(mixed, teacher).dtype == torch.float64
        assert close(loss(mixed, teacher), loss(student, teacher), rel=1e-2)


def layer_calls(name):
    """Everything that takes layers, with `name` for the argument that the test passes."""
    good = layers_of(1)
    if name == "layers":
        return [lambda x, r=r: layer_relation_matrix(x, r) for r in ("correlation", "information", linear_cka)]
    if name == "student_layers":
        return [lambda x, loss=loss: loss(x, good) for loss in BETWEEN_LAYERS]
    return [lambda x, loss=loss: loss(good, x) for loss in BETWEEN_LAYERS]


@pytest.mark.parametrize("name", ["layers", "student_layers", "teacher_layers"])
def test_bad_layers(name):
    a, b, c = layers_of(1)
    cases = [
        (a, TypeError, "{} must be a sequence with one tensor per layer, got a single tensor"),
        ([], ValueError, "{} needs at least 2 layers to relate, got 0"),
        ([a], ValueError, "{} needs at least 2 layers to relate, got 1"),
        (
            [a, b, c[:4]],
            ValueError,
            "{0}[0] (5, 2, 3, 3) and {0}[2] (4, 3, 2, 2) must hold the same batch of samples",
        ),  # fmt: skip # noqa: E501
        ([a, b, c[:, 0, 0, 0]], ValueError, "{}[2] must be batch x features, got shape (5,)"),
        (
            [a[:1], b[:1]],
            ValueError,
            "{}[0] has 1 sample(s), relations need at least 2: leave out a last batch that is too small, "
            "DataLoader(..., drop_last=True)",
        ),
        ([a, 1.0], TypeError, "{}[1] must be a torch.Tensor, got float: use torch.as_tensor"),
    ]
    for call in layer_calls(name):
        for layers, kind, message in cases:
            with pytest.raises(kind, match=exactly(message.format(name))):
                call(layers)


@pytest.mark.parametrize("loss", BETWEEN_LAYERS)
def test_networks_that_do_not_match(loss):
    a, b, c = layers_of(1)
    message = "student_layers has 3 layers and teacher_layers 2: choose equally many"
    with pytest.raises(ValueError, match=exactly(message)):
        loss((a, b, c), (a, b))
    message = "student_layers has batch 5 and teacher_layers 4: use one batch"
    with pytest.raises(ValueError, match=exactly(message)):
        loss((a, b), (a[:4], b[:4]))


def test_two_layers_and_two_samples_are_enough():
    a, b, _ = layers_of(1)
    for name in NAMED:
        assert layer_relation_matrix([a[:2], b[:2]], name).shape == (2, 2)


def test_bad_relation():
    for bad in ("corelation", None, 3):
        message = f"relation must be one of correlation, information or a function, got {bad!r}"
        with pytest.raises(ValueError, match=exactly(message)):
            layer_relation_matrix(layers_of(1), bad)
    message = "relation must return a scalar tensor, got shape (2, 4)"
    with pytest.raises(ValueError, match=exactly(message)):
        layer_relation_matrix(layers_of(1), lambda a, b: torch.zeros(2, 4))


# -------------------- rkd


def relative_distances_by_hand(x):
    x = x.numpy()
    n = len(x)
    distances = np.array([[math.dist(x[i], x[j]) for j in range(n)] for i in range(n)])
    return distances / (distances.sum() / (n * (n - 1)))


def cosines_by_hand(x):
    x = x.numpy()
    n = len(x)
    result = np.zeros((n, n, n))
    for i, j, k in np.ndindex(n, n, n):
        if i not in (j, k):
            u, v = x[j] - x[i], x[k] - x[i]
            result[i, j, k] = u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
    return result


def test_rkd_values():
    assert close(rkd_distance(e_s, e_t), 0.1026290158, rel=0, abs=1e-9)
    assert close(rkd_angle(e_s, e_t), 0.1303277779, rel=0, abs=1e-9)


@few
@given(seed=seeds)
def test_rkd_is_the_formula(seed):
    student, teacher = rows(seed), 3 * rows(seed + 1, (5, 2)) ** 3  # some distances beyond Huber's threshold
    difference = relative_distances_by_hand(student) - relative_distances_by_hand(teacher)
    assert close(rkd_distance(student, teacher), huber(difference))
    difference = cosines_by_hand(student) - cosines_by_hand(teacher)
    assert close(rkd_angle(student, teacher), huber(difference))


def test_rkd_distance_of_a_small_example():
    student = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)  # distances 1, 2, 3, mean 2
    teacher = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)  # distances 1, 1, 2, mean 4/3
    differences = np.array([1 / 2 - 3 / 4, 2 / 2 - 3 / 4, 3 / 2 - 6 / 4])
    assert close(rkd_distance(student, teacher), 2 * (differences**2 / 2).sum() / 9)


def test_rkd_angle_of_a_small_example():
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # 90, 45, 45 degrees
    teacher = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)  # 0, 180, 0 degrees
    differences = np.array([0 - 1, math.sqrt(0.5) + 1, math.sqrt(0.5) - 1])
    losses = np.where(abs(differences) < 1, differences**2 / 2, abs(differences) - 0.5)
    assert close(rkd_angle(student, teacher), 2 * losses.sum() / 27)


@few
@given(seed=seeds, scale=scales)
def test_rkd_ignores_rotation_scale_and_offset(seed, scale):
    student, teacher = rows(seed), rows(seed + 1, (5, 3))
    for loss in (rkd_distance, rkd_angle):
        expected = loss(student, teacher).item()
        for moved in (
            student @ rotation(seed),
            scale * student,
            -student,
            student + 1000,
            student + rows(9, (1, 4)),
        ):
            assert close(loss(moved, teacher), expected)
            assert close(loss(teacher, moved), expected)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_distances_on_mps_are_taken_on_the_cpu(loss):
    student = rows(0).float().requires_grad_()
    there = student.detach().clone().requires_grad_()
    expected = loss(student, rows(1).float())
    expected.backward()
    with Mps(torch.cdist, torch.Tensor.double) as mps:  # float64, and the gradient of cdist, are missing there
        found = loss(mps.put(there), mps.put(rows(1).float()))
        found.backward()
        assert found.device == MPS
    assert found.item() == expected.item()
    assert there.grad.tolist() == student.grad.tolist()


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_rkd_far_from_the_origin_in_float32(loss):
    # On a grid of 1/64 the offset is exact in float32: only the loss could lose digits. Distances through
    # the Gram matrix are wrong by 0.4 here.
    student, teacher = (64 * e_s).round() / 64, (64 * e_t).round() / 64
    far = loss((student + 1000).float(), (teacher + 1000).float())
    assert close(far, loss(student, teacher), rel=1e-5)


def test_rkd_far_from_the_origin_in_a_large_batch():
    # From 26 rows on, torch.cdist would take the Gram matrix by itself.
    student, teacher = (64 * rows(1, (30, 6))).round() / 64, rows(2, (30, 6))
    far = rkd_distance((student + 1000).float(), teacher.float())
    assert close(far, rkd_distance(student, teacher), rel=1e-5)


def test_rkd_distance_counts_coinciding_rows_in_the_mean():
    student = torch.tensor([[0.0], [0.0], [3.0]], dtype=torch.float64, requires_grad=True)  # 0, 3, 3, mean 2
    teacher = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)  # 1, 1, 2, mean 4/3
    loss = rkd_distance(student, teacher)
    loss.backward()
    differences = np.array([0 - 3 / 4, 3 / 2 - 3 / 2, 3 / 2 - 3 / 4])
    assert close(loss, 2 * (differences**2 / 2).sum() / 9)
    assert student.grad.abs().max() < 1


def test_rkd_angle_has_no_direction_between_coinciding_rows():
    student = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    loss = rkd_angle(student, teacher)
    loss.backward()
    # Twice each: angle at 0 (none against 0 degrees), at 1 (none against 180), at 2 (0 against 0). Once each:
    # samples 0 and 1 seen from one another, cosine with itself 0 instead of 1.
    assert close(loss, (2 * (0.5 + 0.5 + 0) + 2 * 0.5) / 27)
    assert student.grad.abs().max() < 1


def test_rows_within_a_millionth_coincide():
    teacher = e_t
    for base in (torch.ones(6, dtype=torch.float64) / 6**0.5, 100 * torch.ones(6, dtype=torch.float64)):
        size = base.norm()
        step = size * rotation(1, 6)[0]
        for share, is_signal in ((1.4e-6, True), (0.7e-6, False)):
            student = torch.stack([base, base + share * step, base + 3 * step, base - 2 * step])
            student[2:] *= size / student[2:].norm(dim=1, keepdim=True)
            kept = torch.stack([base, base + 1e-3 * step, student[2], student[3]])
            gone = torch.stack([base, base, student[2], student[3]])
            expected = rkd_angle(kept if is_signal else gone, teacher)
            assert close(rkd_angle(student, teacher), expected, rel=2e-3)
            assert abs(rkd_angle(kept, teacher) - rkd_angle(gone, teacher)) > 0.005


def test_the_larger_of_two_rows_decides_whether_they_coincide():
    # Samples 0 and 1 are 100 times smaller than 2 and 3, and apart by 1e-5 of their own size.
    small = torch.tensor([[1.0, 0, 0], [1.0, 1e-5, 0]], dtype=torch.float64)
    large = 100 * torch.tensor([[0, 1.0, 1.0], [0, 1.0, 1.0 + 7e-7]], dtype=torch.float64)
    near = rkd_angle(torch.cat([small, large]), e_t)
    apart = torch.tensor([[1.0, 0, 0], [1.0, 1e-3, 0]], dtype=torch.float64)
    assert close(near, rkd_angle(torch.cat([apart, large[:1], large[:1]]), e_t), rel=1e-3)


def test_rkd_distance_of_rows_that_all_coincide_to_a_millionth():
    pattern = rows(1, (4, 6))
    pattern = pattern / (torch.cdist(pattern, pattern).sum() / 12)  # mean distance 1
    for size in (1.0, 50.0):
        base = size * torch.full((1, 6), 6**-0.5, dtype=torch.float64)
        clear = (base + 1.4e-6 * size * pattern).requires_grad_()
        noise = (base + 0.7e-6 * size * pattern).requires_grad_()
        assert close(rkd_distance(clear, e_t), rkd_distance(pattern, e_t), rel=1e-6)
        loss = rkd_distance(noise, e_t)
        loss.backward()
        assert close(loss, huber(relative_distances_by_hand(e_t)))
        assert not noise.grad.any()


@pytest.mark.parametrize("size", [1e-12, 1e-13, 1e-14])
def test_two_dead_samples_near_the_origin_have_a_finite_gradient(size):
    # A student with SiLU answers so to two samples: both are next to nothing, and not equal.
    student = rows(1, (6, 8)).float()
    student[:2] *= size
    student.requires_grad_()
    loss = rkd_angle(student, rows(2, (6, 5)).float())
    loss.backward()
    same = student.detach().clone()
    same[:2] = 0
    torch.testing.assert_close(loss, rkd_angle(same, rows(2, (6, 5)).float()))
    assert student.grad.abs().max() < 1


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("loss", BETWEEN_SAMPLES)
def test_relations_of_samples_far_from_one_in_float32(loss, scale):
    student, teacher = rows(1).float().requires_grad_(), rows(2).float()
    loss(student, teacher).backward()
    far = (scale * student.detach()).requires_grad_()
    found = loss(far, teacher)
    found.backward()
    torch.testing.assert_close(found, loss(student, teacher))
    torch.testing.assert_close(scale * far.grad, student.grad)


# -------------------- similarity


def similarity_by_hand(student, teacher):
    def gram(x):
        x = x.flatten(1).numpy()
        g = np.array([[float(a @ b) for b in x] for a in x])
        return np.array([row / math.sqrt((row**2).sum()) for row in g])

    return np.linalg.norm(gram(student) - gram(teacher)) ** 2 / len(student) ** 2


@few
@given(seed=seeds)
def test_similarity_is_the_formula(seed):
    student, teacher = rows(seed), rows(seed + 1, (5, 2, 3, 3))
    assert close(similarity(student, teacher), similarity_by_hand(student, teacher))


def test_similarity_of_a_small_example():
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)  # Gram ((1, 1), (1, 2))
    teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)  # Gram ((4, 0), (0, 9))
    expected = np.array([[1, 1], [1, 2]]) / np.sqrt([[2], [5]]) - np.eye(2)
    assert close(similarity(student, teacher), (expected**2).sum() / 4)


@few
@given(seed=seeds, scale=scales)
def test_similarity_ignores_rotation_and_scale(seed, scale):
    student, teacher = rows(seed), rows(seed + 1, (5, 3))
    for moved in (student @ rotation(seed), scale * student, -student):
        assert close(similarity(moved, teacher), similarity(student, teacher))
    assert abs(similarity(student + 1, teacher) - similarity(student, teacher)) > 1e-6
    assert similarity(student, teacher) <= 4 / 5


def test_similarity_of_a_dead_sample():
    student = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    loss = similarity(student, teacher)
    loss.backward()
    assert close(loss, 1 / 4)  # its row of zeros against (0, 1)
    assert torch.isfinite(student.grad).all()


# -------------------- correlation_congruence


def congruence_by_hand(student, teacher, gamma, order):
    def kernel(x):
        x = x.flatten(1).numpy()
        x = np.array([row / math.sqrt((row**2).sum()) for row in x])
        series = [
            [sum((2 * gamma) ** p / math.factorial(p) * float(a @ b) ** p for p in range(order + 1)) for b in x]
            for a in x
        ]
        return math.exp(-2 * gamma) * np.array(series)

    return np.mean((kernel(student) - kernel(teacher)) ** 2)


def test_correlation_congruence_defaults():
    assert close(correlation_congruence(e_s, e_t), congruence_by_hand(e_s, e_t, 0.4, 2))


@few
@given(seed=seeds, gamma=st.floats(0.05, 3), order=st.integers(1, 5))
def test_correlation_congruence_is_the_formula(seed, gamma, order):
    student, teacher = rows(seed), rows(seed + 1, (5, 2, 3, 3))
    expected = congruence_by_hand(student, teacher, gamma, order)
    assert close(correlation_congruence(student, teacher, gamma, order), expected)


def test_correlation_congruence_tends_to_the_gaussian_kernel():
    def gaussian(x):
        x = x / x.norm(dim=1, keepdim=True)
        return torch.exp(-0.7 * torch.cdist(x, x) ** 2)

    expected = ((gaussian(e_s) - gaussian(e_t)) ** 2).mean()
    assert close(correlation_congruence(e_s, e_t, 0.7, 20), expected)


@few
@given(seed=seeds, scale=scales)
def test_correlation_congruence_ignores_rotation_and_the_length_of_each_row(seed, scale):
    student, teacher = rows(seed), rows(seed + 1, (5, 3))
    lengths = scale * rows(seed + 2, (5, 1)).exp()
    for moved in (student @ rotation(seed), lengths * student, -student):
        assert close(correlation_congruence(moved, teacher), correlation_congruence(student, teacher))


def test_correlation_congruence_of_a_dead_sample():
    student = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    loss = correlation_congruence(student, teacher, gamma=0.5, order=1)
    loss.backward()
    assert close(loss, math.exp(-1) ** 2 / 4)
    assert not student.grad[1].any()


def test_correlation_congruence_errors():
    for bad in (0, -0.4, math.nan, math.inf):
        with pytest.raises(ValueError, match=exactly(f"gamma must be finite and above 0, got {bad}")):
            correlation_congruence(e_s, e_t, gamma=bad)
    for bad in (0, -1, 2.0, "2", None):
        message = f"order must be a whole number of at least 1, got {bad!r}"
        with pytest.raises(ValueError, match=exactly(message)):
            correlation_congruence(e_s, e_t, order=bad)


# -------------------- what all relations between samples share


@few
@given(seed=seeds)
def test_reordering_the_samples_of_both_changes_nothing(seed):
    student, teacher = rows(seed), rows(seed + 1, (5, 3))
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    for loss in BETWEEN_SAMPLES:
        assert close(loss(student[order], teacher[order]), loss(student, teacher))
        assert loss(student, teacher) > 0
        assert close(loss(student, student @ rotation(seed)), 0)


@pytest.mark.parametrize("loss", [*BETWEEN_SAMPLES, *BETWEEN_TWO_LAYERS])
def test_maps_are_flattened(loss):
    maps = rows(1, (5, 2, 3, 3))
    assert close(loss(maps, rows(2)), loss(maps.flatten(1), rows(2)))
    assert close(loss(rows(2), maps), loss(rows(2), maps.flatten(1)))


@pytest.mark.parametrize("loss", [*BETWEEN_SAMPLES, *BETWEEN_TWO_LAYERS])
def test_bad_batches(loss):
    first, second = ("a", "b") if loss in BETWEEN_TWO_LAYERS else ("student", "teacher")
    message = f"{first} (4, 6) and {second} (3, 8) must hold the same batch of samples"
    with pytest.raises(ValueError, match=exactly(message)):
        loss(e_s, e_t[:3])
    with pytest.raises(ValueError, match=exactly(f"{first} must be batch x features, got shape (4,)")):
        loss(e_s[:, 0], e_t)
    with pytest.raises(ValueError, match=exactly(f"{second} must be batch x features, got shape (4,)")):
        loss(e_s, e_t[:, 0])
    message = " must be a torch.Tensor, got float: use torch.as_tensor"
    with pytest.raises(TypeError, match=exactly(first + message)):
        loss(1.0, e_t)
    with pytest.raises(TypeError, match=exactly(second + message)):
        loss(e_s, 1.0)


@pytest.mark.parametrize(
    ("loss", "name", "minimum"),
    [
        (rkd_distance, "student", 2),
        (rkd_angle, "student", 3),
        (linear_cka, "a", 2),
        (renyi_information, "a", 2),
    ],
)
def test_batches_too_small(loss, name, minimum):
    for size in range(1, minimum):
        message = (
            f"{name} has {size} sample(s), relations need at least {minimum}: leave out a last batch that is too "
            "small, DataLoader(..., drop_last=True)"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            loss(e_s[:size], e_t[:size])
    assert torch.isfinite(loss(e_s[:minimum], e_t[:minimum]))


@pytest.mark.parametrize("loss", [similarity, correlation_congruence])
def test_one_sample_has_no_relations_and_costs_nothing(loss):
    assert close(loss(e_s[:1], e_t[:1]), 0)
