"""The options of a table's command line."""

from dataclasses import dataclass, field
from pathlib import Path

from fvcore.common.config import CfgNode

from pretrain.common.errors import UserError


@dataclass(frozen=True)
class Options:
    """The options of the command line.

    Attributes:
        inits: names of the rows to run; empty means all.
        extra: further rows: name -> a checkpoint in any format that the converter accepts.
        seeds: each row is run once with each seed.
        sweep: (key, values) that are tried for every init, in the columns of fine-tuning, or in those of the linear
            probe if a table has no others; None means the value of the recipe.
        schedule: fraction of all iterations and epochs.
        smoke: use painted pictures, tiny sizes and a few iterations.
        fetch: use released files, where they exist, instead of pre-training.
        launcher: what starts a tool: `python`, or torchrun for several GPUs or machines.
        processes: number of processes that the launcher starts, which share a batch; 1 if only the launcher knows.
        cpu: with `smoke`, run all processes on the CPU because there are too few GPUs.
        root: folder of the data sets.
        cache: file with the digests of large folders; None means that they are computed each time.
    """

    inits: tuple[str, ...] = ()
    extra: dict[str, Path] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    sweep: tuple[str, tuple[str, ...]] | None = None
    schedule: float = 1.0
    smoke: bool = False
    fetch: bool = False
    launcher: tuple[str, ...] = ("python",)
    processes: int = 1
    cpu: bool = False
    root: Path = Path("datasets")
    cache: Path | None = None


def check_share(name: str, cfg: CfgNode, options: Options) -> None:
    """Raise `UserError` if the batch of a config cannot be divided among the processes of a job."""
    batch, processes = cfg.SOLVER.IMS_PER_BATCH, options.processes
    if batch % processes:
        fewer = next(n for n in range(processes, 0, -1) if batch % n == 0)
        raise UserError(
            f"--num-gpus {processes}: SOLVER.IMS_PER_BATCH {batch} of {name} (the total) cannot be divided among them: "
            f"use --num-gpus {fewer}"
        )
