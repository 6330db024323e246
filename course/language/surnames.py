"""88,799 surnames of the US census of 1990 as batches of letters.

A name is a sequence of tokens: 1 to 26 are the letters, 0 stands before the first and after the last. The labels of a
batch are the next tokens; behind the end of a shorter name they are HIDDEN, so that padding has no part in a loss.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kdlib.data.augment import permutation
from kdlib.data.sources import verify_file

FILE = "surnames.txt.gz"
# Of the file that course.experiments.surnames_file writes.
SHA256 = "24fe2ace04f28526078029f29274174ab82f6812195db18b0ff88c2d199caa7f"
HELD_OUT = 4_000  # names for validation, and as many for the test
BEFORE_A = "`"  # the character before "a", which becomes token 0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = 1 + len(LETTERS)
EDGE = 0  # the token before the first letter and after the last
HIDDEN = -100  # the label of padding: what torch's cross-entropy and kdlib's token tasks leave out

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Surnames:
    """Names in three splits without a name in common; choices are made on validation, and test is read once."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@lru_cache(maxsize=1)
def load_surnames() -> Surnames:
    """The shipped names, split in the same way on every machine.

    Raises FileNotFoundError where the file is missing, ValueError where it is truncated or altered.
    """
    path = verify_file(FILE, SHA256, f"Restore it with 'git checkout -- data/{FILE}'.")
    names = gzip.decompress(path.read_bytes()).decode("ascii").split()
    order = permutation(torch.arange(len(names)), "surnames").tolist()
    shuffled = tuple(names[number] for number in order)
    return Surnames(shuffled[2 * HELD_OUT :], shuffled[:HELD_OUT], shuffled[HELD_OUT : 2 * HELD_OUT])


def batch_of(names: Sequence[str]) -> Batch:
    """Names as tokens: "inputs", each token that is read, and "labels", the token that follows it.

    Shapes: both int64, names x (letters of the longest + 1). Raises ValueError for no names, and for what is no word of
    the letters a to z.
    """
    wrong = next((name for name in names if not name or set(name) - set(LETTERS)), None)
    if not names or wrong is not None:
        shown = "no names" if not names else repr(wrong)
        raise ValueError(f"Names are words of the letters a to z in lower case; got {shown}.")
    width = max(map(len, names)) + 1
    padded = bytearray("".join(name.ljust(width, BEFORE_A) for name in names), "ascii")
    letters = torch.frombuffer(padded, dtype=torch.uint8).view(-1, width).long() - ord(BEFORE_A)
    inputs = torch.cat((letters.new_full((len(names), 1), EDGE), letters[:, :-1]), 1)
    behind_end = (inputs == EDGE) & (torch.arange(width) > 0)
    return {"inputs": inputs, "labels": letters.masked_fill(behind_end, HIDDEN)}


def cut(batch: Batch) -> Batch:
    """The same batch without columns that hold nothing but padding."""
    width = int((batch["labels"] != HIDDEN).sum(1).max())
    return {name: part[:, :width] for name, part in batch.items()}


def random_batches(batch: Batch, size: int, steps: int, seed: int) -> Iterator[Batch]:
    """`steps` batches of so many rows, in random order: each row comes once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    count = len(batch["labels"])
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat((order, torch.randperm(count, generator=generator)))
        chosen, order = order[:size], order[size:]
        yield cut({name: part[chosen] for name, part in batch.items()})


def spell(batch: Batch) -> list[str]:
    """The names in a batch; of one that was cut off before its end, what there is."""
    return ["".join(LETTERS[token - 1] for token in row if token > EDGE) for row in batch["labels"].tolist()]
