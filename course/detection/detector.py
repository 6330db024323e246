"""A centre-point detector (Zhou et al. 2019, arXiv:1904.07850), its loss, and the methods by which a student learns.

The network, the loss and the distillation all work on one tensor of maps, N x (C + 4) x H x W (see `centers`), so kdlib
trains and distils it as a task of numbers: task="regression", with the losses given as functions.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.detection.centers import BOX_CHANNELS, NUM_CLASSES
from kdlib.adapters import Adapter
from kdlib.errors import check_real, check_whole, unknown_name
from kdlib.guards import keep_modes
from kdlib.methods import Feature, HardLabels, Logit, Method
from kdlib.models import BasicBlock

TASK = "regression"
SIZE_WEIGHT, OFFSET_WEIGHT = 0.1, 1.0  # lambda of the paper
INITIAL_LOGIT = -3.0  # of the heat: one cell in a hundred is a centre, and half of all cells would drown the others
FEATURE_LAYER = "neck"
METHODS = ("hard", "heat map", "features", "shuffled")
AT_ONCE = 250  # canvases of one pass that measures


class Detector(nn.Module):
    """Canvases N x 1 x H x W, normalised, to maps N x (C + 4) x H/4 x W/4, the heat as logits.

    Three stages at strides 4, 8 and 8; the last is enlarged and added to the first. width: channels of the first
    convolution; the stages have 2, 4 and 4 times as many. Raises ValueError for a width that is no whole number.
    """

    def __init__(self, width: int) -> None:
        check_whole(1, 1024, width=width)
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.stage1 = BasicBlock(width, 2 * width, 2)
        self.stage2 = BasicBlock(2 * width, 4 * width, 2)
        self.stage3 = BasicBlock(4 * width, 4 * width, 1)
        self.lateral = nn.Conv2d(4 * width, 2 * width, 1)
        self.neck = BasicBlock(2 * width, 2 * width, 1)
        maps = nn.Conv2d(2 * width, NUM_CLASSES + BOX_CHANNELS, 1)
        maps.bias = nn.Parameter(torch.tensor([INITIAL_LOGIT] * NUM_CLASSES + [0.0] * BOX_CHANNELS))
        self.head = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(inplace=True), maps)

    def forward(self, canvases: Tensor) -> Tensor:
        fine = self.stage1(self.stem(canvases))
        coarse = self.lateral(self.stage3(self.stage2(fine)))
        return self.head(self.neck(fine + F.interpolate(coarse, fine.shape[2:], mode="nearest")))


def normalise(canvases: Tensor) -> Tensor:
    """Bytes to numbers around 0. canvases: uint8, N x 1 x H x W. Returns float32 of the same shape."""
    return canvases.float().sub_(64).div_(64)


def adapter() -> Adapter:
    """How kdlib reads a batch of (canvases, maps, numbers of the scenes)."""
    return Adapter(inputs=lambda batch: normalise(batch[0]), labels=1, indices=2)


# --- losses: functions of the student's maps and of what it should give


def detection_loss(output: Tensor, target: Tensor) -> Tensor:
    """The loss on the labels: focal loss of the heat map, and L1 of size and offset at the centres; a scalar.

    output: N x (C + 4) x H x W, the heat as logits. target: the same shape, from `centers.encode`. Each part is a sum
    divided by the number of objects. Raises ValueError for shapes that differ.
    Paper: Zhou et al. 2019, arXiv:1904.07850, eq. 1 to 4.
    """
    if output.shape != target.shape or output.ndim != 4:
        raise ValueError(
            f"The detector gives maps of {tuple(output.shape)}, the target has {tuple(target.shape)}: both are "
            "N x (C + 4) x H x W. Encode the boxes for canvases of this size: centers.encode(boxes, classes, size)."
        )
    classes = output.shape[1] - BOX_CHANNELS
    heat, values = target[:, :classes], target[:, classes:]
    centers = (heat == 1).any(1, keepdim=True)
    objects = centers.sum().clamp(min=1)
    distance = ((output[:, classes:] - values).abs() * centers).sum((0, 2, 3)) / objects
    boxes = SIZE_WEIGHT * distance[:2].sum() + OFFSET_WEIGHT * distance[2:].sum()
    return focal_loss(output[:, :classes], heat) + boxes


def focal_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Focal loss of a heat map, a sum divided by the number of centres; easy cells and those near a centre count less.

    logits: N x C x H x W; heat: the same shape, in [0, 1], exactly 1 at the centres.
    Paper: eq. 1 with its exponents, 2 and 4.
    """
    p = logits.sigmoid()
    at_center = (1 - p) ** 2 * F.logsigmoid(logits)
    elsewhere = (1 - heat) ** 4 * p**2 * F.logsigmoid(-logits)
    is_center = heat == 1
    return -torch.where(is_center, at_center, elsewhere).sum() / is_center.sum().clamp(min=1)


def heat_map_kd(student: Tensor, teacher: Tensor, temperature: float = 1.0, focus: float = 0.0) -> Tensor:
    """Distillation of the heat map: at every cell and class the binary KL from teacher to student, times T^2; a scalar.

    student, teacher: maps, N x (C + 4) x H x W. The sum over the cells and classes of a scene, the mean over scenes.
    focus: a cell counts by the teacher's highest heat there to this power; 0: all alike. Of 256 cells some three hold a
    centre, and the others, faint as each is, together make up most of the plain sum.
    Raises ValueError for shapes that differ, TypeError or ValueError for a temperature or focus out of range.
    """
    check_real(temperature=temperature, focus=focus)
    if student.shape != teacher.shape or not temperature > 0 or not focus >= 0:
        raise ValueError(
            f"Two heat maps of one shape are compared, at T above 0 and a focus of at least 0; got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}, T {temperature} and focus {focus}."
        )
    classes = student.shape[1] - BOX_CHANNELS
    s, t = (maps[:, :classes] / temperature for maps in (student, teacher))
    p = t.sigmoid()
    kl = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    counts = teacher[:, :classes].sigmoid().amax(1, keepdim=True) ** focus
    return temperature**2 * (counts * kl).sum() / len(student)


def method_named(
    name: str, *, alpha: float = 0.5, temperature: float = 1.0, focus: float = 1.0, weight: float = 1.0
) -> Method:
    """What a student is trained by: one of METHODS, as a method of kdlib.

    alpha, temperature, focus: of the heat map. weight: of the features. "shuffled" is as "heat map", for
    a teacher that answers for other scenes. Raises ValueError for another name.
    """
    if name == "hard":
        return HardLabels(hard=detection_loss)
    if name in ("heat map", "shuffled"):
        soft = partial(heat_map_kd, temperature=temperature, focus=focus)
        return Logit(temperature, alpha, loss=soft, hard=detection_loss)
    if name == "features":
        return HardLabels(hard=detection_loss) + weight * Feature({FEATURE_LAYER: FEATURE_LAYER})
    raise unknown_name("method", name, METHODS)


@torch.no_grad()
def predict(model: nn.Module, canvases: Tensor) -> Tensor:
    """The maps of a detector for canvases, uint8, N x 1 x H x W, in eval mode; modes are as before afterwards."""
    with keep_modes(model):
        model.eval()
        return torch.cat([model(normalise(part)).float() for part in canvases.split(AT_ONCE)])
