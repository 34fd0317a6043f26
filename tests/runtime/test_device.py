"""How batches get to a device: nothing happens on a CPU; on CUDA from pinned memory, on a stream of their own."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from mst.runtime.device import select_device, staged, to_device

CPU, CARD = torch.device("cpu"), torch.device("cuda:0")
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_cpu_pays_nothing() -> None:
    def prepare(batch: Tensor) -> Tensor:
        return batch

    tensor = torch.zeros(3)
    assert staged(prepare, CPU) is prepare
    assert to_device(tensor, CPU) is tensor


@pytest.mark.parametrize(("name", "number"), [("auto", 3), ("cuda", 3), ("cuda:1", 1)])
def test_a_card_has_its_number(name: str, number: int) -> None:
    """Another thread than the one that chose a card would take card 0."""
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.device_count", return_value=4),
        mock.patch("torch.cuda.current_device", return_value=3),
    ):
        assert select_device(name) == torch.device("cuda", number)


def test_work_is_done_on_its_own_stream_before_it_is_handed_over() -> None:
    said: list[str] = []
    stream, made = mock.MagicMock(name="stream"), mock.MagicMock(spec=Tensor, device=CARD)
    stream.synchronize.side_effect = lambda: said.append("done")
    made.record_stream.side_effect = lambda where: said.append(f"read on {where}")
    inside = mock.MagicMock()
    inside.return_value.__enter__.side_effect = lambda: said.append("begin")
    inside.return_value.__exit__.side_effect = lambda *_: said.append("end")
    with (
        mock.patch("torch.cuda.Stream", return_value=stream),
        mock.patch("torch.cuda.stream", inside),
        mock.patch("torch.cuda.default_stream", return_value="the steps' stream"),
    ):
        prepare = staged(lambda batch: (said.append(batch), made)[1:], CARD)
        assert prepare("batch") == (made,)
    inside.assert_called_once_with(stream)
    assert said == ["begin", "batch", "end", "done", "read on the steps' stream"]


@pytest.mark.cuda
@needs_card
def test_batches_arrive_whole_while_the_card_works() -> None:
    work = torch.randn(4096, 4096, device=CARD)
    prepare = staged(lambda batch: to_device(batch, CARD) * 2, CARD)
    for number in range(20):
        for _ in range(5):
            work @ work
        batch = torch.full((1 << 20,), number, dtype=torch.float32)
        arrived = prepare(batch)
        assert bool((arrived == 2 * number).all())
