"""What a pre-training run writes and prints: lines, curves and alarms once each, also after a resume."""

import contextlib
import json
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain import config
from pretrain.common.configs import CONFIG_ROOT
from pretrain.train import log, start_notes
from pretrain.train.alarms import Alarms
from pretrain.train.log import Log
from pretrain.train.loop import train

LINE = {
    "epoch": 199, "loss": 11.0904, "accuracy": 0.98765, "in_batch_accuracy": 1.0, "positive_cosine": 0.98765,
    "negative_cosine": -0.12345, "feature_std": 0.98765, "lr": 0.0007612, "images_per_second": 12345.6,
    "data_wait": 0.0123, "time": 1.7e9,
}  # fmt: skip


def _config(output: Path, *more: Any) -> CfgNode:
    cfg = config.defaults()
    cfg.merge_from_list(["OUTPUT_DIR", str(output), "MOCO.K", 100, "SOLVER.IMS_PER_BATCH", 50, *more])
    return cfg


def _log(cfg: CfgNode, iteration: int) -> Log:
    return Log(cfg, iteration=iteration, alarms=Alarms(cfg, per_epoch=10, total=1000, images=500))


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def test_a_run_that_is_taken_up_again_leaves_every_line_point_and_alarm_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first session logs up to iteration 50 and dies after the checkpoint of 30; the second does the rest."""
    cfg = _config(tmp_path)
    for start, end in ((0, 50), (30, 60)):
        logged = _log(cfg, start)
        for iteration in range(start + 10, end + 1, 10):
            logged.write({**LINE, "iteration": iteration, "loss": float(start)})
        logged.write({"knn": 50.0, "epoch": 6, "iteration": end})
        logged.close()
    lines = _lines(tmp_path)
    assert [(line["iteration"], line["loss"]) for line in lines if "loss" in line] == [
        (10, 0), (20, 0), (30, 0), (40, 30), (50, 30), (60, 30)
    ]  # fmt: skip
    assert [line["iteration"] for line in lines if "knn" in line] == [60]
    alarms = [(line["iteration"], line["alarm"]) for line in lines if "alarm" in line]
    assert alarms == [(30, "leak")]  # the first line still holds noise
    assert capsys.readouterr().out.count("alarm (leak): queries pick the right key") == 1
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (10, 0), (20, 0), (30, 0), (40, 30), (50, 30), (60, 30)
    ]  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("knn")] == [(60, 50)]
    assert set(events.Tags()["scalars"]) == LINE.keys() - {"time"} | {"knn"}


def test_points_are_on_the_disk_before_a_checkpoint_can_be(tmp_path: Path) -> None:
    logged = _log(_config(tmp_path), 0)
    logged.write({**LINE, "iteration": 10})  # and then SIGKILL: nothing is closed
    points = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in points] == [10]
    logged.close()


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Writing more fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_does_not_fit_leaves_no_part_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = _log(_config(tmp_path, "LOG.TENSORBOARD", False), 0)
    logged.write({**LINE, "iteration": 10})
    with no_file_beyond((tmp_path / "metrics.json").stat().st_size + 20):
        logged.write({**LINE, "iteration": 20})
    logged.write({**LINE, "iteration": 30})
    assert [line["iteration"] for line in _lines(tmp_path) if "loss" in line] == [10, 30]
    assert capsys.readouterr().out.count("metrics.json: cannot be written: File too large") == 1


def test_a_full_disk_ends_tensorboard_and_not_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logged = _log(_config(tmp_path), 0)
    logged.write({**LINE, "iteration": 10})
    (points,) = (tmp_path / "tensorboard").iterdir()
    with no_file_beyond(points.stat().st_size + 20):  # metrics.json is smaller
        logged.write({**LINE, "iteration": 20})
    logged.write({**LINE, "iteration": 30})
    logged.close()
    said = capfd.readouterr()
    assert (
        said.out.count("warning: LOG.TENSORBOARD: cannot be written: File too large; the run continues") == 1
    )
    assert [line["iteration"] for line in _lines(tmp_path) if "loss" in line] == [10, 20, 30]


def test_a_run_shows_its_views_and_curves_in_tensorboard(
    image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    overrides = [
        "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.BN_GROUP_SIZE", "8", "MOCO.K", "40", "INPUT.SIZE",
        "32", "SOLVER.IMS_PER_BATCH", "16", "SOLVER.MAX_ITER", "2", "SOLVER.AMP", "off", "DATA.NUM_WORKERS", "0",
        "SOLVER.LOG_PERIOD", "1", "DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run"),
        "DATA.TRAIN", str(image_folder(8, classes=("a", "b"))),
    ]  # fmt: skip
    train(config.load("pretrain/moco_v2_R50.yaml", [*overrides, "KNN.PERIOD", "0"]))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("feature_std")] == [1, 2]
    (shown,) = events.Images("views")
    assert (shown.step, shown.width, shown.height) == (0, *Image.open(tmp_path / "run" / "views.jpg").size)
    assert not any(
        "knn" in line for line in _lines(tmp_path / "run")
    )  # KNN.PERIOD 0, in spite of class folders


def test_the_line_is_short_in_the_longest_run(capsys: pytest.CaptureFixture[str]) -> None:
    log.say_step({**LINE, "iteration": 1000800}, total=1000800, epochs=200, seconds_left=99 * 3600)
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) <= 160
    assert line == (
        "epoch 200/200 iter 1000800/1000800  loss 11.090  acc 98.8%  in-batch 100.0%  cos 0.988 (neg -0.123)  "
        "std 0.99  lr 0.000761  12346 img/s  data 1%  ETA 99:00:00"
    )


def _said(capsys: pytest.CaptureFixture[str], images: int, *overrides: Any) -> list[str]:
    cfg = config.defaults()
    cfg.merge_from_list(list(overrides))
    capsys.readouterr()
    start_notes.say_start(cfg, images=images, per_epoch=1, total=1, device=torch.device("cpu"), amp="off")
    return capsys.readouterr().out.splitlines()[2:]


IMAGENET = 1_281_167


@pytest.mark.parametrize(
    ("overrides", "chance"),
    [
        ([], "ln(65536 + 1) = 11.09"),
        (
            ["MOCO.MECHANISM", "endtoend", "SOLVER.IMS_PER_BATCH", 1024, "SOLVER.BASE_LR", 0.12],
            "ln(1023 + 1) = 6.93",
        ),
        (["MOCO.MECHANISM", "memorybank"], "ln(65536 + 1) = 11.09"),
        (
            [
                "MOCO.MECHANISM",
                "mocov3",
                "MODEL.NORM",
                "SyncBN",
                "SOLVER.IMS_PER_BATCH",
                4096,
                "SOLVER.OPTIMIZER",
                "adamw",
                "SOLVER.BASE_LR",
                0.0024,
            ],
            "4 x 0.2 x ln(4095 + 1) = 6.65",
        ),
        (["SOLVER.IMS_PER_BATCH", 1024, "SOLVER.BASE_LR", 0.12], "ln(65536 + 1) = 11.09"),  # Instagram-1B's
        (["SOLVER.IMS_PER_BATCH", 250], "ln(65536 + 1) = 11.09"),  # 65536 is not a multiple of it
    ],
)
def test_the_papers_settings_give_no_note(
    capsys: pytest.CaptureFixture[str], overrides: list[Any], chance: str
) -> None:
    (line,) = _said(capsys, IMAGENET, *overrides)
    assert line.startswith(f"a loss near {chance} is chance")


@pytest.mark.parametrize(
    ("images", "overrides", "note"),
    [
        (
            IMAGENET,
            ["SOLVER.IMS_PER_BATCH", 512],
            "BASE_LR 0.03 for a batch of 512: the paper's 0.03 for 256 corresponds to 0.06",
        ),
        (
            IMAGENET,
            ["SOLVER.BASE_LR", 0.3],
            "BASE_LR 0.3 for a batch of 256: the paper's 0.03 for 256 corresponds to 0.03",
        ),
        (131_071, [], "MOCO.K 65536 keys from 131071 images.*MOCO.K 32768 or less"),
        (1_000, ["MOCO.K", 501], "MOCO.K 501 keys from 1000 images.*MOCO.K 256 or less"),
        (
            1_000,
            ["MOCO.MECHANISM", "memorybank"],
            "negatives from 1000 images: many are drawn more than once",
        ),
        (IMAGENET, ["MOCO.SHUFFLE", False], "MOCO.SHUFFLE False: batch norm leaks"),
        (
            IMAGENET,
            ["SOLVER.SCHEDULE", "step", "SOLVER.MAX_EPOCH", 160],
            r"SOLVER.STEPS \[120, 160\]: epoch 160 is not reached in SOLVER.MAX_EPOCH 160",
        ),
        (IMAGENET, ["MODEL.NORM", "BN"], "MODEL.NORM BN: batch norm leaks"),
        (
            IMAGENET,
            [
                "MOCO.MECHANISM",
                "mocov3",
                "MODEL.NORM",
                "SyncBN",
                "SOLVER.OPTIMIZER",
                "lars",
                "SOLVER.BASE_LR",
                9.6,
            ],
            "BASE_LR 9.6 for a batch of 256: the paper's 0.3 for 256 corresponds to 0.3",
        ),
        (
            IMAGENET,
            ["SOLVER.SCHEDULE", "warmup_cosine", "SOLVER.MAX_EPOCH", 10],
            "SOLVER.WARMUP_EPOCHS 10 is the whole run",
        ),
    ],
)
def test_what_will_not_give_the_papers_numbers_is_noted(
    capsys: pytest.CaptureFixture[str], images: int, overrides: list[Any], note: str
) -> None:
    _, line = _said(capsys, images, *overrides)
    assert line.startswith("note: ")
    assert re.search(note, line)


@pytest.mark.parametrize(
    "path", sorted((CONFIG_ROOT / "pretrain").glob("*.yaml")), ids=lambda path: path.stem
)
def test_no_shipped_config_warns_about_itself(path: Path) -> None:
    images = 4096 if path.stem.startswith("demo") else IMAGENET  # demo_standard's
    assert start_notes._notes(config.load(str(path)), images) == []


@pytest.mark.parametrize(
    ("name", "overrides", "note"),
    [
        ("demo_R18", ["SOLVER.BASE_LR", "0.1"], "SOLVER.BASE_LR 0.1 for a batch of 64"),
        ("demo_R18", ["INPUT.SIZE", "224"], "SOLVER.BASE_LR 0.02 for a batch of 64"),
        (
            "demo_mechanism",
            ["MODEL.WIDTH", "0.25"],
            "MODEL.WIDTH 0.25: detectron2 builds resnet18 only at width 1",
        ),
    ],
)
def test_what_is_changed_in_a_demo_is_noted(name: str, overrides: list[str], note: str) -> None:
    notes = start_notes._notes(config.load(f"pretrain/{name}.yaml", overrides), 4096)
    assert any(line.startswith(note) for line in notes)


@pytest.mark.parametrize(
    ("images", "overrides"),
    [(131_072, []), (1_000, ["MOCO.K", 500]), (1_000, ["MOCO.MECHANISM", "endtoend"])],
)
def test_a_queue_of_half_the_images_or_none_is_not_noted(
    capsys: pytest.CaptureFixture[str], images: int, overrides: list[Any]
) -> None:
    assert len(_said(capsys, images, *overrides)) == 1


def test_a_line_says_where_knn_is_measured_or_why_it_is_not(
    image_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, labelled = image_folder(2), image_folder(2, classes=("a", "b"))
    cases = [
        (plain, "", 10, "kNN is not measured: there are no labelled images"),
        (
            labelled,
            "",
            10,
            f"KNN.TRAIN is empty: kNN is measured, leave-one-out, on the class folders of {labelled}",
        ),
        (plain, str(labelled), 10, f"kNN is measured on {labelled} (KNN.TRAIN)"),
        (plain, "", 0, ""),
    ]
    for images, bank, period, expected in cases:
        cfg = config.defaults()
        cfg.merge_from_list(["DATA.TRAIN", [str(images)], "KNN.TRAIN", bank, "KNN.PERIOD", period])
        start_notes.say_knn(cfg)
        said = capsys.readouterr().out
        assert said.startswith(expected) and said.count("\n") == bool(expected)
