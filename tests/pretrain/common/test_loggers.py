"""TensorBoard and Weights & Biases: values arrive once, and a missing library is reported in one line."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain import config as pretrain_config
from pretrain.common import loggers
from pretrain.common.errors import UserError
from transfer.config.load import load_config
from transfer.train.log import Progress


def _config(output: Path, *more: str):
    return load_config(
        "transfer/coco_R50_FPN.yaml", ["MODEL.INIT", "random", "OUTPUT_DIR", str(output), *more]
    )


def test_tensorboard_takes_back_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    for start, value in ((0, 1.0), (2, 2.0)):
        with Progress(_config(tmp_path), start) as log:
            for iteration in range(start + 1, 5):
                log.write_metrics(iteration, {"set": {"bbox": {"AP": value, "AP75": None}}})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["bbox/AP"]
    points = [(event.step, event.value) for event in events.Scalars("bbox/AP")]
    assert points == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert (tmp_path / "metrics.json").read_text().count("\n") == 4


def test_wandb_gets_the_values_in_a_run_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    fake = SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start in (0, 1):
        cfg = _config(tmp_path, "LOG.WANDB", "moco", "LOG.TENSORBOARD", "False")
        loggers.check(cfg)
        with Progress(cfg, start) as log:
            log.write_metrics(start + 1, {"a": {"bbox": {"AP": 3.0}}, "b": {"bbox": {"AP": 4.0}}})
    first, values, end, second, *_ = calls
    assert (first["project"], first["resume"], first["config"]["SOLVER"]["MAX_ITER"]) == (
        "moco",
        "allow",
        90000,
    )
    assert first["id"] == second["id"]
    assert (values, end) == ((1, {"a/bbox/AP": 3.0, "b/bbox/AP": 4.0}), "end")
    assert not (tmp_path / "tensorboard").exists()


def test_libraries_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"LOG\.WANDB moco: wandb is not installed: `pip install wandb`"):
        loggers.check(_config(tmp_path, "LOG.WANDB", "moco"))
    assert loggers.open_all(_config(tmp_path), 0) == []
    assert "pip install tensorboard" in capsys.readouterr().out


def test_a_logger_that_cannot_write_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").touch()  # a file instead of the folder
    assert loggers.open_all(_pretraining(tmp_path), 0) == []
    assert capsys.readouterr().out.count("warning: LOG.TENSORBOARD: cannot be written: ") == 1

    class UsageError(Exception):  # wandb's own errors are not OSErrors
        pass

    cfg = _pretraining(tmp_path, "LOG.WANDB", "moco", "LOG.TENSORBOARD", "False")
    uses: list[Callable[[loggers.Logger], None]] = [
        lambda logger: logger.write(1, {"loss": 9.0}),
        lambda logger: logger.picture("views", np.zeros((2, 3, 3), np.uint8), 0),
        lambda logger: logger.close(),
    ]
    for error, text in [
        (OSError(28, "No space left on device"), "No space left on device"),
        (UsageError("api_key not configured (no-tty).\n call wandb.login()"),
         "api_key not configured (no-tty). call wandb.login()"),
        (UsageError(), "UsageError"),
    ]:  # fmt: skip

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        warning = f"warning: LOG.WANDB: cannot be written: {text}; the run continues without it\n"
        run = SimpleNamespace(log=fail, finish=fail)
        fake = SimpleNamespace(init=lambda run=run, **_: run, Image=lambda pixels: None)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        for use in uses:
            (logger,) = loggers.open_all(cfg, 0)
            use(logger)
            logger.write(2, {"loss": 8.0})
            logger.close()
            assert capsys.readouterr().out == warning
        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fail))
        assert loggers.open_all(cfg, 0) == [] and capsys.readouterr().out == warning


def _pretraining(output: Path, *more: str):
    cfg = pretrain_config.defaults()
    cfg.merge_from_list(["OUTPUT_DIR", str(output), *more])
    return cfg


def test_a_picture_arrives_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    (logger,) = loggers.open_all(_pretraining(tmp_path), 0)
    logger.picture("views", pixels, 0)
    logger.close()
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("views")
    found = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert event.step == 0 and np.array_equal(found, pixels)


def test_wandb_serves_pretraining_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    fake = SimpleNamespace(init=lambda **options: run, Image=lambda pixels: ("image", pixels.shape))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (logger,) = loggers.open_all(_pretraining(tmp_path, "LOG.WANDB", "moco", "LOG.TENSORBOARD", "False"), 0)
    logger.picture("views", np.zeros((2, 3, 3), np.uint8), 0)
    logger.write(20, {"loss": 9.0})
    logger.close()
    assert calls == [(0, {"views": ("image", (2, 3, 3))}), (20, {"loss": 9.0}), "end"]
