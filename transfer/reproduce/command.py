"""What `tools/reproduce.py` does, from the parsed command line to the written table."""

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.console import duration, say
from pretrain.errors import UserError
from transfer.reproduce import collect, outputs, page, plan, progress, scheduler, tables, worker
from transfer.reproduce.executors import Executor, Local, Slurm
from transfer.reproduce.jobs import Job, in_order
from transfer.reproduce.plan import Cell, Options


def listing() -> list[str]:
    """One line for each table: name, title, what it costs."""
    book = tables.read()
    lines = ["table, rows that can run, hours on 8 V100 for one trial without and with --fetch", ""]
    for table in book.tables.values():
        able = [row for row in table.rows if not (row.init.needs or row.init.cited)]
        runnable = (
            f"{len(able)} of {len(table.rows)}" if any(c.config for c in table.columns) else "cited only"
        )
        lines.append(f"{table.name:<18}{table.title} ({table.source})")
        lines.append(
            f"{'':<18}{runnable}; {_cost(table, book, fetch=False)} h; {_cost(table, book, fetch=True)} h"
        )
    return lines


def _cost(table: tables.Table, book: tables.Book, *, fetch: bool) -> str:
    """Hours of all rows that can run; `+ ?` where nobody reports those of a part."""
    total, unknown = 0.0, False
    for row in table.rows:
        init = row.init
        if init.needs or init.cited or not any(column.config for column in table.columns):
            continue
        configs = [row.config or column.config for column in table.columns]
        configs += [init.pretrain] if init.pretrain and not (fetch and init.released) else []
        hours = [book.hours.get(config) for config in configs]
        total += sum(hour or 0 for hour in hours)
        unknown = unknown or None in hours
    return f"{total:.0f}{' + ?' if unknown else ''}"


def run(args: argparse.Namespace) -> int:
    """Everything but --list. Returns the exit status: 0, or 1 where a job failed."""
    book = tables.read()
    if not args.table:
        raise UserError("give --table NAME, or --list to see the tables")
    args.output, args.root = args.output.absolute(), args.root.absolute()  # workers run elsewhere
    table, options = book.table(args.table), _options(args)
    name = f"{table.name}{'-smoke' if options.smoke else ''}"
    runs, folder = args.output / ("smoke-runs" if options.smoke else "runs"), args.output / name
    if options.smoke:
        from transfer.reproduce import miniature

        miniature.build(options.root)
    cells = plan.plan(table, options)
    jobs = in_order([job for cell in cells for found in cell.runs.values() for job in found])
    if args.dry_run or args.status:
        print("\n".join(progress.listing(jobs, runs) if args.dry_run else progress.status(jobs, runs)))
        return 0
    _check(jobs, runs)
    began = time.perf_counter()
    watch = progress.Watch(jobs, runs)
    failed = scheduler.run(jobs, runs, _executor(args), tick=watch.look)
    _write(table, cells, options, runs=runs, folder=folder, failed=failed)
    say(
        f"{folder}/report.html, table.md, table.csv, table.tex, table.json   ({duration(time.perf_counter() - began)})"
    )
    return 1 if failed else 0


def _write(
    table: tables.Table,
    cells: Sequence[Cell],
    options: Options,
    *,
    runs: Path,
    folder: Path,
    failed: dict[str, str],
) -> None:
    content: dict[str, Any] = collect.collect(table, cells, options, runs=runs, failed=failed)
    outputs.write(folder, content)
    page.write(folder / "report.html", content)
    say(outputs.markdown(content))


def _check(jobs: Sequence[Job], runs: Path) -> None:
    """Refuse before anything starts what cannot run: data that are missing."""
    waiting = [job for job in jobs if not worker.is_done(job.folder(runs), job.product)]
    missing = list(dict.fromkeys(reason for job in waiting if (reason := job.missing)))
    if missing:
        raise UserError("; ".join(missing))


def _options(args: argparse.Namespace) -> Options:
    key, _, values = args.sweep.partition("=")
    if args.sweep and not (key and values):
        raise UserError(f"--sweep {args.sweep}: write KEY=A,B, such as SOLVER.BASE_LR=0.01,0.02")
    if args.trials < 1:
        raise UserError(f"--trials {args.trials}: give 1 or more")
    extra = {}
    for text in args.init:
        name, _, path = text.partition("=")
        if not (name and path):
            raise UserError(f"--init {text}: write NAME=FILE")
        extra[name] = Path(path)
    smoke_root = args.output / "smoke-data"
    return Options(
        inits=tuple(part for part in args.inits.split(",") if part),
        extra=extra,
        seeds=_seeds(args.seeds) or tuple(range(args.trials)),
        sweep=(key, tuple(values.split(","))) if args.sweep else None,
        schedule=args.schedule,
        smoke=args.smoke,
        fetch=args.fetch,
        launcher=_launcher(args.launcher, args.num_gpus),
        root=smoke_root if args.smoke else args.root,
    )


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise UserError(f"--seeds {text}: write numbers, such as 0,1,2") from None


def _launcher(text: str, gpus: int) -> tuple[str, ...]:
    """What stands before the tool in a command."""
    if text:
        return tuple(shlex.split(text))
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus))
    return ("python", *(several if gpus > 1 else ()))


def _executor(args: argparse.Namespace) -> Executor:
    if args.slurm:
        pairs = [part.partition("=") for part in args.slurm.split(",")]
        parameters = {f"slurm_{key}": int(value) if value.isdigit() else value for key, _, value in pairs}
        parameters.setdefault("slurm_gpus_per_node", args.num_gpus)
        return Slurm(args.output / "slurm", parameters)
    import torch

    gpus = list(range(torch.cuda.device_count()))
    return Local(gpus, each=args.num_gpus, jobs=args.jobs or 1)
