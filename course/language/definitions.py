"""12,700 definitions of a dictionary, each with the kind of thing that it defines, and what a sentence encoder makes of
them.

The definitions are WordNet's. The encoder, all-MiniLM-L6-v2, is not needed: its embeddings are shipped, as 128 numbers
for each definition. Definitions of things of one parent ("dog" is that of all breeds) are in one split.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kdlib.data.sources import verify_file
from kdlib.files import load_tensors

TEXTS, EMBEDDINGS = "language/definitions.txt.gz", "language/definitions-minilm.safetensors"
# Of the files that course.experiments.sentence_files writes.
TEXTS_SHA256 = "d2620088226c05956a55572a6928b22a78bb608ea85b1c874db1b8801d7af4ce"
EMBEDDINGS_SHA256 = "637c268639de87cf8b054a5b15836f685db730c54a70760b86a6d6809c7eda62"
KINDS = ("act", "animal", "artifact", "body", "communication", "food", "person", "plant", "state", "substance")


@dataclass(frozen=True)
class Part:
    """Definitions, the number of each one's kind in KINDS, and what the encoder says of it (N x 128)."""

    texts: tuple[str, ...]
    labels: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Definitions:
    """Three splits without a definition in common; choices are made on validation, and test is read once."""

    train: Part
    validation: Part
    test: Part


@lru_cache(maxsize=1)
def load_definitions() -> Definitions:
    """The shipped definitions, their kinds and their embeddings.

    Raises FileNotFoundError where a file is missing, ValueError where it is truncated or altered.
    """
    texts, embeddings = (
        verify_file(name, sha256, f"Restore it with 'git checkout -- data/{name}'.")
        for name, sha256 in ((TEXTS, TEXTS_SHA256), (EMBEDDINGS, EMBEDDINGS_SHA256))
    )
    rows = [line.split("\t") for line in gzip.decompress(texts.read_bytes()).decode("ascii").splitlines()]
    tensors, _ = load_tensors(embeddings)
    values = tensors["codes"].float() * tensors["step"]

    def part(name: str) -> Part:
        chosen = [number for number, row in enumerate(rows) if row[0] == name]
        labels = torch.tensor([KINDS.index(rows[number][1]) for number in chosen])
        return Part(tuple(rows[number][2] for number in chosen), labels, values[chosen])

    return Definitions(part("train"), part("validation"), part("test"))
