"""The losses that another library shares with kdlib: its value, ours, and what in its source makes the difference.

Every difference is accounted for: `explained` repeats ours with the change that the reason names, and must hit theirs.
"""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"  # read once, by the import

import keras
import modelopt.torch.distill as mtd
import textbrewer
import torch
import torch.nn.functional as F
from textbrewer.losses import fsp_loss, hid_mse_loss, kd_ce_loss
from torch import Tensor, nn
from torchdistill.losses.registry import get_mid_level_loss
from torchdistill.models.wrapper import Regressor4VID

from kdlib import losses

T = 4.0
CLOSE = 1e-6


@dataclass(frozen=True)
class Comparison:
    """One row of the table; `explained` is our value once it is changed as `why` says."""

    loss: str
    library: str
    theirs: float
    ours: float
    why: str = ""
    explained: float | None = None

    @property
    def equal(self) -> bool:
        """Whether both give the same number."""
        return math.isclose(self.theirs, self.ours, rel_tol=CLOSE)

    @property
    def accounted_for(self) -> bool:
        """Whether the values are equal, or differ by what `why` names and by nothing else."""
        return self.equal or (self.explained is not None and math.isclose(self.theirs, self.explained, rel_tol=CLOSE))


def lin(shape: tuple[int, ...], a: float, b: float) -> Tensor:
    """Numbers without symmetry, the same on every machine."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * a + b).reshape(shape)


S, LOGITS_T = 2 * lin((4, 5), 0.7, 0.1), 3 * lin((4, 5), 1.3, 0.4)
Y = torch.tensor([0, 3, 1, 4])
MAP_S, MAP_T = lin((4, 3, 4, 4), 0.11, 0.2).relu(), (1.5 * lin((4, 3, 4, 4), 0.23, 0.5)).relu()
EMBEDDED_S, EMBEDDED_T = lin((4, 6), 0.41, 0.3), lin((4, 8), 0.91, 0.7)
# FSP wants two layers of each network: the second is the first without its last channel.
PAIR_S, PAIR_T = (MAP_S, MAP_S[:, :2]), (MAP_T, MAP_T[:, :2])
SMALLER_S, SMALLER_T = ((first, F.avg_pool2d(second, 2)) for first, second in (PAIR_S, PAIR_T))


def compare() -> list[Comparison]:
    """All rows of the table, those of one loss together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two of modelopt's, on defaults that the table speaks of
        rows = [*_torchdistill_logits(), *_torchdistill_features(), *_torchdistill_relations()]
        rows += [*_modelopt(), *_textbrewer(), *_keras()]
    families = ("kd", "standardized", "dist", "hint", "attention", "vid", "fsp", "rkd", "similarity", "correlation")
    return sorted(rows, key=lambda row: (families.index(row.loss.split()[0].rstrip(",")), row.loss))


def markdown(rows: list[Comparison]) -> str:
    """The rows as a table."""
    lines = ["| loss | library | theirs | kdlib | | why |", "|---|---|---|---|---|---|"]
    for row in rows:
        verdict = "equal" if row.equal else "different"
        lines.append(f"| {row.loss} | {row.library} | {row.theirs:.7g} | {row.ours:.7g} | {verdict} | {row.why} |")
    return "\n".join(lines)


# -------------------- torchdistill


def _torchdistill(key: str, student: Any, teacher: Any, **options: Any) -> float:
    """A loss from torchdistill's registry, asked about the outputs of a module called "."."""
    loss = get_mid_level_loss({"key": key, "kwargs": options})
    return loss(_outputs(student), _outputs(teacher), Y).item()


def _outputs(value: Any) -> dict[str, dict[str, Any]]:
    named = value if isinstance(value, dict) else {".": value}
    return {path: {"output": output} for path, output in named.items()}


_PLACE = {"path": ".", "io": "output"}
_LOGITS = {f"{who}_module_{what}": place for who in ("student", "teacher") for what, place in _PLACE.items()}
_MAPS = {"student": _PLACE, "teacher": _PLACE}
_EMBEDDINGS = {"student_output_path": ".", "teacher_output_path": "."}


