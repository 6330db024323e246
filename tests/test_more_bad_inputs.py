"""More bad inputs over command line, calls and files: no traceback, no hang, no wrong result without a word.

A refusal counts only if it is ours: an error that torch or Python raised by chance has no sentence that helps.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_silent_faults import CPU, IMAGES, LABELS, fit, loader, module, net, split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlib import cli, data, distill, environment, files, measure, models, train, verdict
from kdlib.adapters import Adapter
from kdlib.data import Augmentation
from kdlib.methods import Feature, HardLabels, Logit, Relation
from kdlib.recipes import Recipe
from kdlib.teachers import CachedTeacher, Ensemble

KINDS: dict[str, Any] = {
    **{"None": None, "a text": "x", "a dict": {}, "a list": [], "a float": 1.5, "below zero": -1, "NaN": float("nan")},
    **{"an object": object(), "a huge number": 10**30, "a tensor": torch.zeros(2), "a class": int, "a set": {1}},
}
LIBRARY = str(Path(data.__file__).parents[1])
EXPECTED = (ValueError, TypeError, OSError, FloatingPointError, ImportError)


def is_ours(error: BaseException) -> bool:
    """Whether the line that raised it is a raise of kdlib's."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return LIBRARY in frame.filename and (frame.line or "").startswith("raise ")


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (which kind is looked at below)
        call()
    text = str(caught.value)
    assert isinstance(caught.value, EXPECTED), f"{type(caught.value).__name__}: {text}"
    assert is_ours(caught.value), f"by accident: {type(caught.value).__name__}: {text}"
    assert len(text) > 20
    return text


# -------------------- every argument of every call, of every kind that does not belong there

CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "fit": (fit, {"student": net, "data": module}),
    "evaluate": (train.evaluate, {"model": net, "dataset": loader, **CPU}),
    "build": (models.build, {"name": "resnet8", "num_classes": 3}),
    "cache": (CachedTeacher.build, {"model": net, "dataset": lambda: split(0, 12), "progress": False, **CPU}),
    "accuracy": (measure.accuracy, {"logits": torch.randn(4, 3), "labels": torch.arange(4) % 3}),
    "calibration": (measure.calibration_error, {"logits": torch.randn(4, 3), "labels": torch.arange(4) % 3}),
    "macs": (measure.macs, {"model": net, "input_shape": (1, 8, 8)}),
    "latency": (measure.latency, {"model": net, "input_shape": (1, 8, 8), "min_run_time": 0.01}),
    "memory": (measure.peak_memory, {"model": net, "input_shape": (1, 8, 8)}),
    "summary": (measure.summary, {"models": lambda: {"a": net()}, "input_shape": (1, 8, 8)}),
    "mistakes": (
        measure.repeated_mistakes,
        {**{name: torch.randn(4, 3) for name in ("student_logits", "teacher_logits")}, "labels": torch.arange(4) % 3},
    ),
    "temperature": (measure.fit_temperature, {"logits": torch.randn(4, 3), "labels": torch.arange(4) % 3}),
    "networks": (verdict.compare_networks, {"first": [1, 0, 1], "second": [1, 1, 0]}),
    "mcnemar": (verdict.mcnemar, {"first_right": [1, 0, 1], "second_right": [1, 1, 0]}),
    "compare": (verdict.compare, {"method": [0.5, 0.6, 0.7], "baseline": [0.4, 0.5, 0.55]}),
    "table": (verdict.table, {"rows": pd.DataFrame({"method": ["hard"], "seed": [0], "test_accuracy": [0.5]})}),
}
ARGUMENTS = {  # and what is right for each, or harmless
    "fit": {
        **{"student": (), "data": ("None",), "epochs": (), "seed": ("below zero",), "progress": ()},
        **{"resume": (), "task": ()},
        **{"recipe": ("None",), "augmentation": ("None",), "views": ("None", "a huge number"), "adapter": ("None",)},
        **{"method": ("None",), "checkpoint": ("None", "a text"), "checkpoint_every": ("None", "a huge number")},
        **{"test": ("None",), "ema_decay": ("None",), "gradient_accumulation_steps": (), "compile": (), "device": ()},
        **{"precision": (), "other_threads": (), "teacher": ("None", "a class"), "steps_per_epoch": ("None",)},
        "validation": ("None",),
    },
    "evaluate": {
        **{"model": (), "dataset": (), "batch_size": ("None",), "role": ("a text",), "adapter": ("None",), "task": ()},
        "keep_logits": (),
    },
    "build": {"name": (), "num_classes": (), "in_channels": (), "stem": (), "image_size": ()},
    "cache": {
        **{"model": (), "dataset": (), "augmentation": (), "seed": ("below zero",), "views": ("a huge number",)},
        **{"layers": ("a list",), "directory": ("None", "a text"), "half": ("None",), "progress": ()},
        "batch_size": ("None",),
    },
    "accuracy": {"logits": (), "labels": (), "top_k": ()},
    "calibration": {"logits": (), "labels": (), "bins": ()},
    "mistakes": {"student_logits": (), "teacher_logits": (), "labels": ()},
    "temperature": {"logits": (), "labels": ()},
    "networks": {"first": (), "second": (), "confidence": (), "comparisons": (), "better": ()},
    "mcnemar": {"first_right": (), "second_right": ()},
    "macs": {"model": (), "input_shape": ()},
    "latency": {"model": (), "input_shape": (), "batch_size": (), "threads": ("None",)},
    "memory": {"model": (), "input_shape": (), "batch_size": ()},
    "summary": {"models": (), "input_shape": (), "timed": ()},
    "compare": {"method": (), "baseline": (), "confidence": (), "comparisons": (), "better": (), "same_unit": ()},
    "table": {"rows": (), "value": (), "by": (), "pair": (), "baseline": (), "confidence": (), "better": ()},
}  # fmt: skip
MATRIX = [(call, argument) for call, arguments in ARGUMENTS.items() for argument in arguments]


