"""What holds for every loss alike: gradients, precision, degenerate input, wrong types."""

import contextlib
import inspect
import itertools

import pytest
import torch

from kdlib import losses


def leaves(tensors, dtype=torch.float32):
    return [x.to(dtype).clone().requires_grad_() for x in tensors]


DEGENERATE = {
    "zero": torch.zeros_like,
    "constant": lambda x: torch.full_like(x, 0.1),
    "large constant": lambda x: torch.full_like(x, 12345.678),
    "identical rows": lambda x: x[:1].expand_as(x).clone(),
    "coinciding rows": lambda x: torch.cat([x[:1], x[:1], x[2:]]),
    "one dead sample": lambda x: torch.cat([0 * x[:1], x[1:]]),
    "dead channel": lambda x: torch.cat([0 * x[:, :1], x[:, 1:]], dim=1),
    "huge": lambda x: torch.where(x > 0, 1e4, -1e4).to(x.dtype),
    "tiny": lambda x: 1e-20 * x,
}


def degenerate(kind, x):
    """x as some failing network would produce it; the variance of vid has no batch and is left alone."""
    return DEGENERATE[kind](x) if x.ndim > 1 else x


def test_degenerate_input_is_finite(case):
    """Every kind for the student, the teacher, both, and both with opposite signs; one test for all, to be quick."""
    for kind, side in itertools.product(DEGENERATE, ("student", "teacher", "both", "opposite")):
        student, teacher = case.student, case.teacher
        if side != "teacher":
            student = [degenerate(kind, x) for x in student]
        if side != "student":
            teacher = [degenerate(kind, x) * (-1 if side == "opposite" else 1) for x in teacher]
        student, teacher = leaves(student), leaves(teacher)
        loss = case.loss(*student, *teacher)
        loss.backward()
        assert torch.isfinite(loss), (kind, side)
        assert all(torch.isfinite(x.grad).all() for x in student + teacher), (kind, side)


def test_degenerate_input_gets_no_exploding_gradient(case):
    for kind in ("constant", "large constant", "identical rows", "coinciding rows", "zero"):
        student = leaves(degenerate(kind, x) for x in case.student)
        case.loss(*student, *[x.float() for x in case.teacher]).backward()
        grows = case.name in ("fsp", "hint", "vid") and kind == "large constant"  # as they should
        assert all(x.grad.abs().max() < (1e13 if grows else 20) for x in student), kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_at_noise_between_equal_rows_stays_small(case, dtype):
    noise = 1e-7 * torch.sin(torch.arange(1000.0, dtype=torch.float64))
    student = leaves(
        [x[:1] * (1 + noise[: x.numel()].reshape(x.shape)) if x.ndim > 1 else x for x in case.student], dtype
    )
    case.loss(*student, *[x.to(dtype) for x in case.teacher]).backward()
    assert all(x.grad.abs().max() < 20 for x in student)


def test_batch_of_one(case):
    student = leaves(x[:1] if x.ndim > 1 else x for x in case.student)
    teacher = [x[:1].float() for x in case.teacher]
    if case.minimum > 1:
        with pytest.raises(ValueError, match=f"1 sample.*at least {case.minimum}"):
            case.loss(*student, *teacher)
    else:
        loss = case.loss(*student, *teacher)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(x.grad).all() for x in student)


def test_smallest_batch_is_accepted(case):
    student = leaves(x[: case.minimum] if x.ndim > 1 else x for x in case.student)
    loss = case.loss(*student, *[x[: case.minimum].float() for x in case.teacher])
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(x.grad).all() for x in student)


def test_gradcheck_of_the_student(case):
    student = leaves(case.student, torch.float64)
    assert torch.autograd.gradcheck(lambda *s: case.loss(*s, *case.teacher), student)


def test_gradient_reaches_every_student_input_and_the_teacher(case):
    student, teacher = leaves(case.student), leaves(case.teacher)
    case.loss(*student, *teacher).backward()
    assert all(x.grad.abs().sum() > 0 for x in student + teacher)


def test_result_is_a_scalar_of_the_input_precision(case):
    for dtype in (torch.float32, torch.float64):
        loss = case.loss(*leaves(case.student, dtype), *leaves(case.teacher, dtype))
        assert loss.shape == ()
        assert loss.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(case, dtype):
    student = leaves(case.student, dtype)
    teacher = [x.to(dtype) for x in case.teacher]
    loss = case.loss(*student, *teacher)
    loss.backward()
    exact = case.loss(*[x.double() for x in student], *[x.double() for x in teacher])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-5, abs=1e-6)
    assert all(torch.isfinite(x.grad).all() for x in student)


@pytest.mark.parametrize("student_dtype", [torch.float32, torch.float64])
def test_mixed_precision_takes_the_better(case, student_dtype):
    if not case.teacher:
        pytest.skip("no teacher")
    other = torch.float64 if student_dtype == torch.float32 else torch.float32
    loss = case.loss(*[x.to(student_dtype) for x in case.student], *[x.to(other) for x in case.teacher])
    assert loss.dtype == torch.float64


