"""What `tools/compare_inits.py` does, from the parsed command line to the page with the answer."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import read_json
from transfer.compare import answer, budget, data, rates
from transfer.compare.inits import inits, network
from transfer.compare.schedule import Schedule
from transfer.config.length import EPOCHS
from transfer.config.load import read_config
from transfer.convert.vit.convert import BACKBONE
from transfer.data import catalog, datasets
from transfer.reproduce import command
from transfer.reproduce.plan import plan, released
from transfer.reproduce.plan.options import Options
from transfer.reproduce.plan.plan import Cell
from transfer.reproduce.plan.tables import Column, Init, Row, Table
from transfer.reproduce.results import collect


def run(args: argparse.Namespace) -> int:
    """Compare the inits. Return the exit status: 0, or 1 if a run failed.

    Raises:
        UserError: a mistake in the flags, in the data, or in a checkpoint; nothing has been trained then.
    """
    args.output = args.output.absolute()
    own = read_config(args.config, args.overrides)
    epochs = own.SOLVER.EPOCHS or EPOCHS
    # The length that follows is given to the runs as SOLVER.MAX_ITER.
    args.overrides = [*budget.without(args.overrides, ("SOLVER.EPOCHS",))]
    rows = inits(args.init, released.read())
    places = _places(args)
    frozen = ("MODEL.BACKBONE.FREEZE_AT", "5") if args.frozen else ()
    shape = network(rows)
    _check_backbone(own.MODEL.BACKBONE.NAME, shape, args)
    _check_shape(shape, args.overrides)
    overrides = (*places, *shape, *args.overrides, *frozen)
    cfg = budget.load(args.config, overrides)
    datasets.prepare(cfg)  # refuses annotations that cannot be used
    data.refuse_leaks(*(Path(place) for place in places[1::2]))
    images = catalog.counts(cfg.DATASETS.TRAIN[0])[0]
    number = budget.runs(args, len(rows))
    at_once = budget.runs_at_once(args, cfg, number * len(args.fractions))
    lengths = budget.lengths(args, cfg, overrides, images, number, at_once=at_once, epochs=epochs)
    if not args.slurm:
        args.jobs = at_once
    table = _table(args, cfg, rows, overrides, lengths)
    options = Options(
        seeds=tuple(range(args.seeds)), processes=args.num_gpus, launcher=command.launcher("", args.num_gpus),
        root=args.output / "released", cache=args.output / "digests.json",
    )  # fmt: skip
    cells = plan.plan(table, options)
    if args.dry_run:
        return 0
    tuned = _tuned(args, cfg, table, options, places) if args.lr_sweep else []
    return _execute(
        args, table, cells, options, args.output,
        answer=lambda content: [*answer.sentences(content, rows[0].name), *tuned],
    )  # fmt: skip


def _tuned(
    args: argparse.Namespace, cfg: CfgNode, table: Table, options: Options, places: Sequence[str]
) -> list[str]:
    """Choose a learning rate for each init, compare the inits with these, and return what came out in sentences."""
    folder = args.output / "rates"
    train, test, said = data.hold_out(Path(places[1]), rates.SHARE, folder, flag="--lr-sweep")
    say(said)
    parts = {
        "DATASETS.TRAIN_JSON": str(train),
        "DATASETS.TEST_JSON": str(test),
        "DATASETS.TEST_IMAGES": places[3],
    }
    sweep = (rates.KEY, rates.values(cfg.SOLVER.BASE_LR))
    choosing = replace(options, seeds=options.seeds[:1], sweep=sweep)
    on_part = rates.sweep_table(table, parts)
    tried = plan.plan(on_part, choosing)
    # A rate that fails, because the loss diverges, is not chosen.
    _execute(args, on_part, tried, choosing, folder)
    chosen = rates.best(collect.collect(on_part, tried, choosing, runs=args.output / "runs", failed={}))
    cells = rates.tuned(plan.plan(table, replace(options, sweep=sweep)), chosen)

    def sentences(content: dict[str, Any]) -> list[str]:
        return [
            *rates.sentences(chosen),
            *(f"With these rates: {each}" for each in answer.sentences(content, table.baseline)),
        ]

    _execute(args, replace(table, name="tuned"), cells, options, args.output / "tuned", answer=sentences)
    return sentences(read_json(args.output / "tuned" / "table.json"))


def _execute(
    args: argparse.Namespace,
    table: Table,
    cells: Sequence[Cell],
    options: Options,
    folder: Path,
    *,
    answer: Callable[[dict[str, Any]], list[str]] = lambda _: [],
) -> int:
    return command.execute(
        table, cells, options, command.executor(args), runs=args.output / "runs", folder=folder, answer=answer
    )


def _check_backbone(backbone: str, shape: Sequence[str], args: argparse.Namespace) -> None:
    """Raise `UserError` for ViTs with a ResNet's config and the reverse, and for a frozen ViT."""
    vits, wanted = "MODEL.VIT.DEPTH" in shape, backbone == BACKBONE
    if shape and vits != wanted:
        held, example = ("ViT", "custom_ViTS_SFP") if vits else ("ResNet", "custom_R50_FPN")
        raise UserError(
            f"--config {args.config}: this detector has MODEL.BACKBONE.NAME {backbone}, but each --init is a {held}: "
            f"give a config of a {held}, such as --config transfer/{example}.yaml"
        )
    if vits and args.frozen:
        raise UserError(
            "--frozen: MODEL.BACKBONE.FREEZE_AT freezes only the stages of a ResNet: leave it out"
        )


