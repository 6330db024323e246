"""Distils at T = 4; half of the loss is for the labels. The author: "It learns the teacher's answers at once!" """

# ruff: noqa: D103

import torch
import torch.nn.functional as F

from course.clinic.ward import LEARNING_RATE, Batch, Loader, Terms, new_student, new_teacher

T, ALPHA = 4.0, 0.5
teacher, student, loader = new_teacher().eval(), new_student(), Loader()
optimizer = torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=0.9)


def step(batch: Batch) -> Terms:
    images, labels, _ = batch
    output = student(images)
    with torch.no_grad():
        large_logits = teacher(images)
    targets = F.softmax(large_logits / T, dim=1)
    log_probabilities = F.log_softmax(large_logits / T, dim=1)
    soft = F.kl_div(log_probabilities, targets, reduction="batchmean")
    return {"hard": ALPHA * F.cross_entropy(output, labels), "soft": (1 - ALPHA) * T**2 * soft}
