"""The pre-training loop, in one process or many, on CPUs or GPUs."""

import time
from contextlib import closing
from pathlib import Path
from typing import cast

import torch
from fvcore.common.config import CfgNode

from pretrain.common import distributed, loggers
from pretrain.common.console import duration, say
from pretrain.common.errors import UserError, compiler_in_one_line
from pretrain.common.pool import worker_failures
from pretrain.common.run_folder import held
from pretrain.common.signals import Signals
from pretrain.data import on_device
from pretrain.data.loader import Batch, make_train_loader
from pretrain.data.views import pair_without
from pretrain.model import moco, norm
from pretrain.model.encoders import ResNet
from pretrain.model.moco_v3 import MoCoV3
from pretrain.model.vit import ViT
from pretrain.train import checkpoints
from pretrain.train.alarms import Alarms
from pretrain.train.log import Log
from pretrain.train.schedule import key_momentum, learning_rate
from pretrain.train.session import LAPTOP, Session, not_finite
from pretrain.train.setup import Run, set_up
from pretrain.train.step import NonFiniteLoss, train_step

Views = tuple[torch.Tensor, torch.Tensor]


def train(cfg: CfgNode, *, resume: bool | Path = False, other_processes: bool = False) -> None:
    """Pre-train by a config from `pretrain.config.load`; leave checkpoints and `metrics.json` in OUTPUT_DIR.

    Call it in every process after `distributed.init_from_env`.

    Args:
        resume: continue from this checkpoint, or, if True, from the last one if there is one.
        other_processes: continue even if another number of processes wrote that checkpoint.
    Raises:
        UserError: something that the user can fix.
        SystemExit: with `signals.STOPPED`, after SIGTERM, SIGUSR1 or SIGHUP, once the state is saved; with
            `signals.INTERRUPTED` after Ctrl-C.
    """
    loggers.check(cfg)
    with held(Path(cfg.OUTPUT_DIR)), worker_failures("DATA.NUM_WORKERS", "SOLVER.IMS_PER_BATCH"):
        run = set_up(cfg, resume=resume, other_processes=other_processes)
        per_epoch, images = run.progress.per_epoch, len(run.files)
        alarms = Alarms(cfg, per_epoch=per_epoch, total=run.total, images=images)
        with closing(Log(cfg, iteration=run.progress.iteration, alarms=alarms)) as log:
            _train(run, log)


def _train(run: Run, log: Log) -> None:
    start, total = run.progress.iteration, run.total
    measured = any(distributed.any_process(log.has("knn", start)))
    if run.knn_is_due and not measured:  # also if the run was stopped between its checkpoint and this
        _measure_knn(run, log)
    if start >= total:
        say(f"{run.folder}: this run is finished ({start} of {total} iterations); nothing to do")
        return
    begin = time.perf_counter()
    with Signals(ctrl_c=True, alone=distributed.world_size() == 1) as signals:
        loader = make_train_loader(run.files, run.cfg, start=start, stop=total, device=run.device)
        session = Session(run, log, signals)
        try:
            for batch in session.batches(loader):
                views, images = to_device(batch, run)
                session.add(views, step(run, views, images, run.progress.iteration))
                due = session.due()
                if due.line:
                    session.write_line()
                session.pace.say_estimate(device=run.device.type, smaller=LAPTOP)
                if due.save:
                    session.save(due)
                session.leave_if_asked(due)
                if run.knn_is_due:
                    _measure_knn(run, log)
                if due.save:
                    session.clock.restart()  # speed and waiting describe the training steps alone
        finally:
            session.bar.close()
            # An exception keeps this frame alive, and with it the loader's workers.
            getattr(loader, "_shutdown_workers", lambda: None)()
    for line in session.broken.report():
        say(line)
    say(f"finished: {run.folder / checkpoints.LAST} after {duration(time.perf_counter() - begin)}")


def to_device(batch: Batch, run: Run) -> tuple[Views, torch.Tensor]:
    """Return query and key views, (N, H, W, 3) uint8 each, and the image numbers (N,), on the run's device.

    Raises `UserError` if a GPU's memory does not suffice for INPUT.VIEWS gpu.
    """
    query, key, choices, images = (part.to(run.device, non_blocking=True) for part in batch[:4])
    recipes = pair_without(run.cfg.INPUT.AUG, run.cfg.INPUT.WITHOUT)
    try:
        query, key = (
            on_device.finish(half, choices[:, n], recipes[n]) for n, half in enumerate((query, key))
        )
    except torch.cuda.OutOfMemoryError:
        raise _too_little_memory(run.cfg, len(images)) from None
    return (query, key), images


def step(run: Run, views: Views, images: torch.Tensor, iteration: int) -> torch.Tensor:
    """Take one training step at the learning rate and momentum of `iteration`; return METRICS. Raises `UserError`."""
    cfg, per_epoch = run.cfg, run.progress.per_epoch
    rate = learning_rate(cfg.SOLVER, iteration, per_epoch)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    if isinstance(run.model, MoCoV3):
        run.model.momentum = key_momentum(cfg, iteration, per_epoch)
    try:
        with compiler_in_one_line():
            return train_step(
                run.model, run.optimizer, views, pixels=run.pixels, images=images, iteration=iteration,
                order=moco.key_order(cfg, iteration), bf16=run.bf16, scaler=run.scaler,
                parts=norm.parts(cfg, run.device), chunk=cfg.SOLVER.CHUNK,
            )  # fmt: skip
    except NonFiniteLoss:
        raise not_finite(run, views, iteration + 1) from None
    except torch.cuda.OutOfMemoryError:
        raise _too_little_memory(cfg, len(images)) from None


def _too_little_memory(cfg: CfgNode, local: int) -> UserError:
    return UserError(
        f"the GPU does not have enough memory for SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}: "
        f"{_less_memory(cfg, local)}"
    )


def _less_memory(cfg: CfgNode, local: int) -> str:
    """Return advice for a GPU whose memory `local` images do not fit in."""
    if cfg.MODEL.ARCH == "vit":
        return f"set SOLVER.CHUNK {max((cfg.SOLVER.CHUNK or local) // 2, 1)} (same result), or use more GPUs"
    if cfg.MODEL.NORM == "ShuffleBN":
        return "use fewer images, and a MODEL.BN_GROUP_SIZE that divides them, or more GPUs"
    return "use fewer images or more GPUs"


def _measure_knn(run: Run, log: Log) -> None:
    assert run.probe
    found = run.probe.measure(cast(ResNet | ViT, run.model.query_encoder), bf16=run.bf16)
    place = {"epoch": run.progress.epoch, "iteration": run.progress.iteration}
    log.write({"knn": found.accuracy, "rankme": found.rank, **place})
    say(
        f"kNN {found.accuracy:.1f} % (chance {run.probe.chance:.1f} %), RankMe {found.rank:.0f} of {found.largest} at "
        f"iteration {run.progress.iteration}"
    )
