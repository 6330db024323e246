"""Two processes under torchrun train what one trains; one that dies ends the job, and the run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from two_processes import METHODS, fit_all, fit_the_half_used

from kdlib import distributed, train
from kdlib.files import load_tensors

HERE = Path(__file__).parent
SCRIPT = str(HERE / "two_processes.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="torchrun on Windows has no gloo by default"),
]


def torchrun(*command: str, processes: int = 2) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    full = [sys.executable, *launcher, *command]
    return subprocess.run(full, capture_output=True, text=True, env=environment, timeout=300)


def train_by_two(folder: Path) -> None:
    done = torchrun(SCRIPT, "methods", str(folder))
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(made_once: Callable[..., Path]) -> dict[str, Path]:
    """The students of one process and those of two, from the same call."""
    return {"two": made_once("trained-by-two", train_by_two), "one": made_once("trained-by-one", fit_all)}


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_the_student_of_one(trained: dict[str, Path], name: str) -> None:
    (one, one_facts), (two, two_facts) = (
        load_tensors(trained[count] / f"{name}.safetensors") for count in ("one", "two")
    )
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5)
    for a, b in zip(one_facts["rows"], two_facts["rows"], strict=True):
        assert {**a, "seconds": 0} == pytest.approx({**b, "seconds": 0}, abs=1e-4)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux names the threads of a process")
@pytest.mark.parametrize("rank", [0, 1])
def test_no_thread_of_gloo_outlives_the_work(trained: dict[str, Path], rank: int) -> None:
    threads = json.loads((trained["two"] / f"process-{rank}.json").read_text())
    assert threads["inside"]
    assert threads["after"] == []  # one that is left can abort the process when the interpreter ends


def test_a_process_that_dies_ends_the_job_and_the_run_goes_on_to_the_bit(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    whole, killed = trained["two"], tmp_path
    dead = torchrun(SCRIPT, "dies", str(killed))
    assert dead.returncode != 0
    assert "SIGKILL" in dead.stderr or "exitcode  : -9" in dead.stderr
    assert not (killed / "student.safetensors").exists()
    _, metadata = load_tensors(killed / "checkpoint")
    assert metadata["facts"]["step"] == 7  # it died in the eighth step; every second one of an epoch of five is written
    assert torchrun(SCRIPT, "whole", str(killed)).returncode == 0
    expected, _ = load_tensors(whole / "student.safetensors")
    resumed, _ = load_tensors(killed / "student.safetensors")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_that_only_some_processes_see_is_refused(trained: dict[str, Path], rank: int) -> None:
    refusal = json.loads((trained["two"] / f"process-{rank}.json").read_text())["refusal"]
    assert "1 of 2 processes see the checkpoint" in refusal
    assert "a disk that all of them share" in refusal


def test_a_dataset_is_shared_and_a_plain_loader_refused(trained: dict[str, Path]) -> None:
    facts = [json.loads((trained["two"] / f"process-{rank}.json").read_text())["dataset"] for rank in (0, 1)]
    assert all(facts[0][name] == facts[1][name] for name in facts[0] if name != "orders")
    assert facts[0]["loss"] < 2
    assert "Every process would train on the same batches" in facts[0]["refused"]


def test_the_seed_orders_a_shared_dataset(trained: dict[str, Path]) -> None:
    orders = json.loads((trained["two"] / "process-0.json").read_text())["dataset"]["orders"]
    assert sorted(orders[0]) != sorted(orders[1])  # another half of the samples


def test_averaged_weights_and_statistics_are_those_of_one_network(trained: dict[str, Path]) -> None:
    facts = [json.loads((trained["two"] / f"process-{rank}.json").read_text())["dataset"] for rank in (0, 1)]
    assert facts[0]["averaged"] == facts[1]["averaged"]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_layer_that_nothing_looks_at_is_no_hindrance(trained: dict[str, Path], steps: int) -> None:
    facts = [json.loads((trained["two"] / f"process-{rank}.json").read_text())["dataset"] for rank in (0, 1)]
    assert facts[0]["half used"] == facts[1]["half used"]
    for name, value in fit_the_half_used(steps).items():
        torch.testing.assert_close(
            torch.tensor(facts[0]["half used"][str(steps)][name]), torch.tensor(value), rtol=0, atol=1e-6
        )


def test_values_are_added_up_by_name(trained: dict[str, Path]) -> None:
    facts = json.loads((trained["two"] / "process-0.json").read_text())["dataset"]
    assert facts["sums"] == {"a": 1, "b": 7, "c": 3}


def test_the_command_line_prints_and_writes_once(tmp_path: Path) -> None:
    options = ["--teacher", "resnet8-fashion", "--student", "article-student", "--images", "128", "--epochs", "1"]
    options += ["--views", "1", "--batch-size", "64"]
    done = torchrun(SCRIPT, "command", "distill", *options, "--out", str(tmp_path), "--quiet", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1
    report = json.loads(done.stdout.splitlines()[-1])
    assert 0 <= report["student_accuracy"] <= 1
    assert {path.name for path in tmp_path.iterdir()} >= {"student.safetensors", "history.csv", "report.json"}


def test_batches_that_cannot_be_shared_are_refused_with_advice(tmp_path: Path) -> None:
    command = ["-m", "kdlib", "train", "--model", "resnet8", "--images", "100", "--batch-size", "33"]
    done = torchrun(*command, "--out", str(tmp_path), "--quiet")
    assert done.returncode != 0
    assert "2 processes cannot share batches of 33 images equally" in done.stderr
    assert "Traceback" not in done.stderr.partition("kdlib (process")[0]


def test_fewer_gpus_than_processes_are_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ValueError, match=r"--nproc-per-node=1, or set CUDA_VISIBLE_DEVICES="),
        distributed.process_group(),
    ):
        pass


def test_processes_that_train_each_by_itself_are_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    network = torch.nn.Linear(2, 2)
    batches = [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))]
    with pytest.warns(UserWarning, match=r"started 2 processes, and this one trains by itself.*process_group\(\)"):
        train.fit(network, batches, epochs=1, device="cpu", progress=False)


def test_a_process_of_its_own_needs_nothing() -> None:
    with distributed.process_group():
        assert (distributed.world_size(), distributed.rank()) == (1, 0)
        assert distributed.shard(7) == slice(0, 7)
        positions = torch.arange(8)
        assert torch.equal(distributed.shard_batches(positions, 4), positions)
        assert distributed.all_reduce_values({"a": 1.5}) == {"a": 1.5}
