"""A network as one C file without libraries, memory allocation or floating-point arithmetic, and back.

to_c(model, "net.c", calibration)
logits = load_c("net.c")(images)

The file's first lines say how it is called; `kdlib.export.integer` is its twin in PyTorch, equal to the bit.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.errors import check_path
from kdlib.export.arena import Lifetime, plan
from kdlib.export.integer import IntegerNetwork, Quantization, Step, quantize
from kdlib.files import write_text

KERNELS = Path(__file__).with_name("kernels.c")
FORMAT = 1
LINE = 110  # characters
CHECKED_IMAGES = 4

HEAD = """\
/* A neural network in whole numbers, written by kdlib: C99 without libraries, allocation or floating-point numbers.

   void predict(const int8_t *image, int32_t *logits);

   image: IMAGE_HEIGHT x IMAGE_WIDTH x IMAGE_CHANNELS numbers, the channels of a pixel side by side; a normalised pixel
   v is the nearest whole number to v / IMAGE_SCALE + IMAGE_ZERO, clipped to -128 .. 127.
   logits: CLASSES numbers, the largest of which names the class; times LOGITS_SCALE they are the network's logits.
   One call at a time: all values lie in one static arena. Neither pointer may point into it.

   With -DKDLIB_SELF_CHECK there is also int self_check(void), 0 if the weights are those that were written and
   the answers to {images} made-up images are those that were computed when the file was written. */

#include <stdint.h>

#define KDLIB_NETWORK {format}
#define IMAGE_HEIGHT {height}
#define IMAGE_WIDTH {width}
#define IMAGE_CHANNELS {channels}
#define IMAGE_SCALE {image_scale!r}
#define IMAGE_ZERO {image_zero}
#define CLASSES {classes}
#define LOGITS_SCALE {logits_scale!r}
#define ARENA_BYTES {arena}

