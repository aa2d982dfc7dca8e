"""Where a run's values go besides the screen and `metrics.json`: TensorBoard, and Weights & Biases."""

import contextlib
import functools
import hashlib
import importlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from fvcore.common.config import CfgNode

from pretrain.common.console import say
from pretrain.common.errors import UserError


class Logger(Protocol):
    """Takes values by name at an iteration, counted from 1, and pictures, (H, W, 3) RGB uint8, at any."""

    def write(self, iteration: int, values: dict[str, float]) -> None: ...

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def open_all(cfg: CfgNode, start: int) -> list[Logger]:
    """The loggers that `LOG` asks for. Call it on the main process; points after `start` are taken back.

    None of them ends a run: one that cannot write, as on a full disk or without a login, says so once and takes
    nothing more.
    Raises `UserError` when `LOG.WANDB` names a project and there is no wandb.
    """
    wanted: list[tuple[str, bool, Callable[[CfgNode, int], Logger]]] = [
        ("LOG.TENSORBOARD", cfg.LOG.TENSORBOARD, _TensorBoard),
        ("LOG.WANDB", bool(cfg.LOG.WANDB), _Wandb),
    ]
    loggers: list[Logger] = []
    for key, enabled, make in wanted:
        try:
            if enabled:
                loggers.append(_Harmless(key, make(cfg, start)))
        except ImportError:
            say("note: no TensorBoard log: `pip install tensorboard`, or set LOG.TENSORBOARD False")
        except UserError:
            raise
        except Exception as error:  # wandb has classes of its own, and those of the libraries below it
            _say_lost(key, error)
    return loggers


def check(cfg: CfgNode) -> None:
    """Raise `UserError` where `LOG` asks for a library that is not there, before anything is computed."""
    if cfg.LOG.WANDB:
        _import_wandb(cfg)


class _Harmless:
    """A logger that stops at its first error, with a warning: a run is worth more than its curves."""

    def __init__(self, key: str, inner: Logger) -> None:
        self.key, self.inner, self.works = key, inner, True

    def write(self, iteration: int, values: dict[str, float]) -> None:
        self._try(self.inner.write, iteration, values)

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        self._try(self.inner.picture, name, pixels, iteration)

    def flush(self) -> None:
        self._try(self.inner.flush)

    def close(self) -> None:
        self._try(self.inner.close)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if not self.works:
            return
        try:
            call(*arguments)
        except Exception as error:  # as above
            self.works = False
            _say_lost(self.key, error)
            with contextlib.suppress(Exception):
                self.inner.close()  # its thread would try again, and print a traceback


def _say_lost(key: str, error: Exception) -> None:
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    say(f"warning: {key}: cannot be written: {' '.join(text.split())[:160]}; the run goes on without it")


class _TensorBoard:
    def __init__(self, cfg: CfgNode, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if getattr(threading.excepthook, "func", None) is not _without_traceback:
            threading.excepthook = functools.partial(_without_traceback, threading.excepthook)
        # purge_step: a resumed run writes the points after its checkpoint once more
        self.writer = SummaryWriter(str(Path(cfg.OUTPUT_DIR) / "tensorboard"), purge_step=start + 1)

    def write(self, iteration: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, iteration)

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        self.writer.add_image(name, pixels, iteration, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        try:
            self.writer.close()
        except OSError:  # it flushes first, and leaves its thread running where that fails
            if self.writer.file_writer is not None:
                self.writer.file_writer.close()
            raise


def _without_traceback(hook: Callable[[Any], object], args: Any) -> None:
    """TensorBoard writes in a thread, which meets a full disk first: its next call raises that `OSError` to us."""
    if type(args.thread).__name__ != "_AsyncWriterThread" or not issubclass(args.exc_type, OSError):
        hook(args)


class _Wandb:
    def __init__(self, cfg: CfgNode, start: int) -> None:
        folder = Path(cfg.OUTPUT_DIR).resolve()
        self.wandb = _import_wandb(cfg)
        self.run = self.wandb.init(
            project=cfg.LOG.WANDB,
            name=folder.name,
            id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],  # a resumed run goes on in its own plot
            resume="allow",  # and wandb passes over the iterations that it has
            dir=str(folder),
            config=yaml.safe_load(cfg.dump()),
        )

    def write(self, iteration: int, values: dict[str, float]) -> None:
        self.run.log(values, step=iteration)

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        self.run.log({name: self.wandb.Image(pixels)}, step=iteration)

    def flush(self) -> None: ...

    def close(self) -> None:
        self.run.finish()


def _import_wandb(cfg: CfgNode) -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise UserError(
            f"LOG.WANDB {cfg.LOG.WANDB}: wandb is not installed: `pip install wandb`, or leave the key empty"
        ) from None


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append a line of JSON; where the disk is full, a warning, and no part of the line.

    A run is worth more than its log: whether it goes on, its checkpoints decide.
    """
    size = None
    try:
        with open(path, "ab") as file:
            size = file.tell()
            file.write(json.dumps(values).encode() + b"\n")
    except OSError as error:
        say(f"warning: {path}: cannot be written: {error.strerror or error}")
        if size is not None:
            with contextlib.suppress(OSError):  # half a line would spoil the next one too
                os.truncate(path, size)
