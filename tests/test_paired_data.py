"""Data sets of pairs, and a distiller whose student sees one modality and whose teacher another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdlib import cli, data, train
from kdlib.adapters import Adapter
from kdlib.data import HIDDEN, PairedDataset, labelled_cross_entropy
from kdlib.data.paired import SPLITS
from kdlib.distiller import Distiller
from kdlib.methods import Feature, HardLabels, Logit, Method, Relation
from kdlib.recipes import Recipe

ADAPTER = Adapter(inputs="sound", teacher_inputs="picture")
NAMES = ("shoulder-exercises", "digit-views")


def net(inputs: int, classes: int = 3, width: int = 8, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


def pairs(count: int = 60, seed: int = 0) -> PairedDataset:
    """Three classes; the picture (7 numbers) shows them clearly, the sound (5 numbers) less so."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    sound, picture = (torch.randn(count, width, generator=generator) for width in (5, 7))
    sound[torch.arange(count), labels] += 2
    picture[torch.arange(count), labels] += 4
    return PairedDataset({"sound": sound, "picture": picture}, labels, 100 + torch.arange(count))


def batch(sound: int = 8, picture: int = 8, labels: int = 8) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"sound": torch.randn(sound, 5), "picture": torch.randn(picture, 7), "labels": torch.arange(labels) % 3}


def fit(student: nn.Module, given: Any, **options: Any) -> train.Result:
    defaults: dict[str, Any] = {"epochs": 1, "recipe": Recipe("adamw", 0.01), "adapter": ADAPTER}
    return train.fit(student, given, **{**defaults, "device": "cpu", "precision": "fp32", "progress": False, **options})


# -------------------- the shipped sets


@pytest.mark.parametrize("name", NAMES)
def test_the_five_test_sets_hold_every_sample_once(name: str) -> None:
    splits = [data.load_paired(name, split) for split in range(SPLITS)]
    tested = torch.cat([one.test.indices for one in splits])
    assert torch.equal(tested.sort().values, torch.arange(len(tested)))
    for one in splits:
        parts = (one.train, one.validation, one.test)
        assert sum(map(len, parts)) == len(tested)
        assert len(torch.cat([part.indices for part in parts]).unique()) == len(tested)
        for part in parts:
            assert part.labels.unique().tolist() == list(range(one.num_classes))
            assert all(values.isfinite().all() and values.dtype == torch.float32 for values in part.inputs.values())


def test_no_person_is_in_two_parts_and_each_is_tested_once() -> None:
    tested = []
    for split in range(SPLITS):
        one = data.load_paired("shoulder-exercises", split)
        persons = [set(part.groups.tolist()) for part in (one.train, one.validation, one.test)]
        assert [len(some) for some in persons] == [6, 2, 2]
        assert len(set.union(*persons)) == 10
        tested += sorted(persons[2])
    assert sorted(tested) == list(range(1, 11))


@pytest.mark.parametrize("name", NAMES)
def test_only_training_samples_set_the_scale(name: str) -> None:
    one = data.load_paired(name, 1)
    for field in one.fields:
        seen, other = one.train.inputs[field], one.test.inputs[field]
        over = (0, 2) if seen.ndim == 3 else (0,)
        torch.testing.assert_close(seen.mean(over), torch.zeros(seen.shape[1]), atol=2e-3, rtol=0)
        varies = seen.std(over) > 0.5  # some pixels never change
        assert varies.float().mean() > 0.9
        torch.testing.assert_close(seen.std(over)[varies], torch.ones(int(varies.sum())), atol=1e-2, rtol=0)
        assert other.mean(over).abs().max() > 0.02