def _torchdistill_logits() -> list[Comparison]:
    kd, hard = losses.kd(S, LOGITS_T, T).item(), F.cross_entropy(S, Y).item()

    def theirs(alpha: float) -> float:
        return _torchdistill("KDLoss", S, LOGITS_T, **_LOGITS, temperature=T, alpha=alpha)

    return [
        Comparison("kd, alpha 0.5", "torchdistill KDLoss", theirs(0.5), (hard + kd) / 2),
        Comparison(
            "kd, alpha 0",
            "torchdistill KDLoss",
            theirs(0),
            kd,
            "`forward` returns the bare KL divergence when alpha is 0 or None, before T² is applied",
            kd / T**2,
        ),
        *_torchdistill_standardized(hard),
        Comparison(
            "dist",
            "torchdistill DISTLoss",
            _torchdistill("DISTLoss", S, LOGITS_T, **_LOGITS),
            losses.dist(S, LOGITS_T).item(),
        ),
    ]


def _torchdistill_standardized(hard: float) -> list[Comparison]:
    soft = losses.standardized_kd(S, LOGITS_T, T).item()
    # A standard deviation over C - 1 is larger by sqrt(C / (C - 1)), which acts as a temperature.
    wider = math.sqrt(S.shape[1] / (S.shape[1] - 1))
    changed = losses.standardized_kd(S, LOGITS_T, T * wider).item() / wider**2

    def theirs(alpha: float) -> float:
        return _torchdistill("LogitStdKDLoss", S, LOGITS_T, **_LOGITS, temperature=T, alpha=alpha)

    return [
        Comparison(
            "standardized kd, alpha 0.5",
            "torchdistill LogitStdKDLoss",
            theirs(0.5),
            (hard + soft) / 2,
            "`standardize` calls `logits.std`, which divides by C - 1; the paper, and kdlib, by C",
            (hard + changed) / 2,
        ),
        Comparison(
            "standardized kd, alpha 0",
            "torchdistill LogitStdKDLoss",
            theirs(0),
            soft,
            "C - 1 as in the next row, and no T² at alpha 0 as in KDLoss",
            changed / T**2,
        ),
    ]


def _torchdistill_features() -> list[Comparison]:
    difference = losses.attention_map(MAP_S) - losses.attention_map(MAP_T)
    regressor = Regressor4VID(3, 3, 3, eps=1e-5, init_pred_var=5.0).double()
    _, variance = regressor(MAP_S)  # its mean depends on random weights; the student's own map stands in for it
    attention = losses.attention(MAP_S, MAP_T).item()
    return [
        Comparison(
            "hint",
            "torchdistill MSELoss",
            _torchdistill_hint(),
            losses.hint(MAP_S, MAP_T).item(),
        ),
        Comparison(
            "attention",
            "torchdistill ATLoss, mode code",
            _torchdistill("ATLoss", MAP_S, MAP_T, at_pairs={"pair": _MAPS}),
            attention,
        ),
        Comparison(
            "attention",
            "torchdistill ATLoss, mode paper",
            _torchdistill("ATLoss", MAP_S, MAP_T, at_pairs={"pair": _MAPS}, mode="paper"),
            attention,
            "`compute_at_loss_paper` takes the norm of each sample's difference, not the mean of its squares",
            torch.linalg.vector_norm(difference, dim=1).mean().item(),
        ),
        Comparison(
            "vid",
            "torchdistill VIDLoss",
            _torchdistill("VIDLoss", (MAP_S, variance), MAP_T, feature_pairs={"pair": _MAPS}),
            losses.vid(MAP_S, regressor.soft_plus_param, MAP_T).item(),
        ),
    ]


def _torchdistill_hint() -> float:
    wrapper = {
        "key": "SimpleLossWrapper",
        "kwargs": {
            "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
            "target": {"is_from_teacher": True, "module_path": ".", "io": "output"},
        },
    }
    loss = get_mid_level_loss({"key": "MSELoss", "kwargs": {}}, wrapper)
    return loss(_outputs(MAP_S), _outputs(MAP_T), Y).item()


def _torchdistill_relations() -> list[Comparison]:
    return [*_torchdistill_fsp(), *_torchdistill_rkd(), *_torchdistill_kernels()]