def _check_shape(shape: Sequence[str], given: Sequence[str]) -> None:
    """Raise `UserError` for a key of the user's that contradicts the checkpoints, before anything is timed."""
    wanted = dict(zip(given[::2], given[1::2], strict=False))
    for key, value in zip(shape[::2], shape[1::2], strict=True):
        if wanted.get(key, value) != value:
            raise UserError(
                f"{key} {wanted[key]}: the checkpoints of --init have {value}; leave this key out"
            )


def _places(args: argparse.Namespace) -> tuple[str, ...]:
    """Return KEY, VALUE, ... of the data, in the order of training and testing, json and images."""
    for flag, path, is_folder in (
        ("--train", args.train, False), ("--train-images", args.train_images, True),
        ("--test", args.test, False), ("--test-images", args.test_images, True),
    ):  # fmt: skip
        if path and not (path.is_dir() if is_folder else path.is_file()):
            raise UserError(f"{flag} {path}: no such {'folder' if is_folder else 'file'}")
    train, test, images = args.train, args.test, args.test_images
    if args.holdout:
        train, test, said = data.hold_out(args.train, args.holdout, args.output / "holdout")
        images = args.train_images
        say(said)
    keys = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")
    paths = (train, args.train_images, test, images)
    return tuple(
        part
        for key, path in zip(keys, paths, strict=True)
        for part in (f"DATASETS.{key}", str(path.absolute()))
    )


def _table(
    args: argparse.Namespace,
    cfg: CfgNode,
    rows: Sequence[Init],
    overrides: Sequence[str],
    lengths: Sequence[Schedule],
) -> Table:
    metrics = ("bbox.AP", "bbox.AP50", *(("segm.AP",) if cfg.MODEL.MASK_ON else ()))
    warm_up = cfg.SOLVER.WARMUP_ITERS
    columns = [
        Column(
            metrics,
            args.config,
            budget.percent(share),
            (
                *overrides,
                "DATASETS.FRACTION",
                str(share),
                *budget.without(length.overrides(warm_up), overrides),
            ),
        )
        for share, length in zip(args.fractions, lengths, strict=True)
    ]
    first = rows[0].name
    return Table(
        "compare", f"Is {first} a better start on {args.train.name}?", "tools/compare_inits.py", tuple(columns),
        tuple(map(Row, rows)), baseline=first,
    )  # fmt: skip