def test_load_gives_what_a_user_expects() -> None:
    shoulder = data.load("shoulder-exercises")
    assert (shoulder.fields, shoulder.num_classes) == (("accelerometer", "gyroscope"), 7)
    assert "abduction" in shoulder.classes
    sample = shoulder.train[3]
    assert set(sample) == {"accelerometer", "gyroscope", "labels", "index"}
    assert sample["accelerometer"].shape == sample["gyroscope"].shape == (3, 100)
    loaded = next(iter(DataLoader(shoulder.test, 16)))
    assert loaded["gyroscope"].shape == (16, 3, 100)
    assert torch.equal(loaded["index"], shoulder.test.indices[:16])
    assert set(NAMES) <= set(data.list_datasets())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_into_a_data_set_is_not_there_when_loaded_again(name: str) -> None:
    first = data.load(name)
    for part in (first.train, first.validation, first.test):
        tensors = [*part.inputs.values(), part.labels, part.indices, *([] if part.groups is None else [part.groups])]
        for one in tensors:
            one.zero_()
    again = data.load(name)
    for part in (again.train, again.validation, again.test):
        assert all(bool(one.any()) for one in part.inputs.values())
        assert part.labels.any()
        assert len(part.indices.unique()) == len(part)
        assert part.groups is None or part.groups.any()


def test_windows_of_both_sensors_are_of_the_same_moment() -> None:
    """A movement that is fast for one sensor is fast for the other."""
    shoulder = data.load("shoulder-exercises").train
    speeds = [(x[..., 1:] - x[..., :-1]).abs().mean((1, 2)) for x in shoulder.inputs.values()]
    paired = torch.corrcoef(torch.stack(speeds))[0, 1]
    wrong = torch.corrcoef(torch.stack((speeds[0], speeds[1].roll(500))))[0, 1]
    assert paired > 0.7 > 0.4 > wrong.abs()


@pytest.mark.parametrize(("change", "message"), [("missing", "is missing"), ("altered", "truncated or altered")])
def test_a_damaged_file_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    path = tmp_path / "shoulder-exercises.safetensors"
    if change == "altered":
        shutil.copy(data.data_dir() / path.name, path)
        with path.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    error = FileNotFoundError if change == "missing" else ValueError
    with pytest.raises(error, match=rf"{message}.*git checkout -- data/shoulder-exercises"):
        data.load("shoulder-exercises")