void predict(const int8_t *image, int32_t *logits);
"""

CHECK = """\
#ifdef KDLIB_SELF_CHECK
int self_check(void);
int self_check(void) {{
    static const int32_t expected[{images} * CLASSES] = {{
{expected}
    }};
    static int8_t image[IMAGE_HEIGHT * IMAGE_WIDTH * IMAGE_CHANNELS];
    static int32_t logits[CLASSES];
    uint32_t sum = 0, state = 1;
    int wrong = 0;
{sums}
    wrong += sum != {checksum}u;
    for (int n = 0; n < {images}; n++) {{
        for (int i = 0; i < IMAGE_HEIGHT * IMAGE_WIDTH * IMAGE_CHANNELS; i++) {{
            state = state * 1664525u + 1013904223u;
            image[i] = (int8_t)((int)(state >> 24) - 128);
        }}
        predict(image, logits);
        for (int k = 0; k < CLASSES; k++) wrong += logits[k] != expected[n * CLASSES + k];
    }}
    return wrong;
}}
#endif
"""


def to_c(model: nn.Module, path: str | Path, calibration: Tensor) -> Path:
    """Write a network as one C file, quantized to int8, and return its path.

    model: convolutions, batch norm, ReLU, additions, poolings and linear layers (`layers.SUPPORTED`), traceable by
    torch.fx, with one image as input and N x classes logits as output; it is copied, not changed.
    path: its ending is .c. calibration: normalised images N x C x H x W, some hundreds of the training images, from
    which the ranges of all values are taken.
    Raises TypeError or ValueError, naming the layer, for a network that cannot be written, OSError if the file cannot.
    """
    check_path(path=path)
    path = Path(path)
    if path.suffix != ".c":
        raise ValueError(f"path names a C file, with the ending .c; got {str(path)!r}.")
    return write(quantize(model, calibration), path)


def write(network: IntegerNetwork, path: Path) -> Path:
    """Write an integer network as one C file, completely or not at all."""
    write_text(path, source(network))
    return path


def lifetimes(network: IntegerNetwork) -> dict[str, Lifetime]:
    """When each value of the arena is needed: from the step that writes it to the last that reads it.

    A convolution's working space, "patch N", is needed in step N alone. The image and the logits are the caller's.
    """
    buffers: dict[str, Lifetime] = {}
    for number, step in enumerate(network.steps):
        for name in step.inputs:
            if name != network.image:
                buffers[name] = Lifetime(buffers[name].size, buffers[name].first, number)
        if step.kind != "linear":
            is_read_afterwards = step.output == network.logits
            last = len(network.steps) if is_read_afterwards else number
            buffers[step.output] = Lifetime(torch.Size(network.shapes[step.output]).numel(), number, last)
        if step.kind == "convolution":
            buffers[f"patch {number}"] = Lifetime(step.weight[0].numel(), number, number)
    return buffers


def source(network: IntegerNetwork) -> str:
    """The text of the C file."""
    offsets, arena = plan(lifetimes(network))
    channels, height, width = network.shapes[network.image]
    image = network.quantizations[network.image]
    head = HEAD.format(
        format=FORMAT,
        images=CHECKED_IMAGES,
        height=height,
        width=width,
        channels=channels,
        image_scale=image.scale,
        image_zero=image.zero,
        classes=network.shapes[network.logits][0],
        logits_scale=network.logits_scale,
        arena=arena,
    )
    tables = [_tables(network, number, step) for number, step in enumerate(network.steps)]
    return "\n".join([head, KERNELS.read_text(encoding="utf-8"), *tables, _predict(network, offsets), _check(network)])


def _tables(network: IntegerNetwork, number: int, step: Step) -> str:
    """The constants of one step."""
    channels, height, width = network.shapes[step.inputs[0]]
    out_channels, out_height, out_width = network.shapes[step.output]
    window = step.window
    zeros = [0 if step.kind == "linear" else network.quantizations[step.output].zero]
    fields = [
        *(height, width, channels, out_height, out_width, out_channels),
        *(*window.kernel, *window.stride, *window.padding, *window.dilation),
        *(network.quantizations[step.inputs[0]].zero, *zeros, step.low, step.high),
    ]
    initial = "{" + ", ".join(map(str, fields)) + "}"
    title = f"/* {number}: {step.kind} {_comment(step.name)} */"
    if step.kind not in ("convolution", "linear"):
        return f"{title}\nstatic const Window window{number} = {initial};\n"
    arrays = [
        _array("int8_t", f"weights{number}", _weights(step).tolist()),
        _array("int32_t", f"biases{number}", step.bias.tolist()),
        _array("int32_t", f"multipliers{number}", step.multiplier),
        _array("uint8_t", f"shifts{number}", step.shift),
        f"static const Convolution convolution{number} = {{\n    {initial}, {step.groups}, weights{number}, "
        f"biases{number}, multipliers{number}, shifts{number}}};",
    ]
    return "\n".join([title, *arrays, ""])


def _weights(step: Step) -> Tensor:
    """Flat, in the order of memory: output channel, kernel row, kernel column, input channel."""
    return step.weight.permute(0, 2, 3, 1).flatten()


def _predict(network: IntegerNetwork, offsets: dict[str, int]) -> str:
    def at(name: str) -> str:
        return "image" if name == network.image else f"arena + {offsets[name]}"

    calls = []
    for number, step in enumerate(network.steps):
        inputs = ", ".join(at(name) for name in step.inputs)
        window, layer = f"&window{number}", f"&convolution{number}"
        if step.kind == "convolution":
            calls.append(f"convolve({layer}, {inputs}, {at(step.output)}, {at(f'patch {number}')});")
        elif step.kind == "linear":
            calls.append(f"classify({layer}, {inputs}, logits);")
        elif step.kind == "addition":
            zero = network.quantizations[step.inputs[1]].zero
            numbers = ", ".join(map(str, (zero, *step.multiplier, *step.shift)))
            calls.append(f"add({window}, {inputs}, {numbers}, {at(step.output)});")
        elif step.kind == "average":
            calls.append(f"average_pool({window}, {inputs}, {step.multiplier[0]}, {step.shift[0]}, {at(step.output)});")
        else:
            function = {"max": "max_pool", "relu": "relu"}[step.kind]
            calls.append(f"{function}({window}, {inputs}, {at(step.output)});")
    if network.steps[-1].kind != "linear":
        zero = network.quantizations[network.logits].zero
        calls.append(f"widen({at(network.logits)}, CLASSES, {zero}, logits);")
    body = "\n".join(f"    {call}" for call in calls)
    size = "ARENA_BYTES ? ARENA_BYTES : 1"  # a single linear layer needs none
    return (
        f"static int8_t arena[{size}] __attribute__((aligned(4)));\n\n"
        f"void predict(const int8_t *image, int32_t *logits) {{\n{body}\n}}\n"
    )


def _check(network: IntegerNetwork) -> str:
    total, sums = 0, []
    for number, step in enumerate(network.steps):
        if step.kind in ("convolution", "linear"):
            for name, values in (("weights", _weights(step)), ("biases", step.bias)):
                total += _checksum(values)
                array = f"{name}{number}"
                sums.append(f"    for (uint32_t i = 0; i < {len(values)}u; i++) sum += (i + 1) * (uint32_t){array}[i];")
    logits = network.integer_logits(_made_up_images(*network.shapes[network.image]))
    expected = "\n".join(_lines(logits.flatten().tolist()))
    return CHECK.format(images=CHECKED_IMAGES, expected=expected, sums="\n".join(sums), checksum=total % 2**32)


def _checksum(values: Tensor) -> int:
    """Each number times its position, so that no single change and no exchange goes unnoticed."""
    positions = np.arange(1, len(values) + 1, dtype=np.uint64)
    return int((positions * (values.numpy().astype(np.int64).astype(np.uint64) & 0xFFFFFFFF)).sum() % 2**32)


def _made_up_images(channels: int, height: int, width: int) -> Tensor:
    """What the file's self_check draws, as int8 N x C x H x W."""
    state, numbers = 1, []
    for _ in range(CHECKED_IMAGES * channels * height * width):
        state = (state * 1664525 + 1013904223) % 2**32
        numbers.append((state >> 24) - 128)
    images = torch.tensor(numbers, dtype=torch.int8).reshape(CHECKED_IMAGES, height, width, channels)
    return images.permute(0, 3, 1, 2)


