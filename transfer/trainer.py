"""Fine-tuning: one plain loop over detectron2's model, solver and evaluators.

detectron2's own trainers assert CUDA, lose their place in the data on resume, and start from random weights
without a word; the parts they are made of do not. So the parts are used, and the loop is written out.
"""

import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfer import d2_compat

# isort: split
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage

from pretrain import checkpoint, dist
from pretrain.console import say
from pretrain.errors import UserError
from pretrain.norm import convert_sync_batchnorm
from transfer import (
    datasets,
    evaluation,
    modeling,  # noqa: F401 (registers the paper's heads)
    pictures,
    precise_bn,
    progress,
    results,
    solver,
    stream,
    weights,
)
from transfer.sources import file_digest

LAST, FINAL, RESULTS = "model_last.pth", "model_final.pth", "results.json"


def run(cfg: CfgNode, *, resume: bool = False, eval_only: bool = False) -> None:
    """Train as `cfg` says, test, and write `results.json`, pictures and weights to `OUTPUT_DIR`.

    Every process of the job calls this; the process group comes from the environment.

    Args:
        cfg: by `transfer.config.load`.
        resume: go on from `model_last.pth` in `OUTPUT_DIR`, where there is one.
        eval_only: test `MODEL.WEIGHTS`, a fine-tuned detector, without training.
    Raises:
        UserError: anything in the config, the weights or the data that the user has to mend.
    """
    logging.getLogger("detectron2").setLevel(logging.ERROR)  # its notices are about its own defaults
    cfg = cfg.clone()
    output = Path(cfg.OUTPUT_DIR)
    if resume and not eval_only and (output / RESULTS).exists():
        say(f"{output}: this run is finished; nothing to do")
        return
    _refuse_overwriting(output, resume=resume, eval_only=eval_only)
    datasets.prepare(cfg, train=not eval_only)
    device = dist.pick_device(cfg.MODEL.DEVICE)
    cfg.MODEL.DEVICE = device.type
    cfg.freeze()
    dist.init_from_env(device)
    d2_compat.set_local_process_group()

    started = time.perf_counter()
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg)
    if cfg.SOLVER.AMP.ENABLED:
        _pool_in_float32(model)
    weights_record = _load_weights(cfg, model, eval_only=eval_only)
    if device.type == "cpu":
        model.to(memory_format=torch.channels_last)  # 8 % less time an iteration in the demo
        if dist.world_size() > 1:
            convert_sync_batchnorm(model)  # torch's own refuses CPU tensors
    before = 0.0  # seconds of the sessions that this one resumes
    if not eval_only:
        before = train(cfg, model, resume=resume)
        if dist.is_main():
            checkpoint.save(output / FINAL, {"model": model.state_dict()})
    metrics = evaluation.evaluate(cfg, model)
    if dist.is_main():
        for line in evaluation.table(metrics):
            say(line)
        drawn = pictures.draw_predictions(cfg, model, output / ("pictures_eval" if eval_only else "pictures"))
        record = {
            **_settings(cfg, weights_record),
            "metrics": metrics,
            "iterations": 0 if eval_only else cfg.SOLVER.MAX_ITER,
            "seconds": round(before + time.perf_counter() - started, 1),
            "pictures": [str(path.relative_to(output)) for path in drawn],
        }
        written = output / ("results_eval.json" if eval_only else RESULTS)
        results.write_json(written, record)
        if not eval_only:
            (output / LAST).unlink(missing_ok=True)
        say(f"wrote {written}")
    dist.barrier()


def _settings(cfg: CfgNode, weights_record: dict[str, Any] | None) -> dict[str, Any]:
    """What a run's numbers depend on."""
    return {
        "config_sha256": results.config_digest(cfg),
        "init": "random" if weights_record is None else "weights",
        "weights": weights_record,
        "seed": cfg.SEED,
        "precise_bn": precise_bn.ESTIMATOR if cfg.TEST.PRECISE_BN.ENABLED else None,
        **results.environment(cfg.MODEL.DEVICE),
    }


def train(cfg: CfgNode, model: nn.Module, *, resume: bool) -> float:
    """Train `model` in place to `SOLVER.MAX_ITER`, PreciseBN included.

    Returns the seconds that earlier sessions of the same run took.
    """
    began = time.perf_counter()
    model.train()
    optimizer = solver.build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    last = Path(cfg.OUTPUT_DIR) / LAST
    start, before = _restore(last, cfg, model, optimizer, scheduler) if resume else (0, 0.0)
    if dist.is_main():
        text = cfg.dump().encode()
        checkpoint.write_atomic(last.with_name("config.yaml"), lambda file: file.write(text))
    parallel = d2_compat.distribute(model, broadcast_buffers=False)
    log = progress.Progress(cfg, start)
    batches = stream.training_batches(cfg, start)
    with EventStorage(start):
        for iteration in range(start, cfg.SOLVER.MAX_ITER):
            with log.waiting():
                batch = next(batches)
            losses = step(cfg, parallel, batch, optimizer, iteration)
            log.add(iteration, losses, optimizer.param_groups[0]["lr"])
            scheduler.step()
            done = iteration + 1
            if done % cfg.SOLVER.CHECKPOINT_PERIOD == 0 and done < cfg.SOLVER.MAX_ITER and dist.is_main():
                seconds = before + time.perf_counter() - began
                _save(last, cfg, model, optimizer, scheduler, iteration=done, seconds=seconds)
        if cfg.TEST.PRECISE_BN.ENABLED:
            _seed(cfg.SEED, cfg.SOLVER.MAX_ITER)
            layers = precise_bn.update(parallel, batches, cfg.TEST.PRECISE_BN.NUM_ITER)
            say(f"PreciseBN: {layers} layers measured over {cfg.TEST.PRECISE_BN.NUM_ITER} batches")
    return before


