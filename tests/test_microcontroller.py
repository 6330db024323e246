"""What a network needs and does on a Cortex-M4: the answers of this machine, to the bit, with exact counts."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from kdlib import microcontroller, models
from kdlib.cli import app
from kdlib.export.c_code import load_c, to_c, zig
from kdlib.microcontroller import CortexM4, DeviceReport, Program, run_on_cortex_m4

pytest.importorskip("ziglang")
unicorn = pytest.importorskip("unicorn")


def pictures(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def labels(count: int) -> Tensor:
    return torch.arange(count) % 3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-8 for images of 12 x 12, with strides, additions, batch norm and three classes."""
    model = models.build("resnet8", num_classes=3, in_channels=1, seed=0)
    return to_c(model, tmp_path_factory.mktemp("c") / "net.c", pictures(16, 1, 12, 12))


@pytest.fixture(scope="module")
def report(small: Path) -> DeviceReport:
    return run_on_cortex_m4(small, pictures(4, 1, 12, 12), labels(4))


@pytest.mark.slow
def test_the_microcontroller_gives_the_answers_of_this_machine_to_the_bit(small: Path, report: DeviceReport) -> None:
    answers = load_c(small)(pictures(4, 1, 12, 12)).argmax(1)
    assert report.equal_to_host == 1
    assert report.images == 4
    assert report.accuracy == (answers == labels(4)).double().mean()


@pytest.mark.slow
def test_bytes_and_instructions_have_the_size_of_the_work(small: Path, report: DeviceReport) -> None:
    weights = sum(p.numel() for n, p in models.build("resnet8", num_classes=3, in_channels=1).named_parameters())
    assert weights < report.flash_bytes < 1.25 * weights
    assert report.arena_bytes == load_c(small).constants.arena_bytes
    assert 3 * 16 * 12 * 12 <= report.arena_bytes < 3 * 16 * 12 * 12 + 1000  # three maps of 16 channels live at once
    assert 0 <= report.static_bytes < 16
    assert report.caller_bytes == 12 * 12 + 4 * 3
    assert 50 < report.stack_bytes < 2000
    assert report.ram_bytes == report.arena_bytes + report.static_bytes + report.caller_bytes + report.stack_bytes
    macs = 1_715_008
    assert 2 * macs < report.fewest_instructions <= report.instructions <= report.most_instructions < 6 * macs
    assert report.fits()
    assert report.fits(flash=report.flash_bytes, ram=report.ram_bytes)
    assert not report.fits(flash=report.flash_bytes - 1)
    assert not report.fits(ram=report.ram_bytes - 1)


