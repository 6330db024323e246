"""Student and method as one module: all that is trained."""

from __future__ import annotations

from torch import Tensor, nn

from kdlib.devices import DeviceConfig
from kdlib.hooks import FeatureExtractor, ModelOutput
from kdlib.methods import Method


class Distiller(nn.Module):
    """From images, labels and the teacher's output to named loss terms, in one forward pass.

    extractor: calls the student and reads its layers. Its parameters are those of the student and of the method's
    projectors, which is what DistributedDataParallel has to average.
    """

    def __init__(self, extractor: FeatureExtractor, method: Method, config: DeviceConfig) -> None:
        super().__init__()
        self.student, self.method = extractor.model, method
        self.extractor, self.config = extractor, config

    def forward(
        self, images: Tensor, labels: Tensor, teacher_output: ModelOutput | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the loss, each a scalar, and the student's logits (B x C), detached.

        Raises ValueError for a term that is no scalar.
        """
        with self.config.autocast():
            output = self.extractor(images)
        output = output.float()
        terms = self.method(output, teacher_output, labels)
        for name, term in terms.items():
            if term.ndim:
                raise ValueError(
                    f"The term {name!r} of the loss has shape {tuple(term.shape)}; a loss gives one number for a "
                    "batch: take its .mean()."
                )
        return terms, output.logits.detach()