@pytest.mark.parametrize(("call", "argument"), MATRIX)
def test_an_argument_of_another_kind_is_refused_in_a_sentence(call: str, argument: str) -> None:
    function, base = CALLS[call]
    for kind, value in KINDS.items():
        if kind in ARGUMENTS[call][argument] or (call == "table" and argument == "within" and kind == "a list"):
            continue
        made = {name: one() if callable(one) and name != "name" else one for name, one in base.items()}
        try:
            refused(lambda made=made, value=value: function(**{**made, argument: value}))
        except (AssertionError, pytest.fail.Exception) as error:
            raise AssertionError(f"{call}({argument}={kind}): {error}") from error


# -------------------- calls

ROWS = pd.DataFrame([{"method": m, "seed": s, "test_accuracy": 0.5 + s / 10} for m in ("hard", "kd") for s in range(3)])
BYTES = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)


class Nested(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return [[x]]


class Empty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :0] * self.weight


def with_rows(**values: Any) -> pd.DataFrame:
    return ROWS.assign(**values)


API: dict[str, Callable[[], Any]] = {
    "threads that end the process": lambda: measure.latency(net(), (1, 8, 8), threads=10**9),
    "a batch for no memory": lambda: measure.latency(net(), (1, 8, 8), batch_size=10**12),
    "a picture for no memory": lambda: measure.macs(net(), (1, 10**12, 10**12)),
    "a picture below zero": lambda: measure.peak_memory(net(), (1, -8, 8)),
    "an hour and more": lambda: measure.latency(net(), (1, 8, 8), min_run_time=1e9),
    "more bins than memory": lambda: measure.calibration_error(torch.randn(4, 3), torch.arange(4) % 3, bins=10**12),
    "results that are texts": lambda: verdict.compare(["0.9", "0.8"], ["0.7", "0.6"]),
    "results that are missing": lambda: verdict.compare([0.9, None], [0.7, 0.6]),
    "results that are true": lambda: verdict.compare([True, False], [0.7, 0.6]),
    "results that are complex": lambda: verdict.compare([1j, 2j], [0.7, 0.6]),
    "results that are lists": lambda: verdict.compare([[0.9], [0.8]], [0.7, 0.6]),
    "results of text by seed": lambda: verdict.compare({0: "a", 1: "b"}, {0: 0.5, 1: 0.6}),
    "a table of texts": lambda: verdict.table(with_rows(test_accuracy="high")),
    "a table without numbers": lambda: verdict.table(with_rows(test_accuracy=None)),
    "a table of infinities": lambda: verdict.table(with_rows(test_accuracy=np.inf)),
    "a table with one unit too many": lambda: verdict.table(with_rows(test_accuracy=[0.5, 0.6, 0.7, 51.0, 61.0, 72.0])),
    "a confidence in percent": lambda: verdict.compare([0.5, 0.6], [0.4, 0.55], confidence=95),
    "a student that is frozen": lambda: fit(net().requires_grad_(False)),
    "a student without classes": lambda: fit(Empty()),
    "a student of lists": lambda: fit(nn.Sequential(net(), Nested())),
    "a student on no device": lambda: fit(net().to("meta")),
    "a teacher on no device": lambda: fit(net(), teacher=net(1).to("meta")),
    "a teacher of lists": lambda: fit(net(), teacher=nn.Sequential(net(1), Nested())),
    "a teacher of other classes": lambda: fit(net(), module(), teacher=nn.Sequential(net(1), nn.Linear(4, 7))),
    "a teacher of other images": lambda: fit(net(), module(), teacher=nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())),
    "a teacher that gives NaN": lambda: fit(net(), teacher=lambda batch: torch.full((8, 4), torch.nan)),
    "a teacher that gives too few": lambda: fit(net(), teacher=lambda batch: torch.zeros(3, 4)),
    "a checkpoint that is a folder": lambda: fit(net(), checkpoint=Path("/tmp"), resume=True),
    "a rate that is text": lambda: Recipe(learning_rate="fast"),  # type: ignore[arg-type]
    "a momentum that is missing": lambda: Recipe(momentum=None),  # type: ignore[arg-type]
    "a batch that is text": lambda: Recipe(batch_size="128"),  # type: ignore[arg-type]
    "a true batch": lambda: Recipe(batch_size=True),
    "a warm-up that is text": lambda: Recipe(warmup="x"),  # type: ignore[arg-type]
    "a clip that is text": lambda: Recipe(clip="1"),  # type: ignore[arg-type]
    "a clip that is NaN": lambda: Recipe(clip=float("nan")),
    "an optimiser that is a list": lambda: Recipe(optimizer=[]),  # type: ignore[arg-type]
    "a temperature of zero": lambda: Logit(0),
    "a temperature that is text": lambda: Logit("4"),  # type: ignore[arg-type]
    "a temperature that is missing": lambda: Logit(None),  # type: ignore[arg-type]
    "a tiny temperature": lambda: Logit(1e-30),
    "a huge temperature": lambda: Logit(1e30),
    "an alpha that is text": lambda: Logit(alpha="0.1"),  # type: ignore[arg-type]
    "an alpha that is NaN": lambda: Logit(alpha=float("nan")),
    "a loss that is a number": lambda: Logit(loss=3),  # type: ignore[arg-type]
    "a hard loss that is a name": lambda: Logit(hard="mse"),  # type: ignore[arg-type]
    "a smoothing that is text": lambda: HardLabels("x"),  # type: ignore[arg-type]
    "layers that are a list": lambda: Feature(["0"]),  # type: ignore[arg-type]
    "layers that are numbers": lambda: Feature({0: 0}),  # type: ignore[dict-item]
    "layers that are lists": lambda: Relation({"0": ["0"]}),  # type: ignore[dict-item]
    "a weight of text": lambda: HardLabels() + float("nan") * Feature({"0": "0"}),
    "a weight that is infinite": lambda: float("inf") * HardLabels(),
    "members that are names": lambda: Ensemble(["a", "b"]),  # type: ignore[list-item]
    "a probability of text": lambda: Augmentation(flip="yes"),  # type: ignore[arg-type]
    "a crop of text": lambda: Augmentation(scale=("a", "b")),  # type: ignore[arg-type]
    "answers that are text": lambda: CachedTeacher.from_logits([["a", "b"]]),  # type: ignore[arg-type]
    "answers of another kind": lambda: CachedTeacher.from_logits(torch.zeros(3, 2), kind=3),  # type: ignore[arg-type]
    "a dataset that is a number": lambda: data.load(3),  # type: ignore[arg-type]
    "a dataset that is missing": lambda: data.load(None),  # type: ignore[arg-type]
    "a subset of text": lambda: module().subset("all"),  # type: ignore[arg-type]
    "half a subset": lambda: module().subset(1.5),  # type: ignore[arg-type]
    "a class that is text": lambda: module().exclude_class("a"),  # type: ignore[arg-type]
    "a model that is a number": lambda: models.load(3),  # type: ignore[arg-type]
    "a model that is a folder": lambda: models.load("/tmp"),
    "a model that was not built": lambda: models.save(net(), "/tmp/never.safetensors"),
    "layers of no choice": lambda: models.pair_layers(net(), net(), 3),  # type: ignore[arg-type]
    "a job that is text": lambda: distill.distill("resnet18"),  # type: ignore[arg-type]
    "an adapter with a list": lambda: Adapter(inputs=[1]),  # type: ignore[arg-type]
    "labels for regression": lambda: train.evaluate(net(), split(0, 8), task="regression", **CPU),
    "a loss for a split": lambda: train.evaluate(net(), split(0, 8), loss=nn.functional.mse_loss, **CPU),
    "labels of NaN": lambda: fit(net(), DataLoader(TensorDataset(IMAGES, LABELS.float() * float("nan")), 8)),
    "images of NaN": lambda: fit(net(), DataLoader(TensorDataset(IMAGES * float("nan"), LABELS), 8)),
    "images of infinity": lambda: train.evaluate(net(), DataLoader(TensorDataset(IMAGES / 0, LABELS), 8), **CPU),
    "no file": lambda: files.load_tensors("/tmp/there/is/none"),
}


