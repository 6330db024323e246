"""Distils at T = 4, without labels. The author: "With alpha = 0.1 it was fine, with alpha = 0 it learns slowly." """

# ruff: noqa: D103

import torch
import torch.nn.functional as F
from torch import Tensor

from course.clinic.ward import LEARNING_RATE, Batch, Loader, Terms, new_student, new_teacher

T, ALPHA = 4.0, 0.0
teacher, student, loader = new_teacher().eval(), new_student(), Loader()
optimizer = torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=0.9)


def kd_loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Terms:
    targets = F.softmax(teacher_logits / T, dim=1)
    soft = F.kl_div(F.log_softmax(logits / T, dim=1), targets, reduction="batchmean")
    if not ALPHA:
        return {"soft": soft}
    return {"hard": ALPHA * F.cross_entropy(logits, labels), "soft": (1 - ALPHA) * T**2 * soft}


def step(batch: Batch) -> Terms:
    images, labels, _ = batch
    with torch.no_grad():
        teacher_logits = teacher(images)
    return kd_loss(student(images), teacher_logits, labels)
