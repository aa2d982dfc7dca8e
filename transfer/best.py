"""`TEST.KEEP_BEST`: the weights with the best value of a metric, kept as `model_best.pth`."""

from pathlib import Path

from detectron2.config import CfgNode

from pretrain.common.console import say
from pretrain.tensor_files import checkpoint
from transfer.evaluation import Metrics
from transfer.snapshot import State

BEST = "model_best.pth"


def keep(cfg: CfgNode, state: State, metrics: dict[str, Metrics]) -> None:
    """Write `model_best.pth` if `TEST.KEEP_BEST` (`bbox/AP`) is higher than ever on the first test set.

    Call it on the main process, after each test.
    """
    if not cfg.TEST.KEEP_BEST or not metrics:
        return
    task, name = cfg.TEST.KEEP_BEST.split("/")
    tasks = next(iter(metrics.values()))
    if name not in tasks.get(task, {}):
        # No error: training goes on, and the metric may exist in the end
        known = ", ".join(f"{t}/{n}" for t, values in tasks.items() for n in values if "-" not in n)
        say(f"note: TEST.KEEP_BEST {cfg.TEST.KEEP_BEST}: the test gives {known}; no {BEST} is kept")
        return
    value = tasks[task][name]
    if value is None or (state.best is not None and value <= state.best["value"]):
        return
    checkpoint.save(Path(cfg.OUTPUT_DIR) / BEST, {"model": state.model.state_dict()})
    state.best = {
        "metric": cfg.TEST.KEEP_BEST, "value": value, "iteration": state.iteration, "weights": BEST,
    }  # fmt: skip