def test_autocast_does_not_lower_the_precision(case):
    student, teacher = [x.float() for x in case.student], [x.float() for x in case.teacher]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.loss(*student, *teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(case.loss(*student, *teacher).item(), rel=1e-6)


def test_no_value_is_read_off_the_device(case, monkeypatch):
    # Tensors on the meta device have no values: reading one, which makes a GPU wait, raises an error there.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    loss = case.loss(*[x.to("meta") for x in case.student], *[x.to("meta") for x in case.teacher])
    assert loss.device.type == "meta"


def test_inputs_are_left_alone_and_nothing_is_remembered(case):
    student, teacher = [x.clone() for x in case.student], [x.clone() for x in case.teacher]
    first, second = case.loss(*student, *teacher), case.loss(*student, *teacher)
    assert torch.equal(first, second)
    for before, after in zip(case.student + case.teacher, student + teacher, strict=True):
        assert torch.equal(before, after)


def test_student_equal_to_teacher_costs_nothing(case):
    if case.name in ("label_smoothing", "vid"):
        pytest.skip("has no such minimum")
    for same in (case.student, case.teacher):
        assert case.loss(*same, *same).item() == pytest.approx(0, abs=1e-12)
    assert case.loss(*case.student, *case.teacher) > 1e-4


def test_same_permutation_of_both_batches_changes_nothing(case):
    if case.name in ("dkd", "label_smoothing"):
        pytest.skip("labels move along: see test_logits")
    order = torch.tensor([2, 0, 3, 1])
    moved = [x[order] if x.ndim > 1 else x for x in (*case.student, *case.teacher)]
    expected = case.loss(*case.student, *case.teacher).item()
    assert case.loss(*moved).item() == pytest.approx(expected, rel=1e-12)


def test_permuting_the_student_alone_is_noticed(case):
    order = torch.tensor([2, 0, 3, 1])
    moved = [x[order] if x.ndim > 1 else x for x in case.student]
    change = case.loss(*moved, *case.teacher) - case.loss(*case.student, *case.teacher)
    if case.name.startswith("layer_"):  # these compare relations within each network
        assert change.abs() < 1e-12
    else:
        assert change.abs() > 1e-6


def test_what_is_no_batch_of_floats_is_named(case):
    inputs = [*case.student, *case.teacher]
    for position, tensor in enumerate(inputs):

        def call(bad, position=position):
            return case.loss(*inputs[:position], bad, *inputs[position + 1 :])

        with pytest.raises(TypeError, match="must hold floating-point numbers, got torch.int64"):
            call(tensor.long())
        with pytest.raises(ValueError, match=r"is empty, shape \(0,.*at least one sample"):
            call(tensor[:0])
        if "label" not in case.name and case.name != "dkd":
            with pytest.raises(TypeError, match="must be a torch.Tensor, got list"):
                call(tensor.tolist())


SIGNATURES = {
    "attention": "student_map, teacher_map",
    "attention_map": "f",
    "correlation_congruence": "student, teacher, gamma=0.4, order=2",
    "dist": "student_logits, teacher_logits, temperature=1.0, inter=1.0, intra=1.0",
    "dkd": "student_logits, teacher_logits, labels, temperature=4.0, alpha=1.0, beta=8.0",
    "fsp": "student_pair, teacher_pair",
    "fsp_matrix": "a, b",
    "hint": "student_map, teacher_map",
    "kd": "student_logits, teacher_logits, temperature=4.0",
    "label_smoothing": "student_logits, labels, smoothing=0.1",
    "layer_correlation": "student_layers, teacher_layers",
    "layer_information": "student_layers, teacher_layers",
    "layer_relation_matrix": "layers, relation",
    "linear_cka": "a, b",
    "renyi_information": "a, b",
    "rkd_angle": "student, teacher",
    "rkd_distance": "student, teacher",
    "similarity": "student, teacher",
    "soften": "logits, temperature",
    "standardized_kd": "student_logits, teacher_logits, temperature=2.0",
    "vid": "predicted_mean, raw_variance, teacher_map",
    "warn_if_probabilities": "logits, name",
}


def test_names_and_signatures():
    found = {}
    for name in losses.__all__:
        parameters = inspect.signature(getattr(losses, name)).parameters.values()
        assert all(p.annotation is not p.empty for p in parameters)
        found[name] = ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)
    assert found == SIGNATURES


def test_all_names_are_documented():
    for name in losses.__all__:
        text = getattr(losses, name).__doc__
        assert "Shapes" in text
        assert "Raises" in text


def with_one(case, value):
    """The loss with this value in one place of one tensor: (position of the tensor, loss) for some of all places."""
    inputs = [*case.student, *case.teacher]
    for position, tensor in enumerate(inputs):
        for place in (0, tensor.numel() // 2, tensor.numel() - 1):
            changed = tensor.clone()
            changed.view(-1)[place] = value
            yield position, case.loss(*inputs[:position], changed, *inputs[position + 1 :])


def test_a_nan_in_the_input_is_not_hidden(case):
    for position, loss in with_one(case, torch.nan):
        assert torch.isnan(loss), position


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_an_infinity_in_the_input_is_not_hidden(case, value):
    """But where -inf has a meaning: the mask of a class, and the least variance."""
    lowest = [loss.item() for _, loss in with_one(case, -1e4)]
    for (position, loss), limit in zip(with_one(case, value), lowest, strict=True):
        if value < 0 and (case.name == "dist" or (case.name == "vid" and position == 1)):
            assert loss.item() == pytest.approx(limit, rel=1e-12), position
        else:
            assert not torch.isfinite(loss), position
