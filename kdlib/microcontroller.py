"""A network's C file on a microcontroller, without one: compiled for a Cortex-M4 by zig, emulated by Unicorn.

run_on_cortex_m4("net.c", images, labels)

Bytes and instructions are those of a real board with this compiler; its start-up code, some hundred bytes, is not in
them. Time is not measured: instructions are not cycles, because a board waits for its flash, loads may take two
cycles and there may be a cache.
"""

from __future__ import annotations

import dataclasses
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlib.errors import check_kind
from kdlib.export.c_code import KERNELS, CNetwork, compile_c, load_c, read_constants, zig

FOLDER = KERNELS.parent
# No floating-point unit is asked for: the code has no floating-point numbers.
FOR_CORTEX_M4 = ("-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4", "-O2", "-ffreestanding", "-nostdlib")
LINKED = ("-T", str(FOLDER / "cortex_m4.ld"), "-Wl,-e,predict")
RAM, STACK, RETURN = 0x20000000, 0x40000000, 0x18000000  # addresses; predict returns to the last
STACK_BYTES = 1 << 14
PAINT = b"\xa5"
PAGE = 1 << 12
STEP = 100_000  # instructions between two looks at where the program is
LOAD = 1  # a segment of an ELF file that is loaded into memory


@dataclasses.dataclass(frozen=True)
class DeviceReport:
    """What a network needs and does on a Cortex-M4; bytes, and instructions for one image.

    arena_bytes: all values of the network. static_bytes: what the program keeps in RAM beside it. caller_bytes: the
    image and the logits. stack_bytes: the deepest that was reached on these images. instructions: the mean, the fewest
    and the most of the images, exact to one in 100,000 (`CortexM4.predict` says what is counted). equal_to_host: share
    of the images whose logits are those of this machine to the bit. seconds: of emulation, which say nothing of a
    board.
    """

    images: int
    flash_bytes: int
    arena_bytes: int
    static_bytes: int
    caller_bytes: int
    stack_bytes: int
    instructions: float
    fewest_instructions: int
    most_instructions: int
    accuracy: float
    equal_to_host: float
    seconds: float

    @property
    def ram_bytes(self) -> int:
        """All RAM: arena, static data, image, logits and stack."""
        return self.arena_bytes + self.static_bytes + self.caller_bytes + self.stack_bytes

    def fits(self, flash: int | None = None, ram: int | None = None) -> bool:
        """Whether a board with these bytes holds the network; None: as much as is needed."""
        return (flash is None or self.flash_bytes <= flash) and (ram is None or self.ram_bytes <= ram)

    def to_dict(self) -> dict[str, Any]:
        """The fields and ram_bytes as a dict."""
        return {**dataclasses.asdict(self), "ram_bytes": self.ram_bytes}

    def __str__(self) -> str:
        parts = f"arena {self.arena_bytes:,}, static {self.static_bytes:,}, image and logits {self.caller_bytes:,}"
        spread = f" ({self.fewest_instructions:,} to {self.most_instructions:,})"
        return "\n".join(
            [
                f"flash          {self.flash_bytes:,} bytes",
                f"RAM            {self.ram_bytes:,} bytes: {parts}, stack {self.stack_bytes:,}",
                f"instructions   {self.instructions:,.0f} an image{spread}",
                f"accuracy       {self.accuracy:.2%} of {self.images} images",
                f"equal to host  {self.equal_to_host:.2%} of the images, to the bit",
                f"emulation      {self.seconds:.1f} s",
                "Instructions are not cycles: a board waits for its flash and for loads. Measure times on the board.",
            ]
        )


