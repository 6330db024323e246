"""Distils at T = 4; a tenth of the loss is for the labels. The author: "It agrees with its teacher like no other." """

# ruff: noqa: D103

import torch
import torch.nn.functional as F

from course.clinic.ward import LEARNING_RATE, Batch, Loader, Terms, new_student, new_teacher

T, ALPHA = 4.0, 0.1
teacher, student, loader = new_teacher().eval(), new_student(), Loader()
optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], LEARNING_RATE, momentum=0.9)


def step(batch: Batch) -> Terms:
    images, labels, _ = batch
    teacher_probabilities = F.softmax(teacher(images) / T, dim=1)
    logits = student(images)
    student_probabilities = F.softmax(logits / T, dim=1)
    ratio = teacher_probabilities.log() - student_probabilities.log()
    soft = (teacher_probabilities * ratio).sum(dim=1).mean()
    return {"hard": ALPHA * F.cross_entropy(logits, labels), "soft": (1 - ALPHA) * T**2 * soft}
