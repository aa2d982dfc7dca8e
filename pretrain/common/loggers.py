"""TensorBoard and Weights & Biases, where a run's values go in addition to the terminal and `metrics.json`."""

import contextlib
import hashlib
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from fvcore.common.config import CfgNode

from pretrain.common.console import say
from pretrain.common.errors import UserError


class Logger(Protocol):
    """Takes named values at an iteration, counted from 1, and pictures, (H, W, 3) RGB uint8, at any iteration."""

    def write(self, iteration: int, values: dict[str, float]) -> None: ...

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def open_all(cfg: CfgNode, start: int) -> list[Logger]:
    """Return the loggers that `LOG` asks for. Call this on the main process; points after `start` are overwritten.

    No logger ends a run: one that cannot write, as on a full disk or without a login, prints a warning once and is
    then disabled. Raises `UserError` if `LOG.WANDB` names a project and wandb is not installed.
    """
    wanted: list[tuple[str, bool, Callable[[CfgNode, int], Logger]]] = [
        ("LOG.TENSORBOARD", cfg.LOG.TENSORBOARD, _TensorBoard),
        ("LOG.WANDB", bool(cfg.LOG.WANDB), _Wandb),
    ]
    loggers: list[Logger] = []
    for key, enabled, make in wanted:
        try:
            if enabled:
                loggers.append(_Guarded(key, make(cfg, start)))
        except ImportError:
            say("note: no TensorBoard log: `pip install tensorboard`, or set LOG.TENSORBOARD False")
        except UserError:
            raise
        except Exception as error:  # wandb raises its own classes and those of its libraries
            _warn(key, error)
    return loggers


def check(cfg: CfgNode) -> None:
    """Raise `UserError` if `LOG` asks for a library that is not installed. Call this before computing anything."""
    if cfg.LOG.WANDB:
        _import_wandb(cfg)


class _Guarded:
    """A logger that prints a warning at its first error and is then disabled: no run should end for its curves."""

    def __init__(self, key: str, inner: Logger) -> None:
        self.key, self.inner, self.enabled = key, inner, True

    def write(self, iteration: int, values: dict[str, float]) -> None:
        self._try(self.inner.write, iteration, values)

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        self._try(self.inner.picture, name, pixels, iteration)

    def flush(self) -> None:
        self._try(self.inner.flush)

    def close(self) -> None:
        self._try(self.inner.close)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if not self.enabled:
            return
        try:
            call(*arguments)
        except Exception as error:  # as in `open_all`
            self.enabled = False
            _warn(self.key, error)
            with contextlib.suppress(Exception):
                self.inner.close()


def _warn(key: str, error: Exception) -> None:
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    say(f"warning: {key}: cannot be written: {' '.join(text.split())[:160]}; the run continues without it")


class _TensorBoard:
    """Writes in a thread of TensorBoard: if it fails, as on a full disk, the next call here raises its error."""

    def __init__(self, cfg: CfgNode, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step: a resumed run writes the points after its checkpoint again
        self.writer = SummaryWriter(str(Path(cfg.OUTPUT_DIR) / "tensorboard"), purge_step=start + 1)

    def write(self, iteration: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, iteration)

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        self.writer.add_image(name, pixels, iteration, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, cfg: CfgNode, start: int) -> None:
        folder = Path(cfg.OUTPUT_DIR).resolve()
        self.wandb = _import_wandb(cfg)
        self.run = self.wandb.init(
            project=cfg.LOG.WANDB,
            name=folder.name,
            # The same for a resumed run, which continues its own curves.
            id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],
            resume="allow",  # wandb ignores iterations that it already has
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
    """Append a line of JSON. If the line cannot be written completely, remove it and print a warning.

    This raises nothing, because a run must not end for its log; failing to write a checkpoint may end it.
    """
    size = None
    try:
        with open(path, "ab") as file:
            size = file.tell()
            file.write(json.dumps(values).encode() + b"\n")
    except OSError as error:
        say(f"warning: {path}: cannot be written: {error.strerror or error}")
        if size is not None:
            with contextlib.suppress(OSError):  # an incomplete line would also spoil the next one
                os.truncate(path, size)