def _torchdistill_fsp() -> list[Comparison]:
    places = {f"{who}_{which}": {"path": which, "io": "output"} for who in _MAPS for which in ("first", "second")}

    def theirs(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> float:
        named = [dict(zip(("first", "second"), pair, strict=True)) for pair in (student, teacher)]
        return _torchdistill("FSPLoss", *named, fsp_pairs={"pair": places})

    def columns(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> float:
        difference = losses.fsp_matrix(*student) - losses.fsp_matrix(*teacher)
        return difference.norm(dim=1).sum(dim=1).mean().item()

    pooled = [(F.adaptive_max_pool2d(a, b.shape[2:]), b) for a, b in (SMALLER_S, SMALLER_T)]
    return [
        Comparison(
            "fsp",
            "torchdistill FSPLoss",
            theirs(PAIR_S, PAIR_T),
            losses.fsp(PAIR_S, PAIR_T).item(),
            "`forward` adds the norms of the columns of the difference; the paper squares the entries",
            columns(PAIR_S, PAIR_T),
        ),
        Comparison(
            "fsp, maps of two sizes",
            "torchdistill FSPLoss",
            theirs(SMALLER_S, SMALLER_T),
            losses.fsp(SMALLER_S, SMALLER_T).item(),
            "norms of columns as above, and `adaptive_max_pool2d` (as in the paper) where kdlib averages",
            columns(*pooled),
        ),
    ]


def _torchdistill_rkd() -> list[Comparison]:
    def theirs(distance: float, angle: float) -> float:
        options = {"dist_factor": distance, "angle_factor": angle, "reduction": "mean"}
        return _torchdistill("RKDLoss", EMBEDDED_S, EMBEDDED_T, **_EMBEDDINGS, **options)

    name, embedded = "torchdistill RKDLoss", (EMBEDDED_S, EMBEDDED_T)
    return [
        Comparison("rkd distance", name, theirs(1, 0), losses.rkd_distance(*embedded).item()),
        Comparison("rkd angle", name, theirs(0, 1), losses.rkd_angle(*embedded).item()),
    ]


def _torchdistill_kernels() -> list[Comparison]:
    embedded = (EMBEDDED_S, EMBEDDED_T)
    grams = [F.normalize(rows @ rows.T, p=1, dim=1) for rows in embedded]
    kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    options = {"student_linear_path": ".", "teacher_linear_path": ".", "kernel_config": kernel}
    powers = [[0.8**p / math.factorial(p) * (rows @ rows.T) ** p for p in range(3)] for rows in embedded]
    student, teacher = (math.exp(-0.8) * sum(terms) for terms in powers)
    return [
        Comparison(
            "similarity",
            "torchdistill SPKDLoss",
            _torchdistill("SPKDLoss", *embedded, **_EMBEDDINGS, reduction="batchmean"),
            losses.similarity(*embedded).item(),
            "`normalize(matrix, 1)` passes 1 as p, not as dim: the rows have L1 norm 1, not L2",
            (grams[0] - grams[1]).square().mean().item(),
        ),
        Comparison(
            "correlation congruence",
            "torchdistill CCKDLoss",
            _torchdistill("CCKDLoss", *embedded, **options, reduction="batchmean"),
            losses.correlation_congruence(*embedded).item(),
            "the rows are not brought to norm 1, though the series assumes it, and `torch.dist` is divided by B² "
            "without being squared",
            torch.dist(student, teacher).item() / len(student) ** 2,
        ),
    ]


# -------------------- modelopt


def _modelopt() -> list[Comparison]:
    kd, name = losses.kd(S, LOGITS_T, T).item(), "modelopt LogitsDistillationLoss"

    def theirs(**options: str) -> Tensor:
        return mtd.LogitsDistillationLoss(temperature=T, **options)(S, LOGITS_T)

    return [
        Comparison(
            "kd, alpha 0",
            name,
            theirs().item(),
            kd,
            'the default `reduction="mean"` divides by B·C, so the loss is C times too small',
            kd / S.shape[1],
        ),
        Comparison("kd, alpha 0", f"{name}, batchmean", theirs(reduction="batchmean").item(), kd),
        Comparison(
            "kd, alpha 0.5",
            f"{name}, batchmean, StaticLossBalancer",
            _balanced(theirs(reduction="batchmean")),
            F.cross_entropy(S, Y).item() / 2 + kd / 2,
        ),
        Comparison(
            "hint",
            "modelopt, nn.MSELoss as criterion",
            nn.MSELoss()(MAP_S, MAP_T).item(),
            losses.hint(MAP_S, MAP_T).item(),
        ),
    ]


def _balanced(soft: Tensor) -> float:
    balancer = mtd.StaticLossBalancer(kd_loss_weight=0.5)
    return balancer({"student_loss": F.cross_entropy(S, Y), "LogitsDistillationLoss_0": soft}).item()


# -------------------- textbrewer


def _textbrewer() -> list[Comparison]:
    kd, hard = losses.kd(S, LOGITS_T, T).item(), F.cross_entropy(S, Y).item()
    softened = losses.soften(LOGITS_T, T)
    entropy = -(softened * softened.log()).sum(dim=1).mean().item()
    # B x positions x channels, as a sequence of hidden states has it.
    states_s, states_t = ([layer.flatten(2).mT for layer in pair] for pair in (PAIR_S, PAIR_T))
    return [
        Comparison(
            "kd, alpha 0",
            "textbrewer kd_ce_loss",
            kd_ce_loss(S, LOGITS_T, T).item(),
            kd,
            "a cross-entropy: it keeps the teacher's entropy, a constant, and has no T²",
            kd / T**2 + entropy,
        ),
        Comparison(
            "kd, alpha 0.5",
            "textbrewer GeneralDistiller",
            _general_distiller(hard_label_weight=0.5, kd_loss_weight=0.5),
            hard / 2 + kd / 2,
            "as above: no distiller multiplies by T² either",
            hard / 2 + (kd / T**2 + entropy) / 2,
        ),
        Comparison(
            "hint", "textbrewer hidden_mse", hid_mse_loss(MAP_S, MAP_T).item(), losses.hint(MAP_S, MAP_T).item()
        ),
        Comparison("fsp", "textbrewer fsp", fsp_loss(states_s, states_t).item(), losses.fsp(PAIR_S, PAIR_T).item()),
    ]


def _general_distiller(**weights: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        distiller = textbrewer.GeneralDistiller(
            textbrewer.TrainingConfig(device="cpu", output_dir=folder),
            textbrewer.DistillationConfig(temperature=T, **weights),
            model_T=nn.Identity(),
            model_S=nn.Identity(),
            adaptor_T=lambda batch, outputs: outputs,
            adaptor_S=lambda batch, outputs: outputs,
        )
    loss, _ = distiller.compute_loss({"logits": [S], "losses": [F.cross_entropy(S, Y)]}, {"logits": [LOGITS_T]})
    return loss.item()


# -------------------- keras


def _keras() -> list[Comparison]:
    kd, hard, name = losses.kd(S, LOGITS_T, T).item(), F.cross_entropy(S, Y).item(), "keras LogitsDistillation"
    divergence = keras.losses.KLDivergence(dtype="float64")
    student, teacher = ((logits / T).clamp(keras.config.epsilon(), 1) for logits in (S, LOGITS_T))

    def theirs(**options: Any) -> float:
        return keras.distillation.LogitsDistillation(T, **options).compute_loss(LOGITS_T, S).item()

    return [
        Comparison(
            "kd, alpha 0",
            name,
            theirs(),
            kd,
            "`compute_loss` takes softmax and T² for an instance of `KLDivergence` only, and the default "
            '`"kl_divergence"` becomes a function: the logits, divided by T and cut to [1e-7, 1], stand for the '
            "probabilities",
            (teacher * (teacher / student).log()).sum(dim=1).mean().item(),
        ),
        Comparison("kd, alpha 0", f"{name}, KLDivergence()", theirs(loss=divergence), kd),
        Comparison(
            "kd, alpha 0.5",
            "keras Distiller, KLDivergence()",
            _keras_distiller(keras.distillation.LogitsDistillation(T, divergence)),
            hard / 2 + kd / 2,
        ),
        Comparison(
            "hint",
            "keras FeatureDistillation",
            keras.distillation.FeatureDistillation().compute_loss(MAP_T, MAP_S).item(),
            losses.hint(MAP_S, MAP_T).item(),
        ),
    ]


def _keras_distiller(soft: Any) -> float:
    """The loss of a Distiller whose networks return their half of the input, which holds both logits."""
    both = keras.Input((2, S.shape[1]), dtype="float64")
    networks = [keras.Model(both, both[:, place]) for place in range(2)]
    distiller = keras.distillation.Distiller(networks[1], networks[0], soft, student_loss_weight=0.5)
    distiller.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64"))
    return distiller.compute_loss(torch.stack([S, LOGITS_T], dim=1), Y).item()
