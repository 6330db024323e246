"""Files that somebody has written by hand or damaged: each is refused in a sentence that names the file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_silent_faults import CPU, Counting, module, net, split
from torch import nn

from kdlib import models, train
from kdlib.recipes import Recipe
from kdlib.study.runs_file import RUN_COLUMNS, SessionLog, read_frame, read_rows, read_sessions
from kdlib.teachers import CachedTeacher

DEEP = "[" * 200_000 + "]" * 200_000
DEEP_OBJECT = '{"a":' * 200_000 + "1" + "}" * 200_000


def refused(call: Callable[[], Any], path: Path) -> str:
    """The sentence of a ValueError that names this file."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its words are looked at below)
        call()
    assert type(caught.value) is ValueError
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 1200
    return text


# -------------------- models


def write_model(path: Path, header: Any, change: Callable[[dict[str, Any]], Any] | None = None) -> None:
    tensors = models.build("resnet8", num_classes=3, in_channels=1, seed=0).state_dict()
    if change is not None:
        change(tensors)
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"kdlib": text})


GOOD = {"architecture": "resnet8", "num_classes": 3, "in_channels": 1, "stem": "stride2", "image_size": 28}
HEADERS: dict[str, Any] = {
    "a list": [],
    "a number": 7,
    "a text": "resnet8",
    "null": None,
    "true": True,
    "no JSON": "{",
    "deep lists": DEEP,
    "deep objects": DEEP_OBJECT,
    "no architecture": {k: v for k, v in GOOD.items() if k != "architecture"},
    "an architecture that is a list": GOOD | {"architecture": ["resnet8"]},
    "an unknown architecture": GOOD | {"architecture": "resnet9"},
    "absurdly many classes": GOOD | {"num_classes": 10**12},
    "very many classes": GOOD | {"num_classes": 50_000_000},
    "no class": GOOD | {"num_classes": 0},
    "classes as text": GOOD | {"num_classes": "3"},
    "half a class": GOOD | {"num_classes": 3.5},
    "true classes": GOOD | {"num_classes": True},
    "no channels": GOOD | {"in_channels": -1},
    "very many channels": GOOD | {"in_channels": 90_000_000},
    "a stem that is a number": GOOD | {"stem": 2},
    "an unknown stem": GOOD | {"stem": "stride9"},
    "a stem that is a list": GOOD | {"stem": []},
    "a side that is text": GOOD | {"image_size": "28"},
    "a very long side": {**GOOD, "architecture": "article-student", "image_size": 10_000_000},
    "facts that are a list": {"facts": []},
    "facts that are text": {"facts": "x"},
    "facts without a model": {"facts": {}},
    "facts with a config that is text": {"facts": {"config": "resnet8"}},
    "facts with a config that is a list": {"facts": {"config": [1]}},
    "class names that are numbers": GOOD | {"classes": [1, 2, 3]},
    "class names of other classes": GOOD | {"classes": ["a", "b"]},
    "class names that are text": GOOD | {"classes": "abc"},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_model_with_a_crafted_header_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, HEADERS[name])
    refused(lambda: models.load(path), path)


def integers(tensors: dict[str, Any]) -> None:
    tensors["conv1.weight"] = tensors["conv1.weight"].to(torch.int32)


def booleans(tensors: dict[str, Any]) -> None:
    tensors["fc.bias"] = tensors["fc.bias"] > 0


def float_counter(tensors: dict[str, Any]) -> None:
    tensors["bn1.num_batches_tracked"] = tensors["bn1.num_batches_tracked"].float()


def infinite(tensors: dict[str, Any]) -> None:
    tensors["fc.bias"][0] = torch.inf


@pytest.mark.parametrize("change", [integers, booleans, float_counter, infinite])
def test_weights_of_another_kind_are_refused(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, GOOD, change)
    refused(lambda: models.load(path), path)


