"""What a run leaves behind and how it goes on from there: the checkpoints of one output folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml
from fvcore.common.config import CfgNode
from torch import nn

import pretrain
from pretrain import checkpoint, dist
from pretrain.config import digest_text
from pretrain.errors import UserError

LAST = "checkpoint_last.pth.tar"
_NUMBERED = re.compile(r"checkpoint_(\d{4,})\.pth\.tar")
# Settings that give the stored weights, queue or iteration number their meaning.
_FIXED = ("MODEL", "MOCO", "INPUT", "SOLVER.IMS_PER_BATCH", "SEED")


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        iteration: training steps done.
        per_epoch: steps in an epoch.
        images: number of training images.
        amp: the decision about bf16, as `pretrain.amp.decide` put it; a resumed run keeps it unless
            SOLVER.AMP says otherwise.
    """

    iteration: int
    per_epoch: int
    images: int
    amp: str

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return self.iteration // self.per_epoch


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, *, cfg: CfgNode
) -> None:
    """Write `checkpoint_last`, and the numbered file when an epoch is complete and its turn has come.

    Every process calls this: running statistics become their means over the processes first.
    """
    dist.mean_over_processes([b for name, b in model.named_buffers() if "running_" in name])
    if not dist.is_main():
        return
    contents = {
        "epoch": progress.epoch,
        "arch": cfg.MODEL.ARCH,
        "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "iteration": progress.iteration,
        "iterations_per_epoch": progress.per_epoch,
        "images": progress.images,
        "amp": progress.amp,
        "config": digest_text(cfg),
        "versions": {"pretrain": pretrain.__version__, "torch": str(torch.__version__),
                     "torchvision": str(torchvision.__version__)},
    }  # fmt: skip
    its_turn = progress.epoch % cfg.SOLVER.CHECKPOINT_PERIOD == 0 or progress.epoch == cfg.SOLVER.MAX_EPOCH
    if progress.iteration % progress.per_epoch == 0 and its_turn:
        checkpoint.save(folder / f"checkpoint_{progress.epoch - 1:04d}.pth.tar", contents)
    checkpoint.save(folder / LAST, contents)
    if cfg.SOLVER.KEEP_LAST:
        for old in numbered(folder)[: -cfg.SOLVER.KEEP_LAST]:
            old.unlink()


def numbered(folder: Path) -> list[Path]:
    """The numbered checkpoints of a folder, oldest first."""
    matches = [(path, _NUMBERED.fullmatch(path.name)) for path in folder.glob("checkpoint_*")]
    return [path for _, path in sorted((int(match[1]), path) for path, match in matches if match)]


def find(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """Contents of the checkpoint to go on from; None: start at the beginning.

    Raises `UserError` when the folder holds a run and `resume` is not set, and when the file is damaged.
    """
    last = folder / LAST
    if not resume:
        if last.exists() or numbered(folder):
            raise UserError(
                f"OUTPUT_DIR {folder} holds checkpoints of a run: add --resume to go on with it, "
                "or name another OUTPUT_DIR"
            )
        return None
    if not last.exists():
        if numbered(folder):
            raise UserError(f"--resume: {last} is missing; copy the newest numbered checkpoint to that name")
        return None
    contents = checkpoint.load(last)
    if not isinstance(contents, dict) or not {"iteration", "images"} <= contents.keys():
        raise UserError(f"--resume: {last} was not written by this version of tools/pretrain.py")
    return contents


def restore(
    contents: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    cfg: CfgNode,
    images: int,
) -> Progress:
    """Load a checkpoint into model and optimizer, whose rates stay those of the config.

    Raises `UserError` if it belongs to other settings or to another number of training images.
    """
    stored = yaml.safe_load(contents["config"])
    for key in _FIXED:
        _refuse_changes(key, _get(stored, key), _get(cfg, key))
    if contents["images"] != images:
        raise UserError(
            f"--resume: DATA.TRAIN holds {images} images now and held {contents['images']} before; restore "
            "the images or start in another OUTPUT_DIR"
        )
    model.load_state_dict({k.removeprefix("module."): v for k, v in contents["state_dict"].items()})
    optimizer.load_state_dict(contents["optimizer"])
    for group in optimizer.param_groups:  # the file brings those of the run so far
        group["momentum"], group["weight_decay"] = cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY
    return Progress(contents["iteration"], contents["iterations_per_epoch"], images, contents["amp"])


def _refuse_changes(key: str, before: Any, now: Any) -> None:
    if isinstance(now, dict):
        for name in now:
            _refuse_changes(f"{key}.{name}", before.get(name), now[name])
    elif before != now:
        raise UserError(f"--resume: {key} is {now} and was {before}; set it back or name another OUTPUT_DIR")


def _get(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree
