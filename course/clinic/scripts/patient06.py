"""Distils at T = 4; nine tenths of the loss are for the labels. The author: "I ask once, which saves hours." """

# ruff: noqa: D103

import torch
import torch.nn.functional as F
from torch import Tensor

from course.clinic.ward import LEARNING_RATE, Batch, Loader, Terms, new_student, new_teacher

T, ALPHA = 4.0, 0.9
teacher, student, loader = new_teacher().eval(), new_student(), Loader(shuffle=True)
optimizer = torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=0.9)

with torch.no_grad():
    stored = torch.cat([teacher(images) for images, _, _ in loader])


def answers(batch: Batch) -> Tensor:
    _, _, numbers = batch
    return stored[numbers]


def loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Terms:
    targets = F.softmax(teacher_logits / T, dim=1)
    soft = F.kl_div(F.log_softmax(logits / T, dim=1), targets, reduction="batchmean")
    return {"hard": ALPHA * F.cross_entropy(logits, labels), "soft": (1 - ALPHA) * T**2 * soft}
