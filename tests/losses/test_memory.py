"""What a loss keeps for the gradient: a user with many layers, classes or pixels runs out of it first."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdlib.losses import dkd, kd, layer_correlation, layer_information, vid


def kept(loss: Callable[[], Tensor]) -> int:
    """Bytes of the tensors that the graph of a loss holds, each storage once."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = loss()
    assert graph.requires_grad
    return sum(held.values())


def layers(count: int, learns: bool) -> list[Tensor]:
    return [torch.randn(64, 8, requires_grad=learns) for _ in range(count)]


@pytest.mark.parametrize("loss", [layer_correlation, layer_information])
def test_relations_of_layers_keep_matrices_for_a_layer_and_not_for_a_pair(loss: Callable[..., Tensor]) -> None:
    sizes = {count: kept(lambda count=count: loss(layers(count, True), layers(count, False))) for count in (4, 16)}
    assert sizes[16] < 6 * sizes[4]  # four times as many layers, sixteen times as many pairs


def test_dkd_keeps_no_table_of_indices() -> None:
    student, teacher = torch.randn(8, 5000, requires_grad=True), torch.randn(8, 5000)
    labels = torch.arange(8)
    assert kept(lambda: dkd(student, teacher, labels)) < 3 * kept(lambda: kd(student, teacher))


def test_vid_keeps_no_map_but_the_difference() -> None:
    mean, raw = torch.randn(4, 16, 32, 32, requires_grad=True), torch.zeros(16, requires_grad=True)
    teacher = torch.randn(4, 16, 32, 32)
    assert kept(lambda: vid(mean, raw, teacher)) < 1.1 * teacher.numel() * 4