def step(
    cfg: CfgNode, model: nn.Module, batch: stream.Batch, optimizer: torch.optim.Optimizer, iteration: int
) -> dict[str, torch.Tensor]:
    """One optimizer step. Returns the losses by name, detached, averaged over the processes.

    Raises:
        UserError: a loss is infinite or NaN, on any process; every process raises, and no weight has changed.
    """
    _seed(cfg.SEED, iteration)
    # bf16 and not detectron2's fp16: it needs no loss scaling
    amp = torch.autocast(cfg.MODEL.DEVICE, dtype=torch.bfloat16) if cfg.SOLVER.AMP.ENABLED else nullcontext()
    with amp:
        losses: dict[str, torch.Tensor] = model(batch)
        total = sum(losses.values(), torch.zeros((), device=cfg.MODEL.DEVICE))
    names, values = list(losses), torch.stack([loss.detach().float() for loss in losses.values()])
    dist.mean_over_processes([values])
    if not torch.isfinite(values).all():
        parts = ", ".join(f"{name} {value:g}" for name, value in zip(names, values.tolist(), strict=True))
        raise UserError(
            f"the loss is not finite at iteration {iteration + 1} ({parts}): lower SOLVER.BASE_LR, lengthen "
            "SOLVER.WARMUP_ITERS, or clip with SOLVER.CLIP_GRADIENTS.ENABLED True"
        )
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return dict(zip(names, values, strict=True))


def _seed(seed: int, iteration: int) -> None:
    """Proposals are sampled at random: by a generator that knows the iteration, so that a resume is exact."""
    torch.manual_seed((seed * 1_000_003 + iteration) * 1024 + dist.rank())


def _load_weights(cfg: CfgNode, model: nn.Module, *, eval_only: bool) -> dict[str, Any] | None:
    if eval_only:
        if not cfg.MODEL.WEIGHTS:
            raise UserError("--eval-only needs MODEL.WEIGHTS: the model_final.pth of a fine-tuning run")
        path = weights.local_path(cfg.MODEL.WEIGHTS)
        weights.load_detector(model, path)
        return {"path": str(path), "sha256": file_digest(path)}
    if cfg.MODEL.INIT == "random":
        say("MODEL.INIT random: training from scratch")
        return None
    return weights.load_into(model, cfg)


def _refuse_overwriting(output: Path, *, resume: bool, eval_only: bool) -> None:
    finished, unfinished = output / RESULTS, output / LAST
    if eval_only or resume:
        return
    if finished.exists():
        raise UserError(
            f"OUTPUT_DIR {output} holds a finished run: choose another folder, or remove this one"
        )
    if unfinished.exists():
        raise UserError(
            f"OUTPUT_DIR {output} holds an unfinished run: add --resume, or choose another folder"
        )


def _save(
    path: Path,
    cfg: CfgNode,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    *,
    iteration: int,
    seconds: float,
) -> None:
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    progress_made = {"iteration": iteration, "seconds": seconds, "config_sha256": results.config_digest(cfg)}
    checkpoint.save(path, {**{k: v.state_dict() for k, v in state.items()}, **progress_made})


def _restore(path: Path, cfg: CfgNode, model: nn.Module, optimizer: Any, scheduler: Any) -> tuple[int, float]:
    """Iteration to go on with, and the seconds that led there."""
    if not path.exists():
        say(f"--resume: no {path}; starting from iteration 0")
        return 0, 0.0
    state = checkpoint.load(path)
    if state.get("config_sha256") != results.config_digest(cfg):
        raise UserError(
            f"--resume: {path} was written under other settings than these: give those of "
            f"{path.with_name('config.yaml')}, or another OUTPUT_DIR"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    say(f"resumed {path} at iteration {state['iteration']}")
    return int(state["iteration"]), float(state["seconds"])


def _pool_in_float32(model: nn.Module) -> None:
    """Keep box coordinates exact under bf16: ROIAlign casts the boxes to the type of the features.

    bf16 holds whole pixels only up to 256; a box edge at 601.3 would be pooled from 600.
    """

    def to_float32(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        features, *rest = arguments
        return ([feature.float() for feature in features], *rest)

    for module in model.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(to_float32)
