"""The training loop: detectron2's model, solver and losses, with periodic tests and checkpoints."""

import time
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage
from torch import nn

from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.common.files import write_atomic
from pretrain.common.run_folder import remove_leftovers
from pretrain.common.signals import Signals, until_stopped
from transfer import d2_compat
from transfer.data import train_stream
from transfer.detector_files import CONFIG, FINAL, write_categories
from transfer.models import build
from transfer.train import evaluation, precise_bn
from transfer.train.evaluation import Metrics
from transfer.train.log import Progress
from transfer.train.state import LAST, State, is_ours, keep_best, restore, save, write
from transfer.train.step import Batch, grad_scaler, seed, step


def train(
    cfg: CfgNode,
    model: nn.Module,
    source: train_stream.Source,
    *,
    data: dict[str, str | None] | None = None,
    resume: bool | Path = False,
) -> tuple[State, dict[str, Metrics]]:
    """Train `model` in place to `SOLVER.MAX_ITER`, run PreciseBN, write `model_final.pth`, and test the model.

    Args:
        source: the images to train on.
        data: `digests.data_digests(cfg)`.
        resume: continue from this file, or, if True, from `model_last.pth` if it exists.
    Returns:
        The state at the end, and the metrics of `evaluation.evaluate`.
    Raises:
        UserError: a loss is not finite, `model_last.pth` has other settings, or an image is broken.
        SystemExit: with `pretrain.common.signals.STOPPED`, after SIGTERM, SIGUSR1 or SIGHUP, once everything is saved;
            with `INTERRUPTED` after Ctrl-C.
    """
    model.train()
    optimizer = build.build_optimizer(cfg, model)
    state = State(model, optimizer, build_lr_scheduler(cfg, optimizer), grad_scaler(cfg), data or {})
    output = Path(cfg.OUTPUT_DIR)
    if resume:
        restore(state, cfg, resume)
    if distributed.is_main():
        remove_leftovers(output, is_ours)
        text = cfg.dump().encode()
        write_atomic(output / CONFIG, lambda file: file.write(text))
    parallel = d2_compat.distribute(model, broadcast_buffers=False)
    if distributed.is_main():
        write_categories(cfg, output)
    batches = train_stream.batches(source, cfg, state.iteration)
    clock = _Clock(cfg.SOLVER.SAVE_MINUTES)
    alone, stop = distributed.world_size() == 1, False
    with (
        EventStorage(state.iteration),
        Progress(cfg, state.iteration) as log,
        Signals(ctrl_c=True, alone=alone) as signals,
    ):
        while state.iteration < cfg.SOLVER.MAX_ITER:
            advance(cfg, state, parallel, batches, log=log)
            if _is_due(cfg.TEST.EVAL_PERIOD, state, cfg):
                with log.pause():
                    _measure_bn(cfg, state, parallel, train_stream.batches(source, cfg, state.iteration))
                    _test(cfg, state, log)
                model.train()
            stop, late = distributed.any_process(signals.requested, clock.due())
            if stop or late or _is_due(cfg.SOLVER.CHECKPOINT_PERIOD, state, cfg):
                with log.pause():
                    _save(cfg, state, log)
                clock.restart()
            if stop:
                break
        log.bar.close()
        if stop:
            del batches  # ends the loader's workers
            say(
                f"stopped at iteration {state.iteration}; everything is saved in {output / LAST}: "
                "the same command with --resume continues"
            )
            signals.leave()
        _save(cfg, state, log)
        signals.saved = (
            f"stopped before the end of the final test; everything is saved in {output / LAST}: "
            "the same command with --resume tests it"
        )
        _measure_bn(cfg, state, parallel, batches)
        del batches  # ends the loader's workers
        if distributed.is_main():
            write(cfg, FINAL, {"model": model.state_dict()})
        return state, _test(cfg, state, log)


class _Clock:
    """Tells when `SOLVER.SAVE_MINUTES` (0: never) have passed, by the main process's clock; never in the others."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        self.last = time.monotonic()

    def due(self) -> bool:
        return distributed.is_main() and 0 < self.seconds <= time.monotonic() - self.last


def advance(cfg: CfgNode, state: State, model: nn.Module, batches: Iterator[Batch], *, log: Progress) -> None:
    """Run one iteration."""
    with log.waiting():
        batch = next(batches)
    losses = step(cfg, model, batch, state.optimizer, state.iteration, scaler=state.scaler)
    lr = state.optimizer.param_groups[0]["lr"]
    state.scheduler.step()
    state.iteration += 1
    log.add(state.iteration, losses, lr)


def _is_due(period: int, state: State, cfg: CfgNode) -> bool:
    """Return whether a task with this period (0: never) is due now. The end of training is handled separately."""
    return period > 0 and state.iteration % period == 0 and state.iteration < cfg.SOLVER.MAX_ITER


def _save(cfg: CfgNode, state: State, log: Progress) -> None:
    log.flush()
    save(state, cfg)
    distributed.barrier()  # no process exits, which would end the others, while the main one writes


def _measure_bn(cfg: CfgNode, state: State, model: nn.Module, batches: Iterator[Batch]) -> None:
    """Run PreciseBN before a test, as detectron2 does.

    During training the running statistics are a moving average over changing weights, so a test with them would not
    represent the current model. Training itself does not use them, and the saved state depends only on the
    iteration.
    """
    if cfg.TEST.PRECISE_BN.ENABLED:
        seed(cfg.SEED, state.iteration)
        layers = precise_bn.update(model, until_stopped(batches), cfg.TEST.PRECISE_BN.NUM_ITER)
        say(f"PreciseBN: {layers} layers measured over {cfg.TEST.PRECISE_BN.NUM_ITER} batches")
    else:
        precise_bn.share(model)


def _test(cfg: CfgNode, state: State, log: Progress) -> dict[str, Metrics]:
    metrics = evaluation.evaluate(cfg, state.model)
    if distributed.is_main():
        for line in evaluation.table(metrics):
            say(line)
        log.write_metrics(state.iteration, metrics)
        keep_best(cfg, state, metrics)
    return metrics
