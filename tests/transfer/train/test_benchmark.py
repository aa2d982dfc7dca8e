"""The speed comparison: both loops train the same model, and the speeds are computed from their blocks."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog

from pretrain.common.errors import UserError
from tests.support import detection_data
from tests.support.scripts import run_script
from transfer.config.load import load_config
from transfer.train import benchmark
from transfer.train import benchmark as train_benchmark

SMALL = [
    *detection_data.TINY, *detection_data.NARROW, "MODEL.INIT", "random",
]  # fmt: skip


def test_blocks_alternate_and_the_first_pair_is_not_counted() -> None:
    calls = []
    loops = {name: lambda name=name: calls.append(name) for name in ("ours", "plain")}
    speeds = benchmark._interleave(loops, iterations=6, rounds=2)
    assert calls == (["ours"] * 2 + ["plain"] * 2) + 2 * (["ours"] * 6 + ["plain"] * 6)
    assert [len(values) for values in speeds.values()] == [2, 2]


def test_both_loops_take_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step on the same batch, with the same sampling of proposals, gives the same weights."""
    data = detection_data.write_coco(tmp_path / "a", images=2)
    # in the same memory format: a rounding error could swap two proposals
    same = ["OUTPUT_DIR", str(tmp_path), "MODEL.CHANNELS_LAST", "False"]
    overrides = [*SMALL, *detection_data.custom(data, data), *same]
    cfg = load_config("transfer/coco_R50_FPN.yaml", overrides)
    benchmark._find_data(cfg, tmp_path)
    with benchmark.EventStorage(), benchmark.Progress(cfg, 0) as log:
        state, batches = benchmark._our_state(cfg)
        batch = next(batches)
        monkeypatch.setattr(benchmark, "build_detection_train_loader", lambda *_, **__: [batch])
        kept = []
        build = benchmark.build_model
        monkeypatch.setattr(benchmark, "build_model", lambda cfg: kept.append(build(cfg)) or kept[-1])
        plain = benchmark._plain_loop(cfg)
        for mine, theirs in zip(state.model.parameters(), kept[0].parameters(), strict=True):
            assert torch.equal(mine, theirs)
        first = state.model.backbone.bottom_up.stem.conv1.weight.detach().clone()
        benchmark._ours(cfg, state, iter([batch]), log)
        benchmark.seed(cfg.SEED, 0)
        plain()
    for mine, theirs in zip(state.model.parameters(), kept[0].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=5e-5)
    assert not torch.equal(state.model.backbone.bottom_up.stem.conv1.weight, first)


def test_synthetic_set_is_a_coco_set_with_masks_in_their_boxes(tmp_path: Path) -> None:
    path, images = train_benchmark.write_shapes(tmp_path, side=96, images=4, objects=3)
    overrides = [*SMALL, *detection_data.custom((path, images), (path, images))]
    cfg = load_config("transfer/coco_R50_FPN.yaml", overrides)
    benchmark._find_data(cfg, tmp_path)
    records = DatasetCatalog.get("custom_train")
    assert [(r["width"], r["height"], len(r["annotations"])) for r in records] == 3 * [(128, 96, 3)] + [
        (96, 128, 3)
    ]
    for annotation in [a for record in records for a in record["annotations"]]:
        x, y, w, h = annotation["bbox"]
        xs, ys = annotation["segmentation"][0][::2], annotation["segmentation"][0][1::2]
        assert (min(xs), max(xs), min(ys), max(ys)) == pytest.approx((x, x + w, y, y + h), abs=0.02)


@pytest.mark.slow
def test_command_line_without_data(tmp_path: Path) -> None:
    done = run_script(
        "tools/benchmark.py", "train", *SMALL, "DATASETS.ROOT", str(tmp_path), "--iterations", "1", "--rounds", "2",
        "--config", "transfer/coco_R50_FPN.yaml",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "synthetic images are used instead" in done.stdout
    assert re.search(r"ratio, ours to plain: \d+\.\d{3} \(median; \d+\.\d{3} to \d+\.\d{3}\)", done.stdout)
    assert re.search(r"our step: data \d+ ms \(\d+%\), forward .*, backward .*, optimizer ", done.stdout)


def test_keypoints_are_not_made_up(tmp_path: Path) -> None:
    cfg = load_config(
        "transfer/keypoint_R50_FPN_2x.yaml", ["MODEL.INIT", "random", "DATASETS.ROOT", str(tmp_path)]
    )
    with pytest.raises(UserError, match=str(tmp_path)):
        benchmark._find_data(cfg, tmp_path)
