"""The mathematics of distillation: pure functions, tensors in, one scalar tensor out.

The student's tensors come first, the teacher's second. Everything is computed in float32 at least, also
under autocast and for half-precision input. Degenerate input gives a clear error or a finite value and
gradient; a NaN that is already in the input is passed on, and so is an infinity, so that the training loop
can see and name it; but -inf has a value in two places: in dist's logits, where it masks a class, and in vid's
raw_variance, whose variance is then the least. Gradients are first derivatives: some losses hold parts of
their second fixed. On CUDA, torch.set_float32_matmul_precision("high") would leave ten bits of the products:
keep "highest".
"""

from .features import attention, attention_map, hint, vid
from .logits import dist, dkd, kd, label_smoothing, soften, standardized_kd, warn_if_probabilities
from .relations import (
    correlation_congruence,
    fsp,
    fsp_matrix,
    layer_correlation,
    layer_information,
    layer_relation_matrix,
    linear_cka,
    renyi_information,
    rkd_angle,
    rkd_distance,
    similarity,
)

__all__ = [
    "attention",
    "attention_map",
    "correlation_congruence",
    "dist",
    "dkd",
    "fsp",
    "fsp_matrix",
    "hint",
    "kd",
    "label_smoothing",
    "layer_correlation",
    "layer_information",
    "layer_relation_matrix",
    "linear_cka",
    "renyi_information",
    "rkd_angle",
    "rkd_distance",
    "similarity",
    "soften",
    "standardized_kd",
    "vid",
    "warn_if_probabilities",
]