@pytest.mark.parametrize(
    ("name", "split"), [("shoulder", 0), ("digit-views", 5), ("digit-views", -1), ("digit-views", True)]
)
def test_what_is_not_there_is_refused(name: str, split: Any) -> None:
    with pytest.raises(ValueError, match="There is no data set of pairs|split is a whole number"):
        data.load_paired(name, split)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "shoulder-exercises"],
        ["distill", "--data", "shoulder-exercises"],
        ["evaluate", "resnet20-fashion", "--data", "digit-views"],
        ["export", "resnet20-fashion", "--data", "shoulder-exercises"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_for_images_refuse_pairs_in_one_sentence(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["kdlib", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "holds pairs of two modalities" in said
    assert "fashion-mnist" in said
    assert "Traceback" not in said
    assert list(tmp_path.rglob("*.safetensors")) == []


# -------------------- a set of one's own


def test_fields_without_a_partner_are_refused() -> None:
    whole = pairs()
    inputs = {**whole.inputs, "picture": whole.inputs["picture"][:-1]}
    with pytest.raises(ValueError, match="not paired: sound 60, picture 59, labels 60"):
        PairedDataset(inputs, whole.labels, whole.indices)
    with pytest.raises(ValueError, match="not paired.*groups 3"):
        PairedDataset(whole.inputs, whole.labels, whole.indices, torch.arange(3))
    with pytest.raises(ValueError, match="two fields or more"):
        PairedDataset({"sound": whole.inputs["sound"]}, whole.labels, whole.indices)
    with pytest.raises(ValueError, match="none of them called labels or index"):
        PairedDataset({**whole.inputs, "index": whole.labels}, whole.labels, whole.indices)
    with pytest.raises(TypeError, match=r"labels\.long"):
        PairedDataset(whole.inputs, whole.labels.float(), whole.indices)


def test_few_labels_hide_the_others_and_more_contain_them() -> None:
    whole = pairs()
    two, five = whole.few_labels(2, seed=3), whole.few_labels(5, seed=3)
    assert (len(two), len(two.labelled), len(five.labelled)) == (60, 6, 15)
    assert two.labels[two.labelled].bincount().tolist() == [2, 2, 2]
    assert torch.equal(two.labels[two.labelled], whole.labels[two.labelled])
    assert set(two.labelled.tolist()) < set(five.labelled.tolist())
    assert not torch.equal(two.labelled, whole.few_labels(2, seed=4).labelled)
    assert torch.equal(two.inputs["sound"], whole.inputs["sound"])
    with pytest.raises(ValueError, match="Class 0 has 20 labelled samples; there are not 21"):
        whole.few_labels(21)
    with pytest.raises(ValueError, match="per_class is a whole number"):
        whole.few_labels(0)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_shuffling_breaks_that_share_of_the_pairs_and_loses_no_sample(share: float) -> None:
    whole = pairs()
    mixed = whole.shuffle_pairs("picture", share, seed=2)
    moved = (mixed.inputs["picture"] != whole.inputs["picture"]).any(1)
    assert moved.sum() == round(60 * share)
    assert torch.equal(mixed.inputs["picture"].sum(1).sort().values, whole.inputs["picture"].sum(1).sort().values)
    assert torch.equal(mixed.inputs["sound"], whole.inputs["sound"])
    assert torch.equal(mixed.labels, whole.labels)


@pytest.mark.parametrize(("field", "share"), [("pictures", 1.0), ("picture", 1.1), ("picture", -0.1)])
def test_shuffling_refuses_what_is_not_there(field: str, share: float) -> None:
    with pytest.raises(ValueError, match="Did you mean 'picture'|share lies between 0 and 1"):
        pairs().shuffle_pairs(field, share)


@pytest.mark.parametrize("share", [0.001, 0.02])  # of 60 samples: none, and one that would keep its own
def test_a_share_that_breaks_no_pair_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="of 60 samples is fewer than two"):
        pairs().shuffle_pairs("picture", share)


def test_batches_hold_all_samples_once_an_epoch_and_labelled_ones_beside_them() -> None:
    few = pairs().few_labels(2)
    torch.manual_seed(0)
    made = list(few.batches(20, labelled=6))
    assert [len(one["labels"]) for one in made] == [26, 26, 26]
    assert torch.cat([one["index"][:20] for one in made]).sort().values.tolist() == list(range(100, 160))
    assert all((one["labels"][20:] != HIDDEN).all() for one in made)
    for one in made:  # the fields are of the samples that the index says
        assert torch.equal(one["picture"], few.inputs["picture"][one["index"] - 100])
    torch.manual_seed(0)
    again = list(few.batches(20, labelled=6))
    assert all(torch.equal(a["index"], b["index"]) for a, b in zip(made, again, strict=True))
    assert len(list(few.select(few.labelled).batches(4, steps=9))) == 9


def test_batches_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="60 samples, less than one batch of 64"):
        pairs().batches(64)
    unlabelled = pairs().few_labels(1)
    unlabelled = unlabelled.select(torch.nonzero(unlabelled.labels == HIDDEN)[:, 0])
    with pytest.raises(ValueError, match="All labels are hidden"):
        unlabelled.batches(8, labelled=2)
    with pytest.raises(ValueError, match="batch_size is a whole number"):
        pairs().batches(0)


def test_hidden_labels_have_no_part_in_the_loss() -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    labels = torch.tensor([0, HIDDEN, 2, HIDDEN, HIDDEN, 1])
    loss = labelled_cross_entropy(logits, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits[[0, 2, 5]], labels[[0, 2, 5]]))
    loss.backward()
    assert (logits.grad[[1, 3, 4]] == 0).all()
    none = labelled_cross_entropy(logits, torch.full((6,), HIDDEN))
    none.backward()
    assert none.item() == 0


def test_plain_cross_entropy_refuses_hidden_labels() -> None:
    """Else they would be forgotten in silence."""
    with pytest.raises(ValueError, match="-100"):
        fit(net(5), pairs().few_labels(2), method=HardLabels())


# -------------------- a distiller with two inputs

