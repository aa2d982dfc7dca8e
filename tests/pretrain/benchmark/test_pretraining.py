"""One cell of pre-training, as tiny as it gets: what is timed in turns, and what is reported."""

import time

import pytest
import torch

from pretrain.benchmark import pretraining
from pretrain.benchmark.pretraining import Case, Extent, measure
from pretrain.benchmark.step import PHASES
from tests.support.pretrain_runs import MakeFolder


def test_a_cell_has_all_figures(image_folder: MakeFolder) -> None:
    images = image_folder(8)
    found = measure(
        Case(4, "fp32", False),
        Extent(2, 0.01, time.monotonic() + 600),
        images=str(images),
        device="cpu",
        tiny=True,
    )
    speeds = found["pairs_per_second"]
    assert speeds.keys() == {"resident", "jpeg_cpu", "jpeg_gpu", "published"}
    assert all(len(figure["values"]) == 2 and figure["low"] > 0 for figure in speeds.values())
    ratios = [a / b for a, b in zip(speeds["jpeg_cpu"]["values"], speeds["published"]["values"], strict=True)]
    assert found["ratio"]["values"] == pytest.approx(ratios)
    spent = found["phases_ms"]
    inside = spent["forward q"] + spent["forward k"] + spent["backward"]
    assert spent.keys() == set(PHASES)
    assert found["share_outside_encoders"] == pytest.approx(
        1 - inside / (sum(spent.values()) - spent["data"])
    )
    assert found["published_failed"] is None and found["peak_gb"] == {"ours": None, "published": None}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cell_on_a_gpu(image_folder: MakeFolder) -> None:
    """As on the CPU, with the memory, and with MODEL.COMPILE."""
    images = str(image_folder(8))
    for compiled in (False, True):
        extent = Extent(1, 0.01, time.monotonic() + 600)
        found = measure(Case(4, "bf16", compiled), extent, images=images, device="cuda", tiny=True)
        assert found["peak_gb"]["ours"] > 0 and (found["published_failed"] is None) == (not compiled)


def test_sources_take_turns_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block takes a minute; the third round would begin after the deadline, the first one always begins."""
    now, calls = [0.0], []
    monkeypatch.setattr(pretraining.time, "monotonic", lambda: now[0])

    def block(name: str) -> float:
        calls.append(name)
        now[0] += 60
        return 1.0

    sources = {name: lambda name=name: block(name) for name in "ab"}
    assert pretraining._in_turns(sources, Extent(5, 1.0, deadline=200)) == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert calls == ["a", "b", "a", "b"]
    assert pretraining._in_turns(sources, Extent(5, 1.0, deadline=0)) == {"a": [1.0], "b": [1.0]}


def test_files_are_timed_in_whole_bursts_of_busy_workers() -> None:
    """A loader that is started for the block gets more batches than are used, and is shut down after it."""
    asked, taken, ended = [], [], []

    class Loader:
        def __next__(self) -> int:
            return len(taken)

        def _shutdown_workers(self) -> None:
            ended.append(True)

    def start(count: int) -> Loader:
        asked.append(count)
        return Loader()

    source = pretraining._Source(start, taken.append)
    assert pretraining._from_files(source, 6, warm_up=3, device=torch.device("cpu")) >= 0
    assert taken == list(range(9)) and asked[0] > 9 and ended == [True]