@pytest.mark.parametrize("name", API)
def test_a_bad_call_is_refused_in_a_sentence_of_ours(name: str) -> None:
    refused(API[name])


# -------------------- the command line

D = ["distill", "--student", "resnet8", "--teacher", "resnet20-fashion", "--images", "64", "--epochs", "1", "--quiet"]
T = ["train", "--model", "resnet8", "--images", "64", "--epochs", "1", "--quiet"]
COMMANDS: dict[str, tuple[list[str], str]] = {  # and what the sentence says of it
    "a temperature of nothing": ([*D, "--temperature", "1e-30"], "temperature .* got 1e-30"),
    "a temperature of everything": ([*D, "--temperature", "1e30"], r"temperature .* got 1e\+30"),
    "a temperature that is NaN": ([*D, "--temperature", "nan"], "temperature .* got nan"),
    "an alpha that is infinite": ([*D, "--alpha", "inf"], "alpha .* got inf"),
    "a weight without end": ([*D, "--method", "1e999*hint"], "weight .* got inf"),
    "a weight below zero": ([*D, "--method", "-1*hint"], "weight .* got -1"),
    "a weight of NaN": ([*D, "--method", "nan*hint"], "weight .* got nan"),
    "no method": ([*D, "--method", ""], "no method named ''"),
    "only a plus": ([*D, "--method", "+"], "no method named ''"),
    "a method of 10,000 terms": ([*D, "--method", "+".join(["logitt"] * 10_000)], "no method named 'logitt'"),
    "no teacher": ([*D, "--teacher", ""], "trained model named ''"),
    "a folder as teacher": ([*D, "--teacher", "/tmp"], "trained model named '/tmp'"),
    "a device as teacher": ([*D, "--teacher", "/dev/null"], "/dev/null"),
    "a student that is a folder": ([*D, "--student", "/"], "no model named '/'"),
    "a null byte": ([*D, "--data", b"imagefolder:a\\0b".decode("unicode_escape")], "null"),
    "a name of 10,000 letters": ([*D, "--data", "imagefolder:" + "a" * 10_000], "name too long"),
    "a cache that is a file": ([*D, "--cache", __file__], "test_more_bad_inputs.py"),
    "views without end": ([*D, "--views", str(10**12)], "not enough memory .* fewer views"),
    "more views than bits": ([*D, "--views", str(10**30)], "views .* got 1000"),
    "more images than there are": ([*D, "--images", str(10**12)], "no subset of 1,000,000,000,000"),
    "images below zero": ([*D, "--images", "-5"], "no subset of -5"),
    "a rate of NaN": ([*T, "--learning-rate", "nan"], "learning_rate .* got nan"),
    "a rate without end": ([*T, "--learning-rate", "inf"], "learning_rate .* got inf"),
    "a decay below zero": ([*T, "--weight-decay", "-1"], "weight_decay .* got -1"),
    "a batch without end": ([*T, "--batch-size", "1"], "batch_size .* got 1"),
    "a clip of NaN": ([*T, "--clip", "nan"], "clip .* got nan"),
    "epochs without end": ([*T, "--epochs", str(10**30)], "epochs .* got 1000"),
    "a seed without end": ([*T, "--seed", str(10**30)], "seed .* got 1000"),
    "a smoothing of two": ([*T, "--smoothing", "2"], "smoothing .* got 2"),
    "a start that is text": (["train", *T[3:], "--start", __file__], "is not a readable safetensors file"),
    "an out that is a device": ([*T, "--out", "/dev/null/x"], "/dev/null/x: Not a directory"),
    "a device without number": ([*T, "--device", "cuda:x"], "no device 'cuda:x'"),
    "a device of another world": ([*T, "--device", "meta"], "no device 'meta'"),
    "an evaluation of nothing": (["evaluate", ""], "trained model named ''"),
    "an evaluation of a text": (["evaluate", __file__], "is not a readable safetensors file"),
    "an evaluation on no data": (
        ["evaluate", "resnet20-fashion", "--data", "imagefolder:"],
        "no dataset named 'imagefolder:'",
    ),
    "a teacher of other classes": (
        ["evaluate", "resnet20-fashion", "--teacher", "nothing"],
        "trained model named 'nothing'",
    ),
    "a comparison of one": (["compare", "resnet8-fashion"], "1 student cannot be compared"),
    "a comparison with nothing": (["compare", "resnet8-fashion", "b=nothing"], "trained model named 'nothing'"),
    "a comparison with a folder of nothing": (
        ["compare", "resnet8-fashion", str(Path(__file__).parent)],
        "holds no .safetensors file",
    ),
    "an examination with a teacher of nothing": (["doctor", "--teacher", "nothing"], "trained model named 'nothing'"),
    "an examination of no method": (
        ["doctor", "--teacher", "resnet20-fashion", "--student", "resnet8", "--method", "+"],
        "no method named ''",
    ),
    "a search of no trials": (["search", "--trials", "0"], "trials .* got 0"),
    "a search with a teacher of nothing": (["search", "--teacher", "nothing"], "trained model named 'nothing'"),
    "a search within nothing": (["search", "--search-student", "--max-macs", "1"], "keeps to 1 MACs"),
    "a study of nothing": (["study", "nothing", "--dry"], "no plan of runs named 'nothing'"),
    "a study of no images": (["study", "full", "--images", "0", "--dry"], "images .* got 0"),
    "a row that is not there": (
        ["study", "--again", "/tmp/no-such-file.csv"],
        "There is no file /tmp/no-such-file.csv",
    ),
    "again of a text": (["study", "--again", __file__], "is not a table of finished runs"),
    "choices of a text": (["study", "full", "--choices", __file__, "--dry"], "is not a table of finished runs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_command_ends_in_a_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, text = COMMANDS[name]
    if arguments[0] in ("distill", "train", "search") and "--out" not in arguments:
        arguments = [
            *arguments,
            "--out",
            str(tmp_path / "out"),
            *([] if "--device" in arguments else ["--device", "cpu"]),
        ]
    monkeypatch.setattr(sys, "argv", ["kdlib", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert ended.value.code == 2, shown
    assert "Traceback" not in shown.err
    assert "KDLIB_TRACEBACK" not in shown.err, f"by accident: {shown.err}"
    assert re.search(text, shown.err)
    assert len(shown.err) < 3000


# -------------------- files


def sums(folder: Path, text: bytes) -> None:
    (folder / "SHA256SUMS").write_bytes(text)


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe\x00", b"x" * 64 + b"  ../../etc/passwd\n", b"0" * 64 + b"  \x00\n", b"a b\n" * 1000]
)
def test_check_looks_at_any_list_of_sums(text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums(tmp_path, text)
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    assert not environment.check().ready


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_of_another_kind_is_never_replaced(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    os.mkfifo(place) if kind == "pipe" else place.symlink_to("/dev/null")
    with pytest.raises(OSError, match="device or a pipe"):
        files.write_text(place, "text")
    assert place.is_fifo() or place.is_symlink()
