"""Knowledge distillation in PyTorch: losses, methods, teachers and one training loop."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"
__all__ = [
    "adapters", "compare", "compress", "data", "devices", "distill", "distiller", "distributed", "doctor",
    "ensembles", "environment", "errors", "evaluation", "export", "hooks", "loss_table", "losses", "measure", "methods",
    "microcontroller", "models", "search", "study", "tasks", "teachers", "train", "verdict",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Parts load when they are used, so that `import kdlib` costs nothing.
    if name in __all__:
        return importlib.import_module(f"kdlib.{name}")
    raise AttributeError(f"module 'kdlib' has no attribute {name!r}")