def run_on_cortex_m4(path: str | Path, images: Tensor, labels: Tensor) -> DeviceReport:
    """Compile a file of `kdlib.export.c_code.to_c` for a Cortex-M4 and run it there, emulated, image by image.

    For the comparison it is compiled and run on this machine, too: give no file of a stranger.
    images: normalised, N x C x H x W. labels: N class numbers. Takes about 1.5 s for 100 million instructions.
    Raises ImportError without the extra `device`, FileNotFoundError, TypeError or ValueError for a file, images or
    labels that do not fit, and as `load_c` for a file that was changed.
    """
    _require_unicorn()
    compiler = zig()
    _check_labels(images, labels)
    read_constants(path)  # refuses what is no network before a compiler complains of it
    program = build(path, compiler)  # first: without an operating system to call, it refuses most other programs
    host = load_c(path)
    inputs = host.quantize(images)
    _check_classes(labels, host.constants.classes)
    expected = host.integer_logits(inputs)
    machine = CortexM4(program, host)
    start = time.perf_counter()
    runs = [machine.predict(image) for image in inputs]
    seconds = time.perf_counter() - start
    logits = torch.stack([logits for logits, _ in runs])
    counts = [count for _, count in runs]
    return DeviceReport(
        images=len(images),
        flash_bytes=program.flash_bytes,
        arena_bytes=host.constants.arena_bytes,
        static_bytes=program.ram_bytes - host.constants.arena_bytes,
        caller_bytes=inputs[0].numel() + 4 * host.constants.classes,
        stack_bytes=machine.stack_bytes,
        instructions=sum(counts) / len(counts),
        fewest_instructions=min(counts),
        most_instructions=max(counts),
        accuracy=(logits.argmax(1) == labels.cpu()).double().mean().item(),
        equal_to_host=(logits == expected).all(1).double().mean().item(),
        seconds=seconds,
    )


def _require_unicorn() -> None:
    try:
        import unicorn  # noqa: F401
    except ImportError as error:
        raise ImportError('The emulator unicorn is missing. Run: pip install "kdlib[device]".') from error


def _check_labels(images: Any, labels: Any) -> None:
    check_kind("a tensor of normalised images N x C x H x W", Tensor, images=images)
    check_kind("a tensor of class numbers", Tensor, labels=labels)
    if labels.is_floating_point() or labels.shape != images.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"labels are one class number for each of at least one image; got {tuple(labels.shape)}, {labels.dtype}, "
            f"for images of {tuple(images.shape)}."
        )


def _check_classes(labels: Tensor, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"The file has the classes 0 to {classes - 1}; the labels run from {labels.min()} to {labels.max()}."
        )


@dataclasses.dataclass(frozen=True)
class Program:
    """A linked program: what is loaded where, (address, bytes), and the bytes it needs; entry: of `predict`."""

    segments: tuple[tuple[int, bytes], ...]
    entry: int
    flash_bytes: int
    ram_bytes: int


def build(path: str | Path, compiler: Sequence[str]) -> Program:
    """Compile and link a C file for a Cortex-M4, `predict` being its entry; ValueError if the compiler refuses it."""
    with tempfile.TemporaryDirectory(prefix="kdlib-") as folder:
        output = Path(folder) / "network.elf"
        compile_c([Path(path), FOLDER / "memory.c"], output, [*compiler, *FOR_CORTEX_M4, *LINKED])
        return _read_elf(output.read_bytes())


def _read_elf(content: bytes) -> Program:
    """The segments of a 32-bit little-endian ELF file."""
    entry, table = struct.unpack_from("<II", content, 24)
    size, count = struct.unpack_from("<HH", content, 42)
    segments, flash, ram = [], 0, 0
    for number in range(count):
        kind, offset, address, _, in_file, in_memory = struct.unpack_from("<6I", content, table + number * size)
        if kind != LOAD:
            continue
        segments.append((address, content[offset : offset + in_file]))
        flash += in_file  # data that has a first value is kept in flash too
        ram += in_memory if address >= RAM else 0
    return Program(tuple(segments), entry, flash, ram)