METHODS: dict[str, Method] = {
    "logits": Logit(temperature=2, alpha=0.5),
    "features": HardLabels() + Feature({"0": "0"}),
    "relations": HardLabels() + Relation({"0": "0"}, "rkd_distance"),
    "a function": HardLabels() + Feature({"1": "1"}, loss=lambda a, b: ((a.mean(1) - b.mean(1)) ** 2).mean()),
}


class Noted(nn.Module):
    """Remembers what it was called with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs)
        return self.model(inputs)


def test_each_network_sees_its_own_field() -> None:
    student, teacher, given = Noted(net(5)), Noted(net(7)), batch()
    Distiller(student, teacher, Logit(2, 0.5), adapter=ADAPTER)(given)
    assert student.seen[-1] is given["sound"]
    assert torch.equal(teacher.seen[-1], given["picture"])


@pytest.mark.parametrize("name", ["logits", "relations"])  # the others have projectors, whose weights fit draws
def test_fit_on_batches_of_pairs_is_the_loop_by_hand(name: str) -> None:
    method = METHODS[name]
    teacher = net(7, width=12, seed=3)
    batches = list(DataLoader(pairs(), 20))
    run = fit(net(5), batches, teacher=teacher, method=method)
    by_hand = net(5)
    distiller = Distiller(by_hand, teacher, method, adapter=ADAPTER, example=batches[0])
    recipe = Recipe("adamw", 0.01)
    optimizer = recipe.make_optimizer(distiller.parameters())
    for step, one in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, len(batches))
        optimizer.zero_grad()
        distiller(one).total.backward()
        optimizer.step()
    for key, value in run.student.state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("picture", [7, 1], ids=["one less", "one alone"])
@pytest.mark.parametrize("first", [True, False], ids=["first batch", "second batch"])
def test_batches_of_unequal_length_are_refused_whatever_the_method(name: str, picture: int, first: bool) -> None:
    """One picture for eight sounds would be broadcast by a loss of one's own."""
    batches = [batch(picture=picture)] if first else [batch(), batch(picture=picture)]
    with pytest.raises(ValueError, match="same samples.*Do inputs and teacher_inputs of the batch belong together"):
        fit(net(5), batches, teacher=net(7, width=12), method=METHODS[name])


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            Adapter(inputs="sounds", teacher_inputs="picture"),
            r"Adapter\(inputs='sounds'\) is not in .*'sound', 'picture'",
        ),
        (Adapter(inputs="sound", teacher_inputs="pictures"), r"Adapter\(teacher_inputs='pictures'\) is not in"),
        (Adapter(inputs="picture", teacher_inputs="sound"), r"The student cannot take a tensor of \(8, 7\)"),
        (Adapter(inputs="sound"), r"The teacher cannot take a tensor of \(8, 5\).*teacher_inputs="),
        (Adapter(inputs="sound", teacher_inputs="labels"), r"The teacher cannot take a tensor of \(8,\), torch.int64"),
        (None, "The student cannot take the fields sound, picture"),
        (Adapter(inputs="sound", teacher_inputs="picture", labels="label"), r"Adapter\(labels='label'\) is not in"),
    ],
)
@pytest.mark.parametrize("name", ["logits", "relations"])
def test_a_missing_or_wrong_field_is_named_before_the_first_step(name: str, adapter: Any, message: str) -> None:
    student = net(5)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fit(student, [batch()], teacher=net(7), method=METHODS[name], adapter=adapter)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_labels_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels must have shape \(8,\).*got \(7,\)"):
        fit(net(5), [batch(labels=7)], teacher=net(7), method=METHODS["logits"])


def test_features_need_no_common_classes_and_logits_do() -> None:
    other = net(7, classes=5, width=12)
    assert fit(net(5), [batch()], teacher=other, method=METHODS["features"]).rows
    with pytest.raises(ValueError, match="same classes of the same samples"):
        fit(net(5), [batch()], teacher=other, method=METHODS["logits"])


def test_a_whole_data_set_is_no_split() -> None:
    with pytest.raises(TypeError, match=r"fit\(student, data\.train, validation=data\.validation"):
        fit(net(5), data.load("digit-views"))


