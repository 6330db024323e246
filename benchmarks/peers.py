"""kdlib beside torchdistill, nvidia-modelopt and textbrewer: the same training timed, the same losses compared.

Keras joins the comparison of losses only.

make bench-peers, or: .venv-peers/bin/python benchmarks/peers.py
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import parity
import peer_steps
import rounds
import torch
from peer_steps import RECIPE, Ready, Setting, Task
from rounds import HEADER, Row, at_least, line

from kdlib import data, devices
from kdlib.data import NO_AUGMENTATION, epoch_order

PLAIN, LIVE, CACHED = "plain step, no teacher", "kdlib, live teacher", "kdlib, cached logits"
PEERS = {
    "torchdistill, live teacher": peer_steps.torchdistill,
    "modelopt, live teacher": peer_steps.modelopt,
    "textbrewer, live teacher": peer_steps.text_brewer,
}
CONTESTANTS: dict[str, Callable[[Task], Ready]] = {
    PLAIN: peer_steps.plain,
    LIVE: peer_steps.kdlib_live,
    CACHED: peer_steps.kdlib_cached,
    **PEERS,
}
PACKAGES = ("torch", "torchdistill", "nvidia-modelopt", "textbrewer", "keras")

Rates = dict[str, dict[str, list[float]]]  # setting -> contestant -> images a second, round by round


def settings() -> tuple[Setting, Setting]:
    """The peers' default, and what kdlib chooses by itself on this processor."""
    bfloat16 = devices.resolve("cpu").bfloat16
    own = Setting(f"{'bfloat16' if bfloat16 else 'float32'}, channels_last", bfloat16, channels_last=True)
    return Setting("float32, as the peers come"), own


def task(setting: Setting, steps: int, scratch: Path) -> Task:
    """So many batches of Fashion-MNIST; the validation that `fit` ends with is cut to two images."""
    fashion = data.load("fashion-mnist").subset(steps * RECIPE.batch_size)
    fashion = replace(fashion, validation=fashion.validation.select(torch.arange(2)))
    return Task(fashion, setting, scratch)


def distance_to_definition(scratch: Path) -> dict[str, float]:
    """How far one step leaves each contestant's weights from those of the formula, as a share of the step."""
    # In kdlib's memory format and order: in float32 either one moves the sums by up to 2e-3 of a step.
    one = task(Setting("check", channels_last=True), 1, scratch)
    ordered = one.data.train.select(epoch_order(one.data.train, seed=0, epoch=0))
    one = replace(one, data=replace(one.data, train=ordered, augmentation=NO_AUGMENTATION))
    start = _weights(peer_steps.definition(one))
    wanted = _weights(_after_an_epoch(peer_steps.definition(one)))
    found = {}
    for name, prepare in CONTESTANTS.items():
        if name != PLAIN:
            weights = _weights(_after_an_epoch(prepare(one)))
            found[name] = (torch.dist(weights, wanted) / torch.dist(start, wanted)).item()
    return found


def _after_an_epoch(ready: Ready) -> Ready:
    with contextlib.redirect_stderr(io.StringIO()):
        ready.epoch()
    return ready


def _weights(ready: Ready) -> torch.Tensor:
    # modelopt's student holds the teacher too, which does not learn.
    return torch.cat([p.detach().flatten() for p in ready.student.parameters() if p.requires_grad])


def measure(turns: int, steps: int, scratch: Path) -> Rates:
    """Images a second of every contestant in every setting, in turn; each round begins with another one."""
    made = {setting.title: task(setting, steps, scratch) for setting in settings()}
    ready = [(title, name, prepare(made[title])) for title in made for name, prepare in CONTESTANTS.items()]
    rates: Rates = {title: {name: [] for name in CONTESTANTS} for title in made}
    for _, _, contestant in ready:
        _after_an_epoch(contestant)  # to warm up
    for turn in range(turns):
        first = turn * len(ready) // turns
        for title, name, contestant in ready[first:] + ready[:first]:
            # Progress bars run, but nobody has to look at them.
            with contextlib.redirect_stderr(io.StringIO()):
                seconds = contestant.epoch()
            rates[title][name].append(steps * RECIPE.batch_size / seconds)
    return rates


def markdown(rates: Rates) -> str:
    """Medians and ranges as a table."""
    lines = ["| images/s | " + " | ".join(rates) + " |", "|---|" + "---|" * len(rates)]
    for name in CONTESTANTS:
        cells = [
            f"{median(seen[name]):,.0f} ({min(seen[name]):,.0f} to {max(seen[name]):,.0f})" for seen in rates.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(rates: Rates) -> list[Row]:
    """kdlib as it comes against the fastest peer as it comes, and against the fastest in kdlib's own precision."""
    default, own = rates.values()
    rows = []
    for seen, targets, what in ((default, {LIVE: 1.8, CACHED: 5.0}, "as it comes"), (own, {}, "in the same precision")):
        fastest = max(PEERS, key=lambda name: median(seen[name]))
        for name in (LIVE, CACHED):
            ratio = median(own[name]) / median(seen[fastest])
            text = f"{name} / fastest peer {what}", f"fastest: {fastest.partition(',')[0]}"
            if name in targets:
                rows.append(at_least(text[0], ratio, targets[name], text[1]))
            else:
                rows.append(Row(text[0], ratio, "", None, text[1]))
    return rows


def main() -> None:
    """Time, compare, print, and write benchmarks/peers.json and the tables in benchmarks/README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("speed", "parity"), help="one of the two tables; nothing is written")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16, help="batches a round")
    asked = parser.parse_args()
    found: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}, "threads": torch.get_num_threads()}
    found["machine"] = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    if asked.only != "parity":
        found |= speed(asked.rounds, asked.steps)
    if asked.only != "speed":
        rows = parity.compare()
        print(f"\n{parity.markdown(rows)}")
        found["parity"] = [asdict(row) | {"equal": row.equal} for row in rows]
        unexplained = [f"{row.loss}, {row.library}" for row in rows if not row.accounted_for]
        if unexplained:  # another version, perhaps
            raise SystemExit(f"The reasons given do not account for: {'; '.join(unexplained)}.")
    if asked.only is None:
        Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        speeds = found["images_per_second"]
        rounds.put_in_readme("peers", f"{markdown(speeds)}\n\n{rounds.markdown(verdicts(speeds))}")
        rounds.put_in_readme("parity", parity.markdown(rows))


def speed(turns: int, steps: int) -> dict[str, Any]:
    """The check that all make the same step, then the timing."""
    with tempfile.TemporaryDirectory() as folder:
        distances = distance_to_definition(Path(folder))
        far = {name: distance for name, distance in distances.items() if distance > 1e-4}
        if far:
            raise SystemExit(f"These do not make the step that is timed; distance as a share of it: {far}.")
        rates = measure(turns, steps, Path(folder))
    rows = verdicts(rates)
    print("\n".join([markdown(rates), "", HEADER, *map(line, rows)]))
    return {
        "rounds": turns,
        "images_a_round": steps * RECIPE.batch_size,
        "distance_to_definition": distances,
        "images_per_second": rates,
        "ratios": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    main()
