"""A fine-tuning run: set up data, model and weights, train, test, and write the results.

detectron2's own trainers assert CUDA, lose their position in the data on resume, and silently start from random
weights. Their parts do not, so this project combines them in its own loop.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from pretrain.common import distributed, loggers
from pretrain.common.console import say
from pretrain.common.errors import UserError, compiler_in_one_line
from pretrain.common.files import write_json
from pretrain.common.pool import worker_failures
from pretrain.common.run_folder import held, in_use
from transfer import d2_compat, results
from transfer.config import length
from transfer.data import datasets, train_stream
from transfer.data.digests import data_digests, data_record
from transfer.data.train_stream import Source
from transfer.models import init_weights
from transfer.models.build import build
from transfer.train import evaluation, loop, precise_bn, start
from transfer.train.state import LAST
from transfer.visualize import drawing

RESULTS = "results.json"


def run(cfg: CfgNode, *, resume: bool | Path = False, eval_only: bool = False) -> None:
    """Train as `cfg` says, test, and write `results.json`, pictures and weights to `OUTPUT_DIR`.

    Every process of the job calls this; the process group comes from the environment.

    Args:
        cfg: from `transfer.config.load.load_config`.
        resume: continue from this file, or, if True, from `model_last.pth` in `OUTPUT_DIR` if it exists.
        eval_only: test `MODEL.WEIGHTS`, a fine-tuned detector, without training.
    Raises:
        UserError: a mistake in the config, the weights or the data that the user can fix.
        SystemExit: with `pretrain.common.signals.STOPPED`, after SIGTERM, SIGUSR1 or SIGHUP, once everything is saved;
            with `INTERRUPTED` after Ctrl-C.
    """
    cfg = cfg.clone()
    output = Path(cfg.OUTPUT_DIR)
    if not eval_only:
        if _is_finished(output, resume=resume):
            return
        loggers.check(cfg)
    if cfg.MODEL.WEIGHTS and "://" not in cfg.MODEL.WEIGHTS:
        init_weights.local_path(cfg.MODEL.WEIGHTS)  # before the data, which may take long to read
    datasets.prepare(cfg, train=not eval_only)
    device = distributed.pick_device(cfg.MODEL.DEVICE)
    cfg.MODEL.DEVICE = device.type
    source, rule = None, ""
    if not eval_only:
        source = train_stream.read(cfg)
        rule = length.follow_images(cfg, len(source.records))
    cfg.freeze()
    distributed.init_from_env(device)
    d2_compat.set_local_process_group()

    if eval_only:  # it writes other files, each at once, so it may run while the folder's run trains
        _train_and_test(cfg, output)
        return
    with held(output):
        if not _is_finished(output, resume=resume):  # another run may have ended since
            _train_and_test(cfg, output, source, rule=rule, resume=resume)


def _train_and_test(
    cfg: CfgNode, output: Path, source: Source | None = None, *, rule: str = "", resume: bool | Path = False
) -> None:
    """Train on `source`, whose number of images gave the schedule by `rule`, or without one only test."""
    started, eval_only = time.perf_counter(), source is None
    with advice(cfg):
        model, weights_record = build(cfg, eval_only=eval_only)
        for line in start.lines(cfg, model, source, rule=rule):
            say(line)
        if source and (note := start.memory_note(cfg)):
            say(note)
        if source is None:
            metrics, best, seconds = evaluation.evaluate(cfg, model), None, 0.0
            for line in evaluation.table(metrics):
                say(line)
        else:
            state, metrics = loop.train(cfg, model, source, data=data_digests(cfg), resume=resume)
            best, seconds = state.best, state.earlier
    if distributed.is_main():
        drawn = drawing.draw_predictions(cfg, model, output / ("pictures_eval" if eval_only else "pictures"))
        record = {
            **_settings(cfg, weights_record),
            "data": data_record(cfg, train=not eval_only),
            "evaluators": evaluation.methods(cfg),
            "metrics": metrics,
            **({} if best is None else {"best": best}),
            "iterations": 0 if eval_only else cfg.SOLVER.MAX_ITER,
            "seconds": round(seconds + time.perf_counter() - started, 1),
            "pictures": [str(path.relative_to(output)) for path in drawn],
        }
        written = output / ("results_eval.json" if eval_only else RESULTS)
        write_json(written, record)
        if not eval_only:
            (output / LAST).unlink(missing_ok=True)
        say(f"wrote {written}")
    distributed.barrier()


def _settings(cfg: CfgNode, weights_record: dict[str, Any] | None) -> dict[str, Any]:
    """Return the settings and the environment that the numbers of a run depend on."""
    return {
        "config_sha256": results.config_digest(cfg),
        "init": "random" if weights_record is None else "weights",
        "weights": weights_record,
        "seed": cfg.SEED,
        "precise_bn": precise_bn.ESTIMATOR if cfg.TEST.PRECISE_BN.ENABLED else None,
        **results.environment(cfg.MODEL.DEVICE),
    }


def _is_finished(output: Path, *, resume: bool | Path) -> bool:
    """Return whether a resumed run has nothing left to do. Raises `UserError` for a run that would be overwritten."""
    finished, unfinished = output / RESULTS, output / LAST
    if resume is True and os.path.exists(finished):
        say(f"{output}: this run is finished; nothing to do")
        return True
    for path in (finished, unfinished):
        # os.path: Path.exists raises for a name that is too long and without permission
        if not (resume and path == unfinished) and os.path.exists(path):
            raise in_use(output, finished=path == finished)
    return False


@contextmanager
def advice(cfg: CfgNode) -> Iterator[None]:
    """Turn failures that depend on the machine into `UserError`s that name the keys to change."""
    try:
        with compiler_in_one_line(), worker_failures("DATALOADER.NUM_WORKERS", "SOLVER.IMS_PER_BATCH"):
            yield
    except torch.cuda.OutOfMemoryError:
        share = cfg.SOLVER.IMS_PER_BATCH // distributed.world_size()
        smaller = "lower INPUT.MAX_SIZE_TRAIN (and MAX_SIZE_TEST)"
        if "vit" in cfg.MODEL.BACKBONE.NAME:  # whose images are padded to squares of one size
            smaller = (
                "set MODEL.VIT.CHECKPOINT_BLOCKS True, lower MODEL.VIT.IMAGE_SIZE and the sizes of INPUT"
            )
        raise UserError(
            f"the GPU has too little memory for {share} images in {cfg.SOLVER.ACCUMULATE} part(s): "
            f"raise SOLVER.ACCUMULATE to {_next_divisor(share, cfg.SOLVER.ACCUMULATE)} (the same batch, fewer "
            f"images at a time), set SOLVER.AMP.ENABLED True, or {smaller}; "
            "--scale N uses smaller batches"
        ) from None


def _next_divisor(number: int, above: int) -> int:
    return next((n for n in range(above + 1, number + 1) if number % n == 0), number)