def test_weights_in_sixteen_or_sixty_four_bits_are_welcome(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        path = tmp_path / f"{dtype}.safetensors"
        write_model(path, GOOD, lambda tensors, dtype=dtype: tensors.update({"fc.bias": tensors["fc.bias"].to(dtype)}))
        assert models.load(path).fc.bias.dtype == torch.float32


def test_a_header_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refused(lambda: models.load(path), path)


# -------------------- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoint"
    fit(path, epochs=2)
    return path


def fit(path: Path, resume: bool = False, epochs: int = 2) -> train.Result:
    recipe = Recipe(batch_size=8)
    return train.fit(
        net(), module(), epochs=epochs, recipe=recipe, progress=False, checkpoint=path, resume=resume, **CPU
    )


Change = Callable[[dict[str, Any], dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "no facts": lambda m, t: m.pop("facts"),
    "facts that are a list": lambda m, t: m.update(facts=[]),
    "no run": lambda m, t: m["facts"].pop("run"),
    "a run that is text": lambda m, t: m["facts"].update(run="x"),
    "no step": lambda m, t: m["facts"].pop("step"),
    "a step that is text": lambda m, t: m["facts"].update(step="4"),
    "half a step": lambda m, t: m["facts"].update(step=1.5),
    "a true step": lambda m, t: m["facts"].update(step=True),
    "a step below zero": lambda m, t: m["facts"].update(step=-4),
    "a step of a billion": lambda m, t: m["facts"].update(step=10**9),
    "a step too many": lambda m, t: m["facts"].update(step=9),
    "a step of another epoch": lambda m, t: m["facts"].update(step=4),
    "no seconds": lambda m, t: m["facts"].pop("seconds"),
    "seconds that are text": lambda m, t: m["facts"].update(seconds="x"),
    "seconds below zero": lambda m, t: m["facts"].update(seconds=-1.0),
    "no rows": lambda m, t: m["facts"].pop("rows"),
    "rows that are a number": lambda m, t: m["facts"].update(rows=3),
    "rows of text": lambda m, t: m["facts"].update(rows=["a", "b"]),
    "rows of text in fields": lambda m, t: m["facts"]["rows"][0].update(loss="low"),
    "a row too few": lambda m, t: m["facts"]["rows"].pop(),
    "no sums": lambda m, t: m["facts"].pop("sums"),
    "sums that are a list": lambda m, t: m["facts"].update(sums=[]),
    "sums of text": lambda m, t: m["facts"].update(sums={"loss": "x"}),
    "no scalars": lambda m, t: m.pop("scalars"),
    "scalars that are a list": lambda m, t: m.update(scalars=[]),
    "scalars without a number": lambda m, t: m.update(scalars={"optimizer/x/step": 1}),
    "scalars without a name": lambda m, t: m.update(scalars={"optimizer/1": 1}),
    "no groups": lambda m, t: m.pop("param_groups"),
    "groups that are text": lambda m, t: m.update(param_groups="x"),
    "groups of numbers": lambda m, t: m.update(param_groups=[1, 2]),
    "a group too few": lambda m, t: m["param_groups"].pop(),
    "a group without parameters": lambda m, t: m["param_groups"][0].pop("params"),
    "a group of other parameters": lambda m, t: m["param_groups"][0].update(params=[0]),
    "a learning rate that is text": lambda m, t: m["param_groups"][0].update(lr="x"),
    "a learning rate of 400 digits": lambda m, t: m["param_groups"][0].update(lr=10**400),
    "seconds of 400 digits": lambda m, t: m["facts"].update(seconds=10**400),
    "another momentum": lambda m, t: m["param_groups"][0].update(momentum=-5.0),
    "int32 weights": lambda m, t: t.update({"student/0.weight": t["student/0.weight"].int()}),
    "no weights": lambda m, t: [t.pop(name) for name in list(t) if name.startswith("student/")],
    "a missing weight": lambda m, t: t.pop("student/0.weight"),
    "a momentum of another shape": lambda m, t: t.update({"optimizer/0/momentum_buffer": torch.zeros(3)}),
    "a momentum of integers": lambda m, t: t.update(
        {"optimizer/0/momentum_buffer": t["optimizer/0/momentum_buffer"].int()}
    ),
    "the state of a parameter that is not there": lambda m, t: t.update(
        {"optimizer/99/momentum_buffer": torch.zeros(3)}
    ),
    "a tensor in a list that is not there": lambda m, t: m["scalars"].update({"optimizer/0/sums": [{"tensor": "x"}]}),
    "a tensor in a list without a name": lambda m, t: m["scalars"].update({"optimizer/0/sums": [{"tensor": []}]}),
    "a random state of floats": lambda m, t: t.update({"random/cpu/0": torch.zeros(9)}),
    "a random state too short": lambda m, t: t.update({"random/cpu/0": torch.zeros(9, dtype=torch.uint8)}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_crafted_checkpoint_is_refused_and_nothing_is_changed(name: str, checkpoint: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "checkpoint"
    tensors = load_file(checkpoint)
    with safe_open(checkpoint, framework="pt") as file:
        metadata = json.loads(file.metadata()["kdlib"])
    CHANGES[name](metadata, tensors)
    save_file(tensors, path, {"kdlib": json.dumps(metadata)})
    before = path.read_bytes()
    refused(lambda: fit(path, resume=True), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", [DEEP, DEEP_OBJECT, "[]", "1", "null", '"x"', "{"])
def test_a_checkpoint_with_a_crafted_header_is_refused(text: str, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save_file(load_file(checkpoint), path, {"kdlib": text})
    refused(lambda: fit(path, resume=True), path)


def test_a_checkpoint_with_a_crafted_count_is_refused(tmp_path: Path) -> None:
    from safetensors import safe_open

    def run(resume: bool) -> train.Result:
        options: dict[str, Any] = {"optimizer": lambda weights: Counting(weights, 0.05), "progress": False, **CPU}
        recipe = Recipe(batch_size=8)
        return train.fit(net(), module(), epochs=1, recipe=recipe, checkpoint=path, resume=resume, **options)

    path = tmp_path / "checkpoint"
    run(resume=False)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["kdlib"])
    metadata["param_groups"][0]["k"] = 10**400
    save_file(load_file(path), path, {"kdlib": json.dumps(metadata)})
    refused(lambda: run(resume=True), path)


# -------------------- results of a study


def write_rows(path: Path, **changes: str) -> None:
    row = dict.fromkeys(RUN_COLUMNS, "")
    row |= {"study": "methods", "data": "fashion-mnist", "student": "resnet8", "teacher": "resnet20-fashion"}
    row |= {"images": "100", "epochs": "2", "views": "1", "method": "kd", "spec": "kd", "seed": "0"}
    row |= {"test_accuracy": "0.9", "validation_accuracy": "0.9", "seconds": "1.5", "threads": "1", "device": "cpu"}
    lines = [",".join(RUN_COLUMNS), ",".join((row | changes).values())]
    path.write_text("\n".join(lines) + "\n")


VALUES = {
    **{"seed": "one", "images": "-1", "epochs": "1.5", "views": "nan", "threads": "many", "excluded_class": "cat"},
    **{"test_accuracy": "90.1", "validation_accuracy": "inf", "teacher_accuracy": "-0.1", "agreement": "1e300"},
    **{"calibration_error": "x", "seconds": "-5", "seconds_per_epoch": "inf", "extra_parameters": "0.5"},
    **{"learning_rate": "fast", "temperature": "nan", "alpha": "7e400"},
}


@pytest.mark.parametrize(
    ("name", "value"), [*VALUES.items(), ("images", "9" * 400), ("seed", str(2**63)), ("seconds", "9" * 400)]
)
def test_a_row_with_a_crafted_value_is_refused(name: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "methods.csv"
    write_rows(path)
    assert len(read_rows(path)) == 1
    write_rows(path, **{name: value})
    for read in (read_rows, read_frame):
        text = refused(lambda read=read: read(path), path)
        assert name in text
        assert "ine 2" in text


@pytest.mark.parametrize(
    "content", [b"\x00\xff\xfe\n", b"seed,seed\n1,2\n", b"\n\n", b'seed\n"1\n', b"seed\n" + b"9" * 200_000 + b"\n"]
)
def test_a_file_that_is_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "methods.csv"
    path.write_bytes(content)
    for read in (read_rows, read_frame):
        refused(lambda read=read: read(path), path)


SESSIONS = {
    **{
        "deep": DEEP,
        "a list": "[]",
        "a number": "1",
        "no sessions": "{}",
        "sessions that are text": '{"sessions": "x"}',
    },
    **{"sessions of numbers": '{"sessions": [1]}', "null": '{"sessions": null}', "no JSON": "{"},
    "rows that are text": '{"sessions": [{"rows": "1-3"}]}',
    "one row": '{"sessions": [{"rows": [1]}]}',
    "rows below one": '{"sessions": [{"rows": [-5, 2]}]}',
    "half a row": '{"sessions": [{"rows": [1, 2.5]}]}',
    "hours of 400 digits": f'{{"sessions": [{{"hours": 1{"0" * 400}}}]}}',
    "hours that are text": '{"sessions": [{"hours": "long"}]}',
    "a machine that is a list": '{"sessions": [{"machine": []}]}',
}


@pytest.mark.parametrize("name", SESSIONS)
def test_a_crafted_log_of_sessions_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "methods.csv"
    path.with_suffix(".json").write_text(SESSIONS[name])
    refused(lambda: read_sessions(path), path.with_suffix(".json"))
    if name != "no sessions":
        refused(lambda: SessionLog(path, "test"), path.with_suffix(".json"))


def test_the_results_that_are_shipped_keep_the_schema() -> None:
    from kdlib.data import data_dir

    for path in sorted((data_dir() / "results").glob("*.csv")):
        assert read_rows(path)
        assert read_sessions(path)


# -------------------- caches


@pytest.mark.parametrize(
    "text", [DEEP, DEEP_OBJECT, "[]", "1", "null", '"x"', "{", "{}", '{"files": []}', '{"views": "x"}', '{"layers": 3}']
)
def test_a_crafted_cache_is_refused(text: str, tmp_path: Path) -> None:
    teacher: nn.Module = net(1)

    def build() -> CachedTeacher:
        return CachedTeacher.build(teacher, split(0, 12), directory=tmp_path / "cache", progress=False, **CPU)

    build()
    (tmp_path / "cache" / "cache.json").write_text(text)
    refused(build, tmp_path / "cache")


@pytest.mark.parametrize("files", [None, [], "x", 1, {}, {"logits.npy": 3}, {"logits.npy": "0" * 64}])
def test_a_cache_with_crafted_checksums_is_refused(files: Any, tmp_path: Path) -> None:
    def build() -> CachedTeacher:
        return CachedTeacher.build(net(1), split(0, 12), directory=tmp_path / "cache", progress=False, **CPU)

    build()
    path = tmp_path / "cache" / "cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": files}))
    refused(build, tmp_path / "cache")
