"""What `tools/reproduce.py` does, from the parsed command line to the finished table."""

import argparse
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.common.console import duration, say
from pretrain.common.errors import UserError
from pretrain.common.files import write_text
from transfer.reproduce import progress
from transfer.reproduce.jobs import scheduler
from transfer.reproduce.jobs.job import Job, in_order
from transfer.reproduce.jobs.local import Executor, Local, visible_gpus
from transfer.reproduce.jobs.slurm import Slurm, slurm_parameters
from transfer.reproduce.page import figure, page
from transfer.reproduce.plan import leaderboard, plan, tables
from transfer.reproduce.plan.options import Options
from transfer.reproduce.plan.plan import Cell
from transfer.reproduce.results import collect, text_tables


def run(args: argparse.Namespace) -> int:
    """Do everything except --list. Return the exit status: 0, or 1 if a job failed."""
    book = tables.read()
    if not args.table:
        raise UserError("give --table NAME; --list shows the tables")
    # Absolute, because workers have another working directory.
    args.output, args.root = args.output.absolute(), args.root.absolute()
    options = _options(args)
    variant = _variant(options)
    named = [name for name in args.init if "=" not in name]
    table, options = leaderboard.joined(book.table(args.table), options, book.released, named=named)
    name = "-".join([table.name, *variant])
    runs, folder = args.output / ("smoke-runs" if options.smoke else "runs"), args.output / name
    plan.chosen(table, options)  # a wrong name is refused before any data are made
    if options.smoke:
        from transfer.reproduce.plan import smoke_data

        smoke_data.build(options.root)
    cells = plan.plan(table, options)
    wanted = [job for cell in cells for found in cell.runs.values() for job in found]
    jobs = in_order(wanted)
    if args.dry_run or args.status:
        print("\n".join(progress.listing(jobs, runs) if args.dry_run else progress.status(jobs, runs)))
        return 0
    shown = plan.plan(table, replace(options, inits=())) if options.inits else cells
    return execute(table, cells, options, executor(args), runs=runs, folder=folder, shown=shown)


def execute(
    table: tables.Table,
    cells: Sequence[Cell],
    options: Options,
    executor: Executor,
    *,
    runs: Path,
    folder: Path,
    shown: Sequence[Cell] | None = None,
    answer: Callable[[dict[str, Any]], list[str]] = lambda _: [],
) -> int:
    """Run what is not done yet, and write the table. Return the exit status: 0, or 1 if a job failed.

    Args:
        runs: folder of all jobs.
        folder: of the table's own files.
        shown: the cells of the table, if it has more than those that are run.
        answer: returns sentences to put above the table, from the dict of `collect.collect`.
    """
    wanted = [job for cell in cells for found in cell.runs.values() for job in found]
    _check(scheduler.unfinished(wanted, runs))
    began = time.perf_counter()
    shown = shown or cells
    try:
        with progress.Watch(in_order(wanted), runs) as watch:
            failed = scheduler.run(wanted, runs, executor, tick=watch.look)
    except UserError:  # not even the first job could be started
        raise
    except BaseException:
        _write(table, shown, options, runs=runs, folder=folder, failed={}, answer=answer)
        raise
    _write(table, shown, options, runs=runs, folder=folder, failed=failed, answer=answer)
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    say(f"{folder}: {names}   ({duration(time.perf_counter() - began)})")
    return 1 if failed else 0


def _variant(options: Options) -> list[str]:
    """Return suffixes of the table's folder, so that another protocol never overwrites the full table."""
    parts = ["released"] if leaderboard.ALL in options.inits else []
    parts += ["smoke"] if options.smoke else []
    parts += [f"schedule{options.schedule:g}"] if options.schedule != 1 else []
    return parts + ([f"sweep-{options.sweep[0]}"] if options.sweep else [])