def _array(kind: str, name: str, values: Iterable[int]) -> str:
    values = list(values)
    return f"static const {kind} {name}[{len(values)}] = {{\n" + "\n".join(_lines(values)) + "\n};"


def _lines(values: Iterable[int]) -> list[str]:
    """Numbers with commas, in lines."""
    lines, line = [], "   "
    for value in values:
        text = f" {value},"
        if len(line) + len(text) > LINE:
            lines.append(line)
            line = "   "
        line += text
    return [*lines, line]


def _comment(name: str) -> str:
    return name.replace("*/", "* /")


@dataclass(frozen=True)
class Constants:
    """What a C file says of itself."""

    shape: tuple[int, int, int]  # C, H, W
    classes: int
    image: Quantization
    logits_scale: float
    arena_bytes: int


def read_constants(path: str | Path) -> Constants:
    """The constants of a C file that `to_c` wrote; FileNotFoundError or ValueError for any other."""
    check_path(path=path)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path, or write it by kdlib.export.c_code.to_c.")
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(8192)
    found = dict(re.findall(r"^#define (\w+) (-?[\d.]+(?:e[+-]?\d+)?)$", head, re.MULTILINE))
    wanted = set(re.findall(r"#define (\w+)", HEAD))
    if not wanted <= found.keys():
        raise ValueError(f"{path} is no C file that kdlib wrote: its head lacks {min(wanted - found.keys())}.")
    if found["KDLIB_NETWORK"] != str(FORMAT):
        raise ValueError(f"{path} has the format {found['KDLIB_NETWORK']}; this kdlib reads {FORMAT}. Write it anew.")
    try:
        channels, height, width = (int(found[f"IMAGE_{side}"]) for side in ("CHANNELS", "HEIGHT", "WIDTH"))
        image = Quantization(float(found["IMAGE_SCALE"]), int(found["IMAGE_ZERO"]))
        classes, arena = int(found["CLASSES"]), int(found["ARENA_BYTES"])
        scale = float(found["LOGITS_SCALE"])
        if min(channels, height, width, classes, arena + 1) < 1 or image.scale <= 0 or scale <= 0:
            raise ValueError("a size or scale is not positive")
    except ValueError as error:
        raise ValueError(f"{path} is no C file that kdlib wrote: {error}.") from error
    return Constants((channels, height, width), classes, image, scale, arena)


