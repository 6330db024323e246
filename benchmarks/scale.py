"""How an epoch grows with the data, what augmentation and importing cost."""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rounds import Row, at_least, at_most, medians
from torchvision.transforms import v2

from kdlib import data, models, train
from kdlib.data import InMemoryDataset
from kdlib.methods import Logit
from kdlib.teachers import CachedTeacher

COUNTS = (1_000, 10_000, 55_000)
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


def one_epoch(count: int) -> None:
    """In a process of its own: distil on `count` images from a cache, print seconds an epoch and peak memory."""
    fashion = data.load("fashion-mnist").subset(count, seed=0)
    student = models.build("resnet8", num_classes=10, in_channels=1, seed=0)
    cache = CachedTeacher.build(models.load("resnet20-fashion"), fashion.train, augmentation=fashion.augmentation)
    result = train.fit(student, fashion, teacher=cache, method=Logit(), epochs=3, test=False)
    ends = [0.0, *result.history["seconds"]]
    seconds = statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False))
    print(json.dumps({"images": count, "seconds": seconds, "peak": peak_memory()}))


def peak_memory() -> int:
    """Bytes of this process at most. On Linux ru_maxrss begins with the peak of the process that started this one."""
    status = Path("/proc/self/status")
    own = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(own[1]) * 1024 if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def growth() -> Iterator[Row]:
    """Seconds an image and bytes an image, from 1,000 to 55,000 images."""
    measured = []
    for count in COUNTS:
        command = [sys.executable, __file__, str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
    small, middle, large = measured
    # 1,000 images are 7 steps, whose start counts; from 10,000 on it should be a straight line.
    ratio = (large["seconds"] / large["images"]) / (middle["seconds"] / middle["images"])
    times = ", ".join(f"{one['images']:,}: {one['seconds']:.2f} s" for one in measured)
    # The whole dataset is read before a subset is taken; what a larger run adds is a copy of its images and the
    # outputs: 784 + 8 + 8 bytes of an image, its label and its index, and 10 logits of 4 bytes in one view.
    added = (large["peak"] - small["peak"]) / (large["images"] - small["images"])
    memory = ", ".join(f"{one['images']:,}: {one['peak'] / 1e6:,.0f} MB" for one in measured)
    yield at_most("time an image, 55,000 against 10,000 images", ratio, 1.1, times)
    yield at_most("memory an image, against its own bytes", added / (784 + 8 + 8 + 40), 1.5, memory)


def augmentation() -> Row:
    """Whole batches against torchvision's transforms, image by image."""
    fashion = data.load("fashion-mnist")
    dataset: InMemoryDataset = fashion.train.select(torch.arange(2560))
    transform = v2.Compose(
        [
            v2.RandomCrop(28, padding=fashion.augmentation.padding),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(dataset.mean, dataset.std),
        ]
    )

    def batches() -> float:
        started = time.perf_counter()
        for _ in dataset.iter_batches(128, augmentation=fashion.augmentation):
            pass
        return len(dataset) / (time.perf_counter() - started)

    def images() -> float:
        started = time.perf_counter()
        for image in dataset.images:
            transform(image)
        return len(dataset) / (time.perf_counter() - started)

    rates = medians({"batches": batches, "images": images}, rounds=5)
    detail = f"{rates['batches']:,.0f} against {rates['images']:,.0f} images/s"
    return at_least("augmentation against image by image", rates["batches"] / rates["images"], 10, detail)


def importing(rounds: int) -> Row:
    """`import kdlib` and its parts against `import torch, torchvision`, each in new processes."""
    torch_alone = "import torch, torchvision"
    library = "import kdlib; from kdlib import data, losses, methods, models, train"

    def start(statement: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - started

    seconds = medians({"torch": lambda: start(torch_alone), "kdlib": lambda: start(library)}, rounds)
    detail = f"{seconds['kdlib']:.2f} s against {seconds['torch']:.2f} s"
    return at_most("import against torch and torchvision", seconds["kdlib"] / seconds["torch"], 1.15, detail)


def run(full: bool) -> Iterator[Row]:
    """All of the above; growth, which trains on 55,000 images, only in full."""
    yield augmentation()
    yield importing(rounds=5 if full else 2)
    if full:
        yield from growth()


if __name__ == "__main__":
    one_epoch(int(sys.argv[1]))
