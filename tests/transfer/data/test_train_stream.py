"""The training stream is a pure function of the seed: the same on any number of processes, exact on resume."""

import json
import multiprocessing
import os
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.common import distributed
from tests.support import detection_data
from transfer.config.load import load_config
from transfer.data import datasets, train_stream


def _config(*overrides: str):
    return load_config("transfer/coco_R50_FPN.yaml", ["MODEL.INIT", "random", *overrides])


def _batches(portrait: np.ndarray, cfg, start: int = 0):
    return list(islice(iter(train_stream._Batches(portrait, cfg, start)), 12))


def test_processes_share_the_batches_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    portrait = np.arange(37) % 3 == 0
    cfg = _config("SOLVER.IMS_PER_BATCH", "16")
    alone = _batches(portrait, cfg)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "world_size", lambda: 4)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(_batches(portrait, cfg))
    assert alone == [[item for share in shares for item in share[i]] for i in range(12)]


def test_resume_goes_on_where_it_stopped() -> None:
    portrait = np.zeros(10, dtype=bool)
    cfg = _config("SOLVER.IMS_PER_BATCH", "4")
    assert _batches(portrait, cfg)[5:] == _batches(portrait, cfg, start=5)[:7]


def test_each_epoch_holds_each_image_once_in_a_new_order() -> None:
    items = [
        item
        for batch in _batches(np.zeros(8, dtype=bool), _config("SOLVER.IMS_PER_BATCH", "4"))
        for item in batch
    ]
    epochs = [[index for index, _ in items[i : i + 8]] for i in range(0, 24, 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [position for _, position in items] == list(range(48))


def test_pairs_have_one_orientation_as_on_the_papers_gpus() -> None:
    portrait = np.arange(40) % 4 == 0
    for batch in _batches(portrait, _config("SOLVER.IMS_PER_BATCH", "16")):
        kinds = [bool(portrait[index]) for index, _ in batch]
        assert kinds[::2] == kinds[1::2]


def test_augmentation_depends_on_seed_and_position_only(tmp_path: Path) -> None:
    data = detection_data.write_coco(tmp_path / "a")
    cfg = _config(
        *detection_data.TINY, *detection_data.custom(data, data), "INPUT.MIN_SIZE_TRAIN", "(64, 80, 96)"
    )
    datasets.prepare(cfg)
    first = list(islice(train_stream.training_batches(cfg, 0), 6))
    np.random.rand(7)  # what others draw from the global generator does not matter
    again = list(islice(train_stream.training_batches(cfg, 3), 3))
    for expected, got in zip(first[3:], again, strict=True):
        for a, b in zip(expected, got, strict=True):
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
    assert len({tuple(item["image"].shape) for batch in first for item in batch}) > 2  # and it does augment


def test_repeat_factors_are_detectron2s_and_met_in_expectation(tmp_path: Path) -> None:
    """Of 8 images, class "rare" is in one (f = 1/8) and "often" in all: with threshold 0.5 sqrt(0.5 / (1/8)) = 2."""
    annotations, images = detection_data.write_coco(tmp_path / "a", images=8, classes=("often", "rare"))
    content = json.loads(annotations.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 3
    content["annotations"][0]["category_id"] = 6
    annotations.write_text(json.dumps(content))
    data = annotations, images
    cfg = _config(
        *detection_data.TINY, *detection_data.custom(data, data),
        "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", "0.5",
    )  # fmt: skip
    datasets.prepare(cfg)
    assert train_stream.read(cfg).factors.tolist() == [2, 1, 1, 1, 1, 1, 1, 1]

    factors = np.array([1.0, 1.25, 2.5])
    batches = train_stream._Batches(np.zeros(3, dtype=bool), _config(), 0, factors=factors)
    epochs = [batches._order(epoch) for epoch in range(4000)]
    counts = np.array([np.bincount(epoch, minlength=3) for epoch in epochs])
    assert set(counts[:, 0]) == {1} and set(counts[:, 1]) == {1, 2} and set(counts[:, 2]) == {2, 3}
    # a Bernoulli mean over 4000 epochs: standard deviation at most 0.5 / sqrt(4000) = 0.008
    np.testing.assert_allclose(counts.mean(0), factors, atol=0.04)
    assert batches._order(7) == epochs[7] != epochs[8]
    again = train_stream._Batches(np.zeros(3, dtype=bool), _config("SEED", "1"), 0, factors=factors)
    assert [again._order(epoch) for epoch in range(9)] != epochs[:9]


def test_repeated_images_are_augmented_anew_and_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = _config("SOLVER.IMS_PER_BATCH", "4")

    def batches(start: int = 0) -> list[list[tuple[int, int]]]:
        items = train_stream._Batches(
            np.zeros(5, dtype=bool), cfg, start, factors=np.array([1, 1.5, 2, 3.3, 1])
        )
        return list(islice(iter(items), 12))

    alone = batches()
    assert [position for batch in alone for _, position in batch] == list(range(48))
    assert alone[5:] == batches(5)[:7]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(batches())
    assert alone == [first + second for first, second in zip(*shares, strict=True)]


def _interrupted_worker() -> None:
    train_stream.start_worker(0)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_does_not_end_a_worker_whose_images_are_needed() -> None:
    """A terminal sends it to all processes; the main one lets the iteration end."""
    worker = multiprocessing.get_context("fork").Process(target=_interrupted_worker)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
