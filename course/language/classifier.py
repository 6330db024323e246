"""A tiny classifier of sentences, and the head that makes a teacher of an encoder.

The student knows no language beforehand. A sentence is a bag of pieces: its words, and of longer words the first four
letters and the last three. A checksum puts each piece into one of 4,096 buckets, so there is no vocabulary to ship.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.language.definitions import KINDS

BUCKETS, WIDTH = 4_096, 16
WORD = re.compile(r"[a-z]+")


def pieces(sentence: str) -> list[str]:
    """The pieces of a sentence: "yellow fruit" -> yellow, fruit, <yell, low>, <frui, uit>."""
    words = WORD.findall(sentence.lower())
    longer = [word for word in words if len(word) > 4]
    return [*words, *(f"<{word[:4]}" for word in longer), *(f"{word[-3:]}>" for word in longer)]


def bags(sentences: Sequence[str]) -> Tensor:
    """The buckets of each sentence's pieces, 1 to 4,096, filled up with 0. Shape: int64, sentences x pieces."""
    rows = [[1 + zlib.crc32(piece.encode()) % BUCKETS for piece in pieces(one)] for one in sentences]
    width = max(1, *map(len, rows)) if rows else 1
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int64).view(-1, width)


class TinyClassifier(nn.Module):
    """Buckets N x pieces -> logits N x kinds: the mean of 16 numbers for each piece, and a linear head."""

    def __init__(self, kinds: int = len(KINDS)) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(BUCKETS + 1, WIDTH, mode="mean", padding_idx=0)
        self.head = nn.Linear(WIDTH, kinds)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.embedding(inputs))


def build_classifier(seed: int = 0) -> TinyClassifier:
    """A fresh student; the global random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return TinyClassifier()


def fit_head(embeddings: Tensor, labels: Tensor, decay: float = 1e-3) -> nn.Linear:
    """The teacher's head: logistic regression on embeddings (N x D), its minimum found by L-BFGS.

    decay: of the squared weights, beside the mean cross-entropy.
    """
    inputs = embeddings.double()
    head = nn.Linear(inputs.shape[1], len(KINDS), dtype=torch.double)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(inputs), labels) + decay * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.float().requires_grad_(False)