def _write(
    table: tables.Table,
    cells: Sequence[Cell],
    options: Options,
    *,
    runs: Path,
    folder: Path,
    failed: dict[str, str],
    answer: Callable[[dict[str, Any]], list[str]],
) -> None:
    content: dict[str, Any] = collect.collect(table, cells, options, runs=runs, failed=failed)
    content["answer"] = answer(content)
    text_tables.write(folder, content)
    if content["baseline"]:
        write_text(folder / "table.svg", figure.draw(content))
    page.write(folder / "report.html", content)
    say(text_tables.markdown(content))


def _check(jobs: Sequence[Job]) -> None:
    """Raise `UserError` if data are missing, before any job starts."""
    missing = list(dict.fromkeys(reason for job in jobs if (reason := job.missing)))
    if missing:
        raise UserError("; ".join(missing))


def _options(args: argparse.Namespace) -> Options:
    key, _, values = args.sweep.partition("=")
    if args.sweep and not (key and values):
        raise UserError(f"--sweep {args.sweep}: write KEY=A,B, such as SOLVER.BASE_LR=0.01,0.02")
    _check_numbers(args)
    extra = {}
    for text in (text for text in args.init if "=" in text):
        name, _, path = text.partition("=")
        if not (name and path):
            raise UserError(f"--init {text}: write NAME=FILE")
        if name in extra:
            raise UserError(f"--init {name}: this name is given twice; choose another one")
        extra[name] = Path(path)
    smoke_root = args.output / "smoke-data"
    return Options(
        inits=tuple(part for word in args.inits for part in word.split(",") if part),
        extra=extra,
        seeds=_seeds(args.seeds, args.trials),
        sweep=(key, tuple(values.split(","))) if args.sweep else None,
        schedule=args.schedule,
        smoke=args.smoke,
        fetch=args.fetch,
        launcher=launcher(args.launcher, args.num_gpus),
        processes=1 if args.launcher else args.num_gpus,
        cpu=_on_cpu(args),
        root=smoke_root if args.smoke else args.root,
        cache=args.output / "digests.json",
    )


def _check_numbers(args: argparse.Namespace) -> None:
    for name, least in (("trials", 1), ("num_gpus", 1), ("jobs", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: give {least} or more")


def _seeds(text: str, trials: int | None) -> tuple[int, ...]:
    """Return the seeds of `--seeds`, or else 0, 1, ... for `--trials`. Each seed is one run and may occur only once."""
    if not text:
        return tuple(range(trials or 1))
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--seeds {text}: write numbers, such as 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: give each seed once; repeating a run does not make a second trial")
    if trials is not None and trials != len(seeds):
        raise UserError(
            f"--trials {trials} --seeds {text}: this lists {len(seeds)} seed(s); leave --trials out"
        )
    return seeds


def launcher(text: str, gpus: int) -> tuple[str, ...]:
    """Return the parts of a command that come before the tool."""
    if text:
        try:
            parts = tuple(shlex.split(text))
        except ValueError as error:
            raise UserError(f"--launcher {text}: {error}; close every quotation mark") from None
        if not parts:
            raise UserError(
                "--launcher is empty: give a command, such as 'srun torchrun', or leave the flag out"
            )
        return parts
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus))
    return ("python", *(several if gpus > 1 else ()))


def _on_cpu(args: argparse.Namespace) -> bool:
    """Return whether a smoke run uses the CPU because this machine has fewer GPUs than one job asks for."""
    here = not (args.slurm or args.launcher)
    return bool(args.smoke and here and len(visible_gpus()) < args.num_gpus > 1)


def executor(args: argparse.Namespace) -> Executor:
    """Return what starts the jobs. Raise `UserError` if there are too few GPUs for one job, or SLURM is missing."""
    if args.slurm:
        return Slurm(args.output / "slurm", slurm_parameters(args.slurm, args.num_gpus), jobs=args.jobs)
    gpus = [] if _on_cpu(args) else visible_gpus()
    if not gpus and args.num_gpus > 1 and not (args.smoke or args.launcher):
        raise UserError(
            f"--num-gpus {args.num_gpus}: this machine has no GPU that PyTorch can use; "
            "leave the flag out to run on the CPU, or add --smoke"
        )
    return Local(gpus, each=args.num_gpus, jobs=args.jobs)
