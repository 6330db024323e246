"""Trains the shipped teacher of lesson 17: a GRU of width 128 that has read 80,799 surnames.

    python -m course.experiments.language_teacher

Its settings are those of one attempt and were not searched for. The names for the test are not read.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

from course import language
from course.experiments.command import run_command
from course.language.networks import TEACHER_FILE, TEACHER_WIDTH
from kdlib.data import data_dir
from kdlib.files import save_tensors

STEPS, BATCH, RATE = 2_000, 256, 0.005


def train(steps: int = STEPS, seed: int = 0) -> language.NameModel:
    """A fresh teacher after so many steps on the training names."""
    names = language.batch_of(language.load_surnames().train)
    model = language.build(TEACHER_WIDTH, seed)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for batch in language.random_batches(names, BATCH, steps, seed):
        labels = batch["labels"].flatten()
        loss = F.cross_entropy(model(batch["inputs"]).flatten(0, 1), labels, ignore_index=language.HIDDEN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def language_teacher(
    out: Annotated[Path | None, typer.Option(help="Where the file is written; default: data.")] = None,
) -> None:
    """Train the teacher and write its weights in half precision."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    model = train()
    seconds = time.perf_counter() - started
    names = language.load_surnames()
    validation = language.batch_of(names.validation)
    nats = language.nats(language.logits_of(model, validation), validation["labels"]).mean()
    path = (out or data_dir()) / TEACHER_FILE
    save_tensors(path, {name: tensor.half() for name, tensor in model.state_dict().items()}, {"width": TEACHER_WIDTH})
    print(f"{nats:.2f} nats a name on {len(names.validation):,} validation names, after {seconds:.0f} s")
    print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    run_command(stopped="The same command begins anew.", language_teacher=language_teacher)
