"""What teacher and student cost on this machine: parameters, MACs, bytes, and the time of one picture.

The time is that of the processor, in one thread: other programs make a clock on the wall run on, and hardly this one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

ROUNDS, SECONDS = 5, 0.2


def measured(teacher: str, student: str, data: str) -> dict[str, Any]:
    """Measure two trained models on pictures of the size of the data; processor time of one picture in
    one thread, in turns, the least of five rounds.

    teacher, student: shipped names or files. Raises what `models.load` and `data.load_images` raise.
    """
    from kdlib import data as datasets
    from kdlib import evaluation, measure, models
    from kdlib.study.runs_file import library_versions, machine_info

    loaded = datasets.load_images(data)
    shape = (loaded.in_channels, loaded.image_size, loaded.image_size)
    networks = {"teacher": models.load(teacher).eval(), "student": models.load(student).eval()}
    for role, network in networks.items():
        evaluation.warn_of_other_images(role, network, loaded)
    macs = {role: measure.macs(network, shape) for role, network in networks.items()}  # says what does not fit
    times = _in_turns(networks, shape)
    facts: dict[str, Any] = {
        role: {
            "model": {"teacher": teacher, "student": student}[role],
            "parameters": measure.count_parameters(network),
            "macs": macs[role],
            "bytes": measure.bytes_saved(network),
            "milliseconds": 1e3 * min(times[role]),  # whatever else the machine does can only slow it down
            "milliseconds_of_rounds": [1e3 * time for time in times[role]],
        }
        for role, network in networks.items()
    }
    return facts | {"data": data, "shape": list(shape), "machine": machine_info(), "versions": library_versions()}


def _in_turns(networks: dict[str, nn.Module], shape: tuple[int, int, int]) -> dict[str, list[float]]:
    """Seconds of each network in each round: whatever else the machine does strikes both."""
    import torch

    image, threads = torch.zeros(1, *shape), torch.get_num_threads()
    times: dict[str, list[float]] = {role: [] for role in networks}
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(ROUNDS):
                for role, network in networks.items():
                    times[role].append(_seconds_of_one(network, image))
    finally:
        torch.set_num_threads(threads)
    return times


def _seconds_of_one(network: nn.Module, image: Any) -> float:
    for _ in range(3):  # the first passes allocate memory and choose kernels
        network(image)
    start, passes = time.process_time(), 0
    while time.process_time() - start < SECONDS:
        network(image)
        passes += 1
    return (time.process_time() - start) / passes
