"""Networks that say how probable each next letter is, and names drawn from them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from course.language.surnames import EDGE, HIDDEN, TOKENS, Batch
from kdlib.data.sources import verify_file
from kdlib.files import load_tensors

TEACHER_FILE = "language/teacher.safetensors"
TEACHER_SHA256 = "7712dd46d34748cbd66ec4a3e6dbf3106560436086bbf876969d38f51088c6d5"
TEACHER_WIDTH, STUDENT_WIDTH = 128, 10
LONGEST = 20  # letters of a drawn name; the longest in the data has 13


class NameModel(nn.Module):
    """A language model: tokens B x L -> logits of the next token, B x L x tokens.

    width: of the GRU's state, all that it remembers of the letters so far.
    """

    def __init__(self, width: int, tokens: int = TOKENS) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, min(width, 32))
        self.gru = nn.GRU(self.embedding.embedding_dim, width, batch_first=True)
        self.head = nn.Linear(width, tokens)

    def forward(self, inputs: Tensor) -> Tensor:
        states, _ = self.gru(self.embedding(inputs))
        return self.head(states)

    def step(self, tokens: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits after one more token (B) and the state after it; state None: before the first."""
        states, state = self.gru(self.embedding(tokens[:, None]), state)
        return self.head(states[:, 0]), state


def build(width: int = STUDENT_WIDTH, seed: int = 0) -> NameModel:
    """A fresh network; the global random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return NameModel(width)


@lru_cache(maxsize=1)
def load_teacher() -> NameModel:
    """The shipped teacher, a GRU of width 128, frozen.

    Raises FileNotFoundError where its file is missing, ValueError where it is truncated or altered.
    """
    path = verify_file(TEACHER_FILE, TEACHER_SHA256, f"Restore it with 'git checkout -- data/{TEACHER_FILE}'.")
    tensors, _ = load_tensors(path)
    teacher = NameModel(TEACHER_WIDTH)
    teacher.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def draw(model: NameModel, count: int, seed: int | torch.Generator = 0, longest: int = LONGEST) -> Batch:
    """Names drawn from a model, letter by letter, each from the model's own probabilities.

    A name that has not ended after `longest` letters is cut off there, without an end.
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    tokens, state = torch.zeros(count, dtype=torch.int64), None
    running = torch.ones(count, dtype=torch.bool)
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    while len(labels) < longest and bool(running.any()):
        logits, state = model.step(tokens, state)
        inputs.append(tokens)
        # The largest of logits - log(exponential noise) is a draw from the softmax of the logits.
        noise = torch.empty_like(logits).exponential_(generator=generator)
        tokens = (logits - noise.log()).argmax(1)
        labels.append(tokens.where(running, torch.tensor(HIDDEN)))
        running = running & (tokens != EDGE)
        tokens = tokens.where(running, torch.tensor(EDGE))
    return {"inputs": torch.stack(inputs, 1), "labels": torch.stack(labels, 1)}
