"""Temperatures beyond reason, files that are no files, and a progress file on a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course import progress_file
from kdlib import environment, losses
from kdlib.methods import Logit
from kdlib.teachers import Ensemble

LABELS = torch.arange(16) % 5
LOSSES = {
    "kd": losses.kd,
    "dkd": lambda s, t, temperature: losses.dkd(s, t, LABELS, temperature),
    "dist": losses.dist,
    "standardized_kd": losses.standardized_kd,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-30, 1e-10, 9e-4, 1001.0, 1e6, 1e10, 1e19, 1e30, 1e300])
def test_a_temperature_that_float32_cannot_bear_is_refused(name: str, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 16, 5, generator=generator)
    with pytest.raises(ValueError, match=r"temperature.*0\.001.*1000"):
        LOSSES[name](student, teacher, temperature=temperature)
    with pytest.raises(ValueError, match=r"temperature.*0\.001.*1000"):
        Logit(temperature, loss=name)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 1, 100, 1000])
def test_a_temperature_that_is_allowed_is_right_to_a_percent(name: str, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 16, 5, generator=generator)
    found, exact = student.clone().requires_grad_(), student.double().requires_grad_()
    value = LOSSES[name](found, teacher, temperature=temperature)
    wanted = LOSSES[name](exact, teacher.double(), temperature=temperature)
    value.backward()
    wanted.backward()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-2)
    assert found.grad is not None
    assert exact.grad is not None
    assert torch.isfinite(found.grad).all()
    assert (found.grad - exact.grad).norm() <= 1e-2 * exact.grad.norm() + 1e-8


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e30, 1e300])
def test_softening_and_ensembles_refuse_what_overflows(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        losses.soften(torch.randn(2, 3), temperature)
    with pytest.raises(ValueError, match="temperatures"):
        Ensemble([torch.nn.Flatten()], temperatures=[temperature])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("which", ["a model", "the sums"])
def test_check_does_not_wait_for_a_pipe(which: str, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  pipe.safetensors\n")
    if which == "the sums":
        (tmp_path / "SHA256SUMS").unlink()
    os.mkfifo(tmp_path / ("pipe.safetensors" if which == "a model" else "SHA256SUMS"))
    ran = subprocess.run(
        [sys.executable, "-m", "kdlib", "check"],
        env={**os.environ, "KDLIB_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert "no regular file" in ran.stdout
    assert ran.stderr == ""


def test_check_names_what_is_no_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  folder\n")
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    assert "no regular file" in next(one.found for one in environment.check().checks if one.name == "folder")


@pytest.mark.parametrize("device", ["/dev/full", "/dev/null"])
def test_a_device_is_no_progress_file_and_stays_as_it_is(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path(device).exists():
        pytest.skip("There is no such device here.")
    place = tmp_path / "device"
    place.symlink_to(device)  # root may replace what lies in /dev, and a test that fails must not
    monkeypatch.setenv("KDLIB_PROGRESS", str(place))
    entries, problem = progress_file.read()
    assert entries == {}
    assert "cannot be read" in problem
    assert "could not be saved" in progress_file.save("04", "soften", "done")
    assert place.is_symlink()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_is_no_progress_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code = "from course import progress_file as p; print(p.read()[0], p.save('04', 'soften', 'done'))"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KDLIB_PROGRESS": str(tmp_path / "pipe")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "could not be saved" in ran.stdout
    assert (tmp_path / "pipe").is_fifo()


def test_a_progress_file_that_cannot_be_written_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "progress.json"
    path.write_text(json.dumps({"exercises": {"01.a": "done"}}))
    monkeypatch.setenv("KDLIB_PROGRESS", str(path))
    assert progress_file.save("04", "soften", "done") == ""
    assert progress_file.read()[0] == {"01.a": "done", "04.soften": "done"}