@pytest.mark.slow
def test_a_wrong_answer_of_the_microcontroller_would_be_seen(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program is changed after the compiler: one byte among the constants, which stand behind the code."""
    build = microcontroller.build

    def damaged(*arguments: Any) -> Program:
        program = build(*arguments)
        (flash, content), *others = program.segments
        wrong = bytearray(content)
        middle = len(wrong) // 2
        wrong[middle : middle + 64] = bytes(64)
        return dataclasses.replace(program, segments=((flash, bytes(wrong)), *others))

    monkeypatch.setattr(microcontroller, "build", damaged)
    assert run_on_cortex_m4(small, pictures(2, 1, 12, 12), labels(2)).equal_to_host < 1


COUNTED = """\
#define KDLIB_NETWORK 1
#define IMAGE_HEIGHT 1
#define IMAGE_WIDTH 1
#define IMAGE_CHANNELS 1
#define IMAGE_SCALE 1.0
#define IMAGE_ZERO 0
#define CLASSES 1
#define LOGITS_SCALE 1.0
#define ARENA_BYTES 0
#include <stdint.h>
int self_check(void) {{ return 0; }}
#ifdef __arm__
__attribute__((naked)) void predict(const int8_t *image, int32_t *logits) {{ __asm__({assembly}); }}
#else
void predict(const int8_t *image, int32_t *logits) {{ *logits = 7; }}
#endif
"""


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 1000, 49_996, 49_997, 1_234_567])
def test_instructions_are_counted_exactly(rounds: int, tmp_path: Path) -> None:
    """A loop of two instructions and eight others, and one that is skipped because its condition is false."""
    lines = [f"ldr r2, ={rounds}", "1: subs r2, #1", "bne 1b", "movs r0, #7", "str r0, [r1]"]
    lines += ["cmp r0, #8", "it eq", "streq r0, [r0]", "push {r0-r5}", "add sp, #24", "bx lr", ".ltorg"]
    path = tmp_path / "net.c"
    path.write_text(COUNTED.format(assembly='"' + "\\n".join(lines) + '"'))
    report = run_on_cortex_m4(path, torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long))
    assert report.instructions == 2 * rounds + 8
    assert report.equal_to_host == 1  # the seven
    assert report.stack_bytes == 24  # six registers of four bytes


@pytest.mark.slow
def test_of_a_networks_instructions_at_most_one_a_step_is_missed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a count of every single instruction by a callback, which would take minutes for a large network."""
    program, host = microcontroller.build(file, zig()), load_c(file)
    image = torch.randint(-128, 128, (28, 28, 1), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    by_steps = {}
    for step in (1_000, 100_000):
        monkeypatch.setattr(microcontroller, "STEP", step)
        by_steps[step] = CortexM4(program, host).predict(image)[1]
    single: list[int] = []
    machine = CortexM4(program, host)
    machine._cpu.hook_add(unicorn.UC_HOOK_CODE, lambda *_: single.append(1))
    monkeypatch.setattr(machine, "_count", lambda: machine._ends_within(10**8))
    machine.predict(image)
    for step, counted in by_steps.items():
        assert 0 <= len(single) - counted <= 1 + len(single) / step
    assert len(single) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("assembly", "words"),
    [
        ('"movs r0, #0\\nmvns r0, r0\\nldr r0, [r0]\\nbx lr"', "stopped"),  # reads where there is no memory
        ('"sub sp, #65536\\nsub sp, #65536\\npush {r0}\\nbx lr"', "stopped"),  # a stack without end
        ('"movs r0, #0\\nstr r0, [r0]\\nbx lr"', "stopped"),  # writes into the flash
        ('"no such instruction"', "could not be compiled"),
    ],
)
def test_programs_that_a_board_could_not_run_are_refused(assembly: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "net.c").write_text(COUNTED.format(assembly=assembly))
    with pytest.raises(ValueError, match=words) as caught:
        run_on_cortex_m4(tmp_path / "net.c", torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_code_that_the_board_cannot_have_is_not_run_on_this_machine_either(tmp_path: Path) -> None:
    """Its self-check, which runs as soon as the file is loaded, would write a file by the operating system."""
    mark = tmp_path / "written"
    code = COUNTED.format(assembly='"bx lr"').replace(
        "int self_check(void) { return 0; }",
        f'#include <stdio.h>\nint self_check(void) {{ fclose(fopen("{mark.as_posix()}", "w")); return 0; }}',
    )
    (tmp_path / "net.c").write_text(code)
    with pytest.raises(ValueError, match="could not be compiled"):
        run_on_cortex_m4(tmp_path / "net.c", torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long))
    assert not mark.exists()


@pytest.mark.slow
def test_plain_cores_compute_the_same(small: Path, report: DeviceReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Cortex-M3 has no instructions for two products at once: the same answers, with more instructions."""
    options = tuple(option.replace("cortex_m4", "cortex_m3") for option in microcontroller.FOR_CORTEX_M4)
    monkeypatch.setattr(microcontroller, "FOR_CORTEX_M4", options)
    plain = run_on_cortex_m4(small, pictures(4, 1, 12, 12), labels(4))
    assert plain.equal_to_host == 1
    assert plain.instructions > 1.1 * report.instructions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "classes", "error", "words"),
    [
        (pictures(2, 1, 12, 12), torch.zeros(3, dtype=torch.long), ValueError, "one class number for each"),
        (pictures(2, 1, 12, 12), torch.zeros(2), ValueError, "float32"),
        (pictures(0, 1, 12, 12), torch.zeros(0, dtype=torch.long), ValueError, "at least one image"),
        (pictures(2, 1, 12, 12), torch.tensor([0, 3]), ValueError, "classes 0 to 2"),
        (pictures(2, 1, 12, 12), torch.tensor([-1, 0]), ValueError, "from -1 to 0"),
        (pictures(2, 1, 12, 12), [0, 1], TypeError, "labels"),
        ([1.0], torch.tensor([0]), TypeError, "images"),
        (pictures(2, 1, 13, 12), torch.tensor([0, 1]), ValueError, r"\(1, 12, 12\)"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(
    images: Any, classes: Any, error: type, words: str, small: Path
) -> None:
    with pytest.raises(error, match=words):
        run_on_cortex_m4(small, images, classes)


@pytest.mark.parametrize("package", ["unicorn", "ziglang"])
def test_a_missing_package_is_named_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "kdlib\[device\]"'):
        run_on_cortex_m4("net.c", pictures(1, 1, 2, 2), labels(1))


# --- the command


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network for the images of Fashion-MNIST."""
    model = nn.Sequential(nn.Conv2d(1, 2, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    return to_c(model, tmp_path_factory.mktemp("c") / "net.c", pictures(8, 1, 28, 28))


@pytest.mark.slow
def test_the_command_prints_the_report_and_whether_it_fits(file: Path) -> None:
    result = CliRunner().invoke(app, ["device", str(file), "--images", "3", "--flash", "262144", "--ram", "500"])
    assert result.exit_code == 0, result.output
    assert "of 3 images" in result.output
    assert "100.00% of the images, to the bit" in result.output
    assert "Instructions are not cycles" in result.output
    assert "The network fits into 262,144 bytes of flash" in result.output
    assert "does not fit into 500 bytes of RAM" in result.output


@pytest.mark.slow
def test_the_command_prints_json(file: Path) -> None:
    result = CliRunner().invoke(app, ["device", str(file), "--images", "2", "--flash", "10", "--json"])
    values = json.loads(result.output.splitlines()[-1])
    assert values["fits"] is False
    assert values["images"] == 2
    assert values["ram_bytes"] > values["arena_bytes"] > 0
