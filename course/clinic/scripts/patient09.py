"""Shelves of six to eight pictures; T = 4, a tenth for the labels. The author: "All my curves are fine." """

# ruff: noqa: D103

import torch
import torch.nn.functional as F

from course.clinic.ward import LEARNING_RATE, Batch, Loader, Terms, accuracy, new_student, new_teacher

T, ALPHA = 4.0, 0.1
teacher, student, loader = new_teacher().eval(), new_student(), Loader(shelves=True)
optimizer = torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=0.9)
student.eval()
before_training = accuracy(student)


def step(batch: Batch) -> Terms:
    images, labels, _ = batch
    with torch.no_grad():
        teacher_logits = teacher(images)
    logits = student(images)
    hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    targets = F.softmax(teacher_logits / T, dim=2)
    divergences = F.kl_div(F.log_softmax(logits / T, dim=2), targets, reduction="none").sum(dim=2)
    soft = divergences.mean()
    return {"hard": ALPHA * hard, "soft": (1 - ALPHA) * T**2 * soft}
