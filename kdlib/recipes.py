"""How a network is trained: optimiser, learning rate over time, batch size, clipping."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import cast

import torch
from torch import nn

from kdlib.errors import check_real, unknown_name

# Of each optimiser, the learning rate and the weight decay where none is given: here, on the command line, and in the
# study's start settings. AdamW's weight decay acts beside the gradient, and is larger for the same effect.
DEFAULTS = {"sgd": (0.1, 5e-4), "adamw": (2e-3, 0.05), "rmsprop": (1e-3, 5e-4)}
OPTIMIZERS = tuple(DEFAULTS)
SCHEDULES = ("cosine", "one-cycle", "constant")


@dataclass(frozen=True)
class Recipe:
    """The settings of one training run, the same for every method that is compared.

    optimizer: "sgd" (Nesterov momentum), "adamw" or "rmsprop". learning_rate: its peak. momentum: for sgd.
    weight_decay: applied to matrices and filters, not to parameters of one dimension (biases, norms of channels); norms
    over maps and scales of shape C x 1 x 1 have more, and are decayed. Of these two, what is not given or None is the
    optimiser's own: 0.1 and 5e-4 for sgd, 2e-3 and 0.05 for adamw, 1e-3 and 5e-4 for rmsprop. Once made, a recipe holds
    numbers, which `dataclasses.replace` keeps: with another optimizer, give these two as well, or None for its own.
    batch_size: at least 2.
    schedule: "cosine" (after a linear warm-up over the share `warmup` of all steps, half a cosine to zero),
    "one-cycle" (linear up for 30 % of the steps, linear down to zero) or "constant". clip: largest norm of the
    gradient over the student's and the method's parameters together; None does not clip.
    Raises ValueError for values that make no sense, and warns of the pair that is SGD's with another optimiser.
    """

    optimizer: str = "sgd"
    learning_rate: float = cast(float, None)  # a number once the recipe is made
    momentum: float = 0.9
    weight_decay: float = cast(float, None)
    batch_size: int = 128
    schedule: str = "cosine"
    warmup: float = 0.1
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        for name, default in zip(("learning_rate", "weight_decay"), DEFAULTS[self.optimizer], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        names = ("learning_rate", "momentum", "weight_decay", "warmup", *(["clip"] if self.clip is not None else []))
        check_real(**{name: getattr(self, name) for name in names})
        for name in names:
            if type(getattr(self, name)) not in (int, float):  # such as NumPy's, which JSON does not know
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is a positive number; got {self.learning_rate}.")
        whole = isinstance(self.batch_size, Integral) and not isinstance(self.batch_size, bool)
        if not whole or self.batch_size < 2:
            text = "batch_size is a whole number of at least 2 (batch statistics need more than one sample)"
            raise ValueError(f"{text}; got {self.batch_size}.")
        object.__setattr__(self, "batch_size", int(self.batch_size))
        for name in ("warmup", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} lies in [0, 1); got {getattr(self, name)}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is a number of at least 0; got {self.weight_decay}.")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is a positive norm, or None; got {self.clip}.")
        # What `dataclasses.replace(recipe, optimizer="adamw")` leaves, without a word, of a recipe by SGD.
        if self.optimizer != "sgd" and (self.learning_rate, self.weight_decay) == DEFAULTS["sgd"]:
            warnings.warn(
                f"This recipe has the learning rate and weight decay of SGD, {self.learning_rate:g} and "
                f"{self.weight_decay:g}, with {self.optimizer}, by which many networks then learn nothing. Give "
                f"others, or None for {self.optimizer}'s own.",
                stacklevel=3,
            )

    def learning_rate_at(self, step: float, total_steps: int, peak: float | None = None) -> float:
        """The learning rate of step 0, 1, ... of `total_steps`: a function, so that a resumed run needs no state.

        step: 0.5 is the middle of the first two. peak: of an optimiser of one's own; default, the recipe's learning
        rate.
        """
        peak = self.learning_rate if peak is None else peak
        done = (step + 0.5) / total_steps
        if self.schedule == "constant":
            return peak
        if self.schedule == "one-cycle":
            return peak * (done / 0.3 if done < 0.3 else (1 - done) / 0.7)
        if done < self.warmup:
            return peak * done / self.warmup
        return peak * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over these parameters, those of one dimension (biases, norms of channels) not decayed."""
        trained = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, self.learning_rate)
        if self.optimizer == "rmsprop":
            return torch.optim.RMSprop(groups, self.learning_rate, alpha=0.9)  # Keras' rho, which the article uses
        nesterov = self.momentum > 0
        return torch.optim.SGD(groups, self.learning_rate, momentum=self.momentum, nesterov=nesterov)
