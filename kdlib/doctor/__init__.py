"""Finds the mistakes of distillation that no error reports: losses that fall and mean nothing.

report = doctor.examine(distiller, loader, optimizer=optimizer)
print(report)
"""

from __future__ import annotations

from kdlib.doctor.examine import CHECKS, examine
from kdlib.doctor.report import Finding, Report

__all__ = ["CHECKS", "Finding", "Report", "examine"]