class CortexM4:
    """A Cortex-M4 with a program in its flash."""

    def __init__(self, program: Program, host: CNetwork) -> None:
        import unicorn
        from unicorn import arm_const as arm

        self._program, self._arm, self._error = program, arm, unicorn.UcError
        self._classes = host.constants.classes
        channels, height, width = host.constants.shape
        self._image = RAM + _up(program.ram_bytes, 8)
        self._logits = _up(self._image + channels * height * width, 8)
        self._ram_bytes = _up(self._logits + 4 * self._classes - RAM, PAGE)
        self._cpu = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        self._cpu.ctl_set_cpu_model(arm.UC_CPU_ARM_CORTEX_M4)
        self._cpu.mem_map(0, _up(program.flash_bytes, PAGE), unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        self._cpu.mem_map(RETURN, PAGE)
        self._cpu.mem_map(RAM, self._ram_bytes)
        self._cpu.mem_map(STACK - STACK_BYTES, STACK_BYTES)
        for address, content in program.segments:
            self._cpu.mem_write(address, content)
        self._cpu.mem_write(STACK - STACK_BYTES, PAINT * STACK_BYTES)

    def predict(self, image: Tensor) -> tuple[Tensor, int]:
        """The int32 logits of an int8 image H x W x C, and the number of instructions that it took.

        An instruction that is skipped because its condition is false does not count, though a board takes a cycle for
        it. Unicorn sometimes (measured: at 2 or 3 of 100 stops) runs one instruction more than it was asked for, so
        that one in `STEP` may be missing; in code without conditional instructions none is.
        """
        arm, cpu = self._arm, self._cpu
        cpu.mem_write(self._image, image.contiguous().numpy().tobytes())
        registers = {"R0": self._image, "R1": self._logits, "SP": STACK, "LR": RETURN | 1, "PC": self._program.entry}
        for name, value in registers.items():
            cpu.reg_write(getattr(arm, f"UC_ARM_REG_{name}"), value)
        count = self._count()
        logits = struct.unpack(f"<{self._classes}i", cpu.mem_read(self._logits, 4 * self._classes))
        return torch.tensor(logits, dtype=torch.int32), count

    @property
    def stack_bytes(self) -> int:
        """The bytes of the stack that no longer have the paint they had at the start."""
        stack = bytes(self._cpu.mem_read(STACK - STACK_BYTES, STACK_BYTES))
        return len(stack.lstrip(PAINT))

    def _count(self) -> int:
        """Run until `predict` returns, and count the instructions: whole steps, and of the last one a bisection.

        Unicorn stops after a given number of instructions, but does not say how many there were when a program ended
        before.
        """
        counted = 0
        while True:
            before = self._save()
            if self._ends_within(STEP):
                break
            counted += STEP
        after = self._save()
        too_few, enough = 0, STEP
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            self._restore(before)
            if self._ends_within(middle):
                enough = middle
            else:
                too_few = middle
        self._restore(after)
        return counted + enough

    def _ends_within(self, count: int) -> bool:
        pc = self._arm.UC_ARM_REG_PC
        try:
            # Never without a count: code that was translated for a run without one is not counted afterwards.
            self._cpu.emu_start(self._cpu.reg_read(pc) | 1, RETURN, count=count)
        except self._error as error:
            raise ValueError(f"The program stopped on the Cortex-M4 before its end: {error}. Write it anew.") from error
        return self._cpu.reg_read(pc) & ~1 == RETURN

    def _save(self) -> tuple[Any, bytes, bytes]:
        stack = self._cpu.mem_read(STACK - STACK_BYTES, STACK_BYTES)
        return self._cpu.context_save(), bytes(self._cpu.mem_read(RAM, self._ram_bytes)), bytes(stack)

    def _restore(self, state: tuple[Any, bytes, bytes]) -> None:
        context, ram, stack = state
        self._cpu.context_restore(context)
        self._cpu.mem_write(RAM, ram)
        self._cpu.mem_write(STACK - STACK_BYTES, stack)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