class CNetwork:
    """A C file, compiled for this machine: a callable from normalised images N x C x H x W to float32 logits."""

    def __init__(self, path: Path) -> None:
        self.constants = read_constants(path)
        # Windows does not remove a library that is loaded.
        self._folder = tempfile.TemporaryDirectory(prefix="kdlib-", ignore_cleanup_errors=True)
        library = Path(self._folder.name) / ("network.dll" if sys.platform == "win32" else "network.so")
        compile_c([path], library, [*host_compiler(), "-shared", "-fPIC", "-O3", "-DKDLIB_SELF_CHECK"])
        self._library = ctypes.CDLL(str(library))
        wrong = self._library.self_check()
        if wrong:
            raise ValueError(
                f"{path} does not compute what it did when it was written ({wrong} numbers of its self-check differ): "
                "a weight or the code was changed. Write it anew."
            )

    def quantize(self, images: Tensor) -> Tensor:
        """Normalised images N x C x H x W as the file takes them: int8, N x H x W x C. ValueError for another shape."""
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"Normalised images, a floating-point tensor N x C x H x W, are expected; got {kind}.")
        if images.ndim != 4 or tuple(images.shape[1:]) != self.constants.shape:
            raise ValueError(
                f"Images N x C x H x W of {self.constants.shape} (C, H, W) are expected; got {tuple(images.shape)}."
            )
        if not images.isfinite().all():
            raise ValueError("Some pixels are NaN or infinite; normalised images are expected.")
        return self.constants.image.quantize(images.detach().cpu()).permute(0, 2, 3, 1).contiguous()

    def integer_logits(self, images: Tensor) -> Tensor:
        """The int32 logits of images as `quantize` gives them."""
        images = images.contiguous()
        logits = torch.zeros(len(images), self.constants.classes, dtype=torch.int32)
        for image, row in zip(images, logits, strict=True):
            self._library.predict(ctypes.c_void_p(image.data_ptr()), ctypes.c_void_p(row.data_ptr()))
        return logits

    def __call__(self, images: Tensor) -> Tensor:
        """The float32 logits, N x classes."""
        return self.integer_logits(self.quantize(images)).float() * self.constants.logits_scale


def load_c(path: str | Path) -> CNetwork:
    """Compile a file of `to_c` for this machine and load it; it is called with normalised images N x C x H x W.

    The code of the file is executed: open none of strangers. Its self-check runs first. Raises FileNotFoundError,
    ImportError without a C compiler, ValueError for another file, one with an error in it or one that was changed.
    """
    check_path(path=path)
    return CNetwork(Path(path))


def host_compiler() -> list[str]:
    """The command of a C compiler for this machine: cc, else that of the extra `device`; else ImportError."""
    compiler = shutil.which("cc")
    return [compiler] if compiler else zig()


def zig() -> list[str]:
    """The command of zig's C compiler, which compiles for other machines too; ImportError without it."""
    try:
        import ziglang  # noqa: F401  # only whether it is there: it is run, not imported
    except ImportError as error:
        raise ImportError('The C compiler zig is missing. Run: pip install "kdlib[device]".') from error
    return [sys.executable, "-m", "ziglang", "cc"]


def compile_c(sources: Iterable[Path], output: Path, command: list[str]) -> None:
    """Run a compiler; ValueError with its first complaint if it refuses the sources."""
    files = [str(Path(path).resolve()) for path in sources]
    done = subprocess.run(
        [*command, "-std=c99", "-fno-sanitize=all", *files, "-o", str(output)],
        cwd=output.parent,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = done.stderr.splitlines() or ["no message"]
        complaint = next((line for line in lines if "error" in line), lines[0])
        raise ValueError(f"{files[0]} could not be compiled: {complaint.removeprefix(files[0])}")
