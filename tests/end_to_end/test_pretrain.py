"""Pre-training end to end: one process against two, resuming against not stopping, and every user error."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from pretrain import config
from pretrain.common import distributed
from pretrain.common.configs import read_yaml
from pretrain.common.errors import UserError
from pretrain.tensor_files import checkpoint
from pretrain.train.loop import train
from tests.support.pretrain_runs import MakeFolder, command, log_lines, overrides, pretrain

KEYS = {
    "iteration", "epoch", "loss", "accuracy", "in_batch_accuracy", "positive_cosine", "negative_cosine",
    "feature_std", "lr", "images_per_second", "data_wait", "time",
}  # fmt: skip


def distributed_worker(arguments: list[str]) -> None:
    cfg = config.load("pretrain/moco_v2_R50.yaml", arguments, processes=2)
    distributed.init_from_env(torch.device("cpu"))
    torch.set_num_threads(1)
    train(cfg)


@pytest.mark.parametrize("stop", [2, 4])
def test_resume_is_bit_equal(image_folder: MakeFolder, tmp_path: Path, stop: int) -> None:
    """Three iterations an epoch: 4 stops in the middle of the second, 2 in the middle of the first."""
    images = image_folder(100)
    whole = pretrain(images, tmp_path / "whole", "SOLVER.MAX_ITER", "7")
    pretrain(images, tmp_path / "parts", "SOLVER.MAX_ITER", str(stop))
    parts = pretrain(images, tmp_path / "parts", "SOLVER.MAX_ITER", "7", resume=True)
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name
    for index, state in whole["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], parts["optimizer"]["state"][index]["momentum_buffer"])
    timeless = [
        [{key: line[key] for key in ("iteration", "loss", "lr")} for line in log_lines(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert timeless[0] == timeless[1]


def test_lines_after_the_checkpoint_are_dropped(image_folder: MakeFolder, tmp_path: Path) -> None:
    """A run killed after it logged iterations that no checkpoint holds."""
    images, output = image_folder(100), tmp_path / "run"
    pretrain(images, output, "SOLVER.MAX_ITER", "2")
    with open(output / "metrics.json", "a", encoding="utf-8") as file:
        file.write('{"iteration": 3, "loss": 99}\n{"iterat')
    pretrain(images, output, "SOLVER.MAX_ITER", "4", resume=True)
    assert [line["iteration"] for line in log_lines(output)] == [1, 2, 3, 4]
    assert log_lines(output)[2]["loss"] < 99


def test_what_a_run_leaves(image_folder: MakeFolder, tmp_path: Path) -> None:
    images, output = image_folder(20, classes=("a", "b")), tmp_path / "run"
    last = pretrain(
        images,
        output,
        "SOLVER.KEEP_LAST",
        "2",
        "KNN.TRAIN",
        str(images),
        "KNN.PERIOD",
        "2",
        "INPUT.SIZE",
        "32",
        "SOLVER.CHECKPOINT_PERIOD",
        "9",
        "LOG.TENSORBOARD",
        "False",
    )  # one iteration an epoch
    assert sorted(path.name for path in output.iterdir()) == [
        "checkpoint_0001.pth.tar", "checkpoint_0002.pth.tar", "checkpoint_last.pth.tar", "config.yaml",
        "metrics.json", "views.jpg",
    ]  # fmt: skip
    assert last["epoch"] == 3 and last["arch"] == "resnet18" and last["iteration"] == 3
    assert checkpoint.load(output / "checkpoint_0001.pth.tar")["epoch"] == 2
    state = last["state_dict"]
    assert state["module.queue"].shape == (16, 100) and state["module.queue_ptr"].tolist() == [96]
    assert {f"module.encoder_{e}.{n}" for e in "qk" for n in ("conv1.weight", "fc.2.bias")} <= state.keys()
    lines = log_lines(output)
    assert [set(line) for line in lines if "loss" in line] == [KEYS] * 3
    assert [(line["iteration"], line["epoch"]) for line in lines if "knn" in line] == [(0, 0), (2, 2), (3, 3)]
    assert read_yaml(output / "config.yaml")["MOCO"]["K"] == 100
    assert Image.open(output / "views.jpg").width > 8 * 7 * 32  # eight pairs, enlarged for their captions


def test_shuffle_false_skips_the_permutation_only(image_folder: MakeFolder, tmp_path: Path) -> None:
    images = image_folder(32)
    runs = [
        pretrain(images, tmp_path / flag, "MOCO.SHUFFLE", flag, "SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "0")
        for flag in ("True", "False")
    ]
    queues = [run["state_dict"]["module.queue"] for run in runs]
    assert torch.equal(queues[0][:, 32:], queues[1][:, 32:]) and not torch.equal(queues[0], queues[1])


def test_bf16_decision_is_kept_until_the_config_says_otherwise(
    image_folder: MakeFolder, tmp_path: Path
) -> None:
    images, output = image_folder(32), tmp_path / "run"
    first = pretrain(images, output, "SOLVER.MAX_ITER", "1", "SOLVER.AMP", "bf16")
    assert first["amp"].startswith("bf16")
    again = pretrain(images, output, "SOLVER.MAX_ITER", "2", "SOLVER.AMP", "auto", resume=True)
    assert again["amp"] == first["amp"]
    changed = ["SOLVER.AMP", "off", "SOLVER.MOMENTUM", "0.5", "SOLVER.WEIGHT_DECAY", "0.01"]
    last = pretrain(images, output, "SOLVER.MAX_ITER", "3", *changed, resume=True)
    assert last["amp"].startswith("off")
    (group,) = last["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.01)


def test_an_infinite_loss_stops_before_the_weights_change(image_folder: MakeFolder, tmp_path: Path) -> None:
    images, output = image_folder(32), tmp_path / "run"
    with pytest.raises(
        UserError, match=r"infinite or NaN by iteration \d+, first of all encoder_q.*; the last saved"
    ):
        pretrain(images, output, "SOLVER.BASE_LR", "1e30", "SOLVER.MAX_EPOCH", "9")
    state = checkpoint.load(output / "checkpoint_last.pth.tar")["state_dict"]
    assert state["module.queue"].isfinite().all()


def test_settings_of_a_resumed_run_may_not_change_its_meaning(
    image_folder: MakeFolder, tmp_path: Path
) -> None:
    images, output = image_folder(64), tmp_path / "run"
    pretrain(images, output, "SOLVER.MAX_ITER", "1")
    for key, value in [("MOCO.K", "50"), ("SOLVER.IMS_PER_BATCH", "64"), ("SEED", "1"), ("INPUT.AUG", "v1")]:
        with pytest.raises(UserError, match=f"--resume: {key} is {value} and was"):
            pretrain(images, output, key, value, resume=True)
    with pytest.raises(UserError, match=r"DATA\.TRAIN holds 65 images now and held 64 before"):
        pretrain(image_folder(65), output, resume=True)
    other = image_folder(64)
    (other / "0063.jpg").rename(other / "0064.jpg")
    with pytest.raises(UserError, match=r"DATA\.TRAIN holds 64 images as before, but under other names"):
        pretrain(other, output, resume=True)


def test_settings_that_change_the_result_are_noted(
    image_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = image_folder(64), tmp_path / "run"
    pretrain(images, output, "SOLVER.MAX_ITER", "1")
    moved = images.rename(tmp_path / "another disk")
    changed = {
        "SOLVER.BASE_LR": ("0.01", "0.02"), "SOLVER.MOMENTUM": ("0.9", "0.8"),
        "SOLVER.WEIGHT_DECAY": ("0.0001", "1e-05"), "SOLVER.MAX_EPOCH": ("3", "5"),
    }  # fmt: skip
    capsys.readouterr()
    more = [text for key, (_, now) in changed.items() for text in (key, now)]
    last = pretrain(moved, output, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "[1]", *more, resume=True)
    notes = [line for line in capsys.readouterr().out.splitlines() if "the result will differ" in line]
    assert last["iteration"] == 2
    assert notes == [
        f"note: {key} was {was} and is {now}: the result will differ" for key, (was, now) in changed.items()
    ]
    pretrain(moved, output, "SOLVER.MAX_ITER", "3", "SOLVER.SCHEDULE", "step", "SOLVER.STEPS", "[2]", *more,
             resume=True)  # fmt: skip
    notes = [
        line.split(":")[1]
        for line in capsys.readouterr().out.splitlines()
        if "the result will differ" in line
    ]
    assert notes == [" SOLVER.SCHEDULE was cosine and is step", " SOLVER.STEPS was [1] and is [2]"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["MOCO.K", "100000000000"], r"^MOCO\.K 100000000000: this many vectors of MODEL\.DIM 16 take 6400 GB"),
        (["MOCO.K", "100000000000", "MOCO.MECHANISM", "memorybank"], r"^MOCO\.K 100000000000: "),
        (["MODEL.DIM", "100000000000", "MOCO.MECHANISM", "memorybank"], r"^MOCO\.K 100: .*a smaller MODEL\.DIM$"),
    ],
)  # fmt: skip
def test_keys_that_no_memory_holds_are_refused(
    image_folder: MakeFolder, tmp_path: Path, more: list[str], named: str
) -> None:
    with pytest.raises(UserError, match=named) as error:
        pretrain(image_folder(32), tmp_path / "run", *more)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_errors_are_one_line(image_folder: MakeFolder, tmp_path: Path) -> None:
    """Through the real script: exit status 2, one line, no traceback, no checkpoint.

    Errors that show before training starts leave no output folder; that images cannot be read shows later.
    """
    images, output, late = image_folder(32), tmp_path / "run", tmp_path / "late"
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    for n in range(40):
        (broken / f"{n}.jpg").write_bytes(b"no image")
    pretrain(images, tmp_path / "used", "SOLVER.MAX_ITER", "1")
    (tmp_path / "cut").mkdir()
    whole = (tmp_path / "used" / "checkpoint_last.pth.tar").read_bytes()
    (tmp_path / "cut" / "checkpoint_last.pth.tar").write_bytes(whole[: len(whole) // 2])
    cases = [
        (overrides(tmp_path / "nowhere", output), "DATA.TRAIN: no such folder"),
        (overrides(empty, output), "DATA.TRAIN: no image below"),
        (overrides(broken, late), "40 images could not be read"),
        (overrides(images, output, "MOCO.L", "1"), "unknown config key MOCO.L"),
        (overrides(images, output, "SOLVER.IMS_PER_BATCH", "64"), "SOLVER.IMS_PER_BATCH 64 is more than"),
        (overrides(images, tmp_path / "used"), "add --resume"),
        ([*overrides(images, tmp_path / "cut"), "--resume"], "checkpoint_last.pth.tar: not a readable"),
    ]
    for arguments, expected in cases:
        done = command(*arguments)
        assert done.returncode == 2, done.stderr
        assert expected in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert not output.exists() and not list(late.glob("checkpoint*"))


def test_class_folders_give_a_knn_figure(
    image_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = image_folder(16, classes=("a", "b")), tmp_path / "run"
    pretrain(images, output, "SOLVER.MAX_ITER", "1")
    assert [line["iteration"] for line in log_lines(output) if "knn" in line] == [0, 1]
    assert (
        f"KNN.TRAIN is empty: kNN is measured, leave-one-out, on the class folders of {images}"
        in capsys.readouterr().out
    )


def test_the_first_iteration_of_a_session_is_logged(image_folder: MakeFolder, tmp_path: Path) -> None:
    images, output = image_folder(200), tmp_path / "run"  # six iterations an epoch
    pretrain(images, output, "SOLVER.LOG_PERIOD", "4", "SOLVER.MAX_ITER", "2")
    pretrain(images, output, "SOLVER.LOG_PERIOD", "4", "SOLVER.MAX_ITER", "6", resume=True)
    assert [line["iteration"] for line in log_lines(output)] == [1, 2, 3, 4, 6]


def test_gpu_memory_that_does_not_suffice(
    image_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr("pretrain.train.loop.train_step", full)
    with pytest.raises(UserError, match=r"SOLVER\.IMS_PER_BATCH 32.*MODEL\.BN_GROUP_SIZE"):
        pretrain(image_folder(32), tmp_path / "run")


def test_a_compiler_that_fails_is_one_line(
    image_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile for real, with a backend that finds no compiler."""

    def broken(*_: object) -> None:
        raise FileNotFoundError("no C++ compiler")

    inner = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: inner(module, backend=broken))
    with pytest.raises(UserError, match=r"^MODEL\.COMPILE True: .*no C\+\+ compiler.*set it to False$"):
        pretrain(image_folder(32), tmp_path / "run", "MODEL.COMPILE", "True")


def different_worker(folders: list[str], output: str) -> None:
    images = folders[int(os.environ["RANK"])]
    distributed_worker(overrides(Path(images), Path(output)))


def test_processes_that_see_different_images_are_stopped(image_folder: MakeFolder, tmp_path: Path) -> None:
    folders = [str(image_folder(count)) for count in (64, 65)]
    with pytest.raises(UserError, match=r"different images \(DATA\.TRAIN\)"):
        distributed.spawn(different_worker, 2, (folders, str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_narrow_basic_blocks_are_noted(
    image_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(image_folder(32), tmp_path / "run", "SOLVER.MAX_ITER", "1")
    assert "note: MODEL.WIDTH 0.125: detectron2 builds resnet18 only at width 1" in capsys.readouterr().out


def test_resume_says_where_it_stands(image_folder: MakeFolder, tmp_path: Path) -> None:
    arguments = [*overrides(image_folder(32), tmp_path / "run", "SOLVER.MAX_ITER", "1"), "--resume"]
    first, second = command(*arguments), command(*arguments)
    assert first.returncode == 0 and "no checkpoint in" in first.stdout
    assert second.returncode == 0 and "this run is finished" in second.stdout
