"""Examines what `kdlib distill` would run."""

from __future__ import annotations

import itertools
import warnings

from kdlib import devices, distill
from kdlib.data import epoch_order
from kdlib.distiller import Distiller
from kdlib.doctor.examine import SAMPLES, examine
from kdlib.doctor.report import Report
from kdlib.errors import check_kind


def examine_job(job: distill.Job) -> Report:
    """Look at a job of `kdlib distill` before it is run: its networks, method, optimiser, first batches and splits.

    The teacher is asked live, and in float32; how its outputs are stored is checked by the cache itself. Raises what
    `distill.distill` raises for a job that cannot be run.
    """
    check_kind("a kdlib.distill.Job, such as Job(student='resnet8')", distill.Job, job=job)
    config = devices.resolve(job.device, "fp32")
    data, teacher, student, method = distill.build(job)
    size = min(job.recipe.batch_size, len(data.train))
    if size < 2:
        raise ValueError(f"{data.name} has {len(data.train)} training image(s); at least 2 are needed.")
    config.move(student)
    config.move(teacher)
    stream = data.train.iter_batches(
        size,
        sampler=epoch_order(data.train, job.seed, 0),
        augmentation=data.augmentation,
        seed=job.seed,
        device=config.device,
    )
    number = max(2, -(-SAMPLES // size))
    batches = [batch for batch in itertools.islice(stream, number) if len(batch) == size]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training says it, too
        with devices.isolate_rng(config.device):
            devices.seed_rng(job.seed, config.device)
            distiller = Distiller(student, teacher if method.needs_teacher else None, method, example=batches[0])
    distiller.train()
    clipped = list(distiller.parameters()) if job.recipe.clip else None
    optimizer = job.recipe.make_optimizer(distiller.parameters())
    return examine(distiller, batches, optimizer=optimizer, clipped=clipped, data=data)