LABELS = HardLabels(hard=labelled_cross_entropy)


def taught(dataset: PairedDataset, method: Method, teacher: nn.Module | None = None) -> train.Result:
    return fit(net(5, width=16), dataset.batches(64, labelled=16, steps=60), method=method, teacher=teacher, epochs=2)


@pytest.fixture(scope="module")
def picture_teacher() -> nn.Module:
    return fit(net(7, width=16, seed=5), pairs(600), adapter=Adapter(inputs="picture"), epochs=20).student


@pytest.mark.slow
def test_pairs_teach_a_student_of_few_labels_and_wrong_pairs_do_not(picture_teacher: nn.Module) -> None:
    few, tested, by_logits = pairs(600).few_labels(1), pairs(300, seed=1), Logit(2, 0.5, hard=labelled_cross_entropy)

    def accuracy(run: train.Result) -> float:
        return train.evaluate(run.student, tested, adapter=Adapter(inputs="sound"), device="cpu").accuracy

    paired = accuracy(taught(few, by_logits, picture_teacher))
    assert paired > accuracy(taught(few, LABELS)) + 0.05
    assert paired > accuracy(taught(few.shuffle_pairs("picture"), by_logits, picture_teacher)) + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hint 0", "rkd_distance 0"])
def test_features_and_relations_learn_from_pairs_what_wrong_pairs_cannot_tell(
    name: str, picture_teacher: nn.Module
) -> None:
    term = Feature({"0": "0"}) if name == "hint 0" else Relation({"0": "0"}, "rkd_distance")
    few = pairs(600).few_labels(1)
    paired, wrong = (
        taught(dataset, LABELS + 5 * term, picture_teacher).rows[-1][name]
        for dataset in (few, few.shuffle_pairs("picture"))
    )
    assert paired < 0.95 * wrong


@pytest.mark.slow
def test_the_lines_for_clip_run_on_a_tiny_one() -> None:
    """Those that lesson 14 gives for a GPU, with random weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=12,
    )
    torch.manual_seed(0)
    teacher = transformers.CLIPVisionModelWithProjection(config)
    student = nn.Sequential()
    student.add_module("embedding", nn.Sequential(nn.Linear(40, 24), nn.ReLU()))
    student.add_module("classifier", nn.Linear(24, 3))
    labels = torch.tensor([0, HIDDEN, 1, HIDDEN, 2, HIDDEN, HIDDEN, HIDDEN])
    given = {"sound": torch.randn(8, 40), "pixel_values": torch.randn(8, 3, 16, 16), "labels": labels}
    method = LABELS + 10 * Feature({"embedding": "visual_projection"})
    adapter = Adapter(inputs="sound", teacher_inputs="pixel_values")
    rows = fit(student, [given] * 10, teacher=teacher, method=method, adapter=adapter, epochs=3).rows
    assert rows[-1]["hint embedding"] < 0.8 * rows[0]["hint embedding"]
    assert rows[-1]["hard"] < rows[0]["hard"]


def test_another_seed_breaks_other_pairs() -> None:
    first, again, other = (pairs().shuffle_pairs("picture", 0.5, seed=seed).inputs["picture"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_labelled_samples_are_drawn_anew_from_all_of_them() -> None:
    few = pairs().few_labels(3)
    torch.manual_seed(0)
    beside = [one["index"][20:] - 100 for one in few.batches(20, labelled=4, steps=30)]
    assert set(torch.cat(beside).tolist()) == set(few.labelled.tolist())
    assert not torch.equal(beside[0], beside[1])


def test_samples_that_come_again_come_in_another_order() -> None:
    torch.manual_seed(0)
    made = [one["index"] for one in pairs().batches(20, steps=6)]
    first, second = torch.cat(made[:3]), torch.cat(made[3:])
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)


def test_a_batch_that_is_not_full_is_left_out() -> None:
    batches = pairs().batches(25)
    assert [len(one["index"]) for one in batches] == [25, 25]
    assert len(batches) == 2
    assert len(torch.cat([one["index"] for one in batches]).unique()) == 50
