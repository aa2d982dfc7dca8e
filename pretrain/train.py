"""The pre-training loop: MoCo on a folder of images, in one process or many, on CPUs or GPUs."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import cast

import numpy as np
import torch
from fvcore.common.config import CfgNode

from pretrain import data, dist, moco, norm, snapshot
from pretrain.console import duration, say
from pretrain.encoders import ResNet
from pretrain.errors import UserError
from pretrain.log import Clock, Log, say_step
from pretrain.run import Run, set_up
from pretrain.schedule import learning_rate
from pretrain.step import METRICS, NonFiniteLoss, train_step


def train(cfg: CfgNode, *, resume: bool = False) -> None:
    """Pre-train after a config from `pretrain.config.load`; leaves checkpoints and `log.jsonl` in OUTPUT_DIR.

    Call it in every process after `dist.init_from_env`. Raises `UserError` for what the user can mend, and
    `KeyboardInterrupt` after Ctrl-C or SIGTERM, when the state has been saved.
    """
    run = set_up(cfg, resume=resume)
    start, total = run.progress.iteration, run.total
    if start >= total:
        say(f"{run.folder}: this run is finished ({start} of {total} iterations); nothing to do")
        return
    log = Log(run.folder / "log.jsonl", iteration=start)
    if start == 0:
        _measure_knn(run, log)
    begin = time.perf_counter()
    with _StopSignals() as stop:
        _loop(run, log, stop)
    say(f"finished: {run.folder / snapshot.LAST} after {duration(time.perf_counter() - begin)}")


def _loop(run: Run, log: Log, stop: "_StopSignals") -> None:
    cfg, total, per_epoch = run.cfg, run.total, run.progress.per_epoch
    batches = data.train_loader(run.files, cfg, start=run.progress.iteration, stop=total, device=run.device)
    broken, clock = data.Broken(run.files, cfg.DATA.MAX_BROKEN), Clock(cfg.SOLVER.IMS_PER_BATCH)
    meter = _Meter(run.device)
    first = run.progress.iteration + 1  # logged too: on a slow machine a period may take an hour
    for done in range(first, total + 1):
        epoch = (done - 1) // per_epoch
        query, key, waited = _next(batches, broken, run.device)
        lr = learning_rate(cfg.SOLVER, epoch)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        meter.add(_step(run, (query, key), done - 1))
        clock.step(waited)
        run.progress = replace(run.progress, iteration=done)
        ends_epoch, ends_run = done % per_epoch == 0, done == total
        its_turn = done == first or done % cfg.SOLVER.LOG_PERIOD == 0
        stop_now = stop.requested and dist.world_size() == 1
        if its_turn or ends_epoch or ends_run or stop_now:
            values, stop_now, unreadable = meter.read(stop.requested, len(broken.indices))
            _check_finite(values["loss"], run)
            broken.check(unreadable)
            speed, data_wait, left = clock.read(total - done)
            values = {"iteration": done, "epoch": epoch, **values, "lr": lr, "images_per_second": speed,
                      "data_wait": data_wait, "time": time.time()}  # fmt: skip
            log.write(values)
            say_step(values, total=total, epochs=cfg.SOLVER.MAX_EPOCH, seconds_left=left)
        if ends_run or (ends_epoch and (epoch + 1) % cfg.KNN.PERIOD == 0):
            _measure_knn(run, log)
        if ends_epoch or ends_run or stop_now:
            snapshot.save(run.folder, run.model, run.optimizer, run.progress, cfg=cfg)
            clock.restart()  # speed and waiting are those of training alone
        if stop_now and not ends_run:
            say(f"stopped at iteration {done}; everything is saved: the same command with --resume goes on")
            raise KeyboardInterrupt
    for line in broken.report():
        say(line)


def _next(
    batches: Iterator[data.Batch], broken: data.Broken, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, float]:
    begin = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - begin
    if batch.broken:
        broken.add(batch.broken)
    return batch.query.to(device, non_blocking=True), batch.key.to(device, non_blocking=True), waited


def _step(run: Run, views: tuple[torch.Tensor, torch.Tensor], iteration: int) -> torch.Tensor:
    cfg, order = run.cfg, None
    if cfg.MODEL.NORM == "ShuffleBN" and cfg.MOCO.SHUFFLE:
        groups = norm.groups_of(cfg)
        order = moco.permutation(cfg.SOLVER.IMS_PER_BATCH, groups=groups, seed=cfg.SEED, step=iteration)
    try:
        return train_step(
            run.model, run.optimizer, views, pixels=run.pixels, order=order, bf16=run.bf16,
            parts=norm.parts(cfg, run.device),
        )  # fmt: skip
    except NonFiniteLoss:
        raise _not_finite(run, iteration + 1) from None
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the GPU's memory does not suffice for SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}: use fewer "
            "images, and a MODEL.BN_GROUP_SIZE that divides them, or more GPUs"
        ) from None


def _check_finite(loss: float, run: Run) -> None:
    if not np.isfinite(loss):
        raise _not_finite(run, run.progress.iteration)


def _not_finite(run: Run, iteration: int) -> UserError:
    last = run.folder / snapshot.LAST
    kept = f"the last saved state is {last}" if last.exists() else "no checkpoint was written yet"
    return UserError(
        f"the loss became infinite or NaN by iteration {iteration}; {kept}; "
        "try a smaller SOLVER.BASE_LR or SOLVER.AMP off"
    )


def _measure_knn(run: Run, log: Log) -> None:
    if run.probe is None:
        return
    accuracy = run.probe.measure(cast(ResNet, run.model.encoder_q), bf16=run.bf16)
    log.write({"knn": accuracy, "epoch": run.progress.epoch, "iteration": run.progress.iteration})
    say(f"kNN {accuracy:.1f} % (chance {run.probe.chance:.1f} %) at iteration {run.progress.iteration}")


class _Meter:
    """Sums metrics on the device and brings their means over steps and processes to Python when asked."""

    def __init__(self, device: torch.device) -> None:
        self.sums, self.steps = torch.zeros(len(METRICS), device=device), 0

    def add(self, metrics: torch.Tensor) -> None:
        self.sums += metrics
        self.steps += 1

    def read(self, stop: bool, broken: int) -> tuple[dict[str, float], bool, int]:
        """Means of METRICS; whether any process wants to stop; unreadable images met.

        Over the epochs every process meets all images, so that the mean of their counts, not the sum, is the
        number of distinct images.
        """
        everything = torch.cat([self.sums / self.steps, self.sums.new_tensor([float(stop), float(broken)])])
        dist.mean_over_processes([everything])
        *means, stops, unreadable = everything.tolist()
        self.sums, self.steps = torch.zeros_like(self.sums), 0
        return dict(zip(METRICS, means, strict=True)), stops > 0, round(unreadable)


class _StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a wish that the loop grants; the second Ctrl-C acts at once."""

    requested = False

    def __enter__(self) -> "_StopSignals":
        self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT and dist.world_size() == 1:
            raise KeyboardInterrupt  # torchrun repeats every signal by itself, and kills after 30 seconds
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
