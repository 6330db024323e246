"""Average precision of detections, as COCO defines it, by torchmetrics and pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from course.detection.scenes import Scenes


@dataclass(frozen=True)
class AveragePrecision:
    """Means over the classes, in [0, 1].

    ap: mean over intersections over union from 0.5 to 0.95, COCO's AP. ap50, ap75: at 0.5 and at 0.75.
    """

    ap: float
    ap50: float
    ap75: float


def average_precision(detections: Sequence[dict[str, Tensor]], scenes: Scenes) -> AveragePrecision:
    """How good the detections are, those of scene i at place i.

    detections: boxes (k x 4, pixels), scores and labels of each scene, as `centers.decode` gives them.
    Raises ValueError for another number of detections than scenes; ImportError without pycocotools.
    """
    if len(detections) != len(scenes) or len(scenes) == 0:
        raise ValueError(
            f"There are detections of {len(detections)} scenes, and {len(scenes)} scenes: give those of each, in order."
        )
    try:
        import pycocotools  # noqa: F401
        from torchmetrics.detection import MeanAveragePrecision
    except ImportError as error:
        raise ImportError('Average precision needs pycocotools: pip install "kdlib[course]".') from error
    metric = MeanAveragePrecision(backend="pycocotools")
    truth = [{"boxes": scene.boxes, "labels": scene.classes} for scene in (scenes[i] for i in range(len(scenes)))]
    metric.update(list(detections), truth)
    found = metric.compute()
    return AveragePrecision(*(max(0.0, float(found[name])) for name in ("map", "map_50", "map_75")))
