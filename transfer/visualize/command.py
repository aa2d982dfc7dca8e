"""The command line of `tools/visualize.py`: views, training data, or predictions.

torch and detectron2 take seconds to import, so they are imported inside of the functions: `--help` and wrong flags
are answered at once.
"""

import argparse
from pathlib import Path

from pretrain.common import command_line
from pretrain.common.errors import UserError, for_terminal


def main(about: str | None) -> None:
    """Write the pictures that the command line asks for. `about` is the text of `--help`.

    Raises:
        UserError: a mistake in the flags, the config, the weights or the data.
    """
    args = _parse(about)
    if args.what == "views":
        _show_views(args)
        return
    written = _show_data(args) if args.what == "data" else _show_predictions(args)
    print(for_terminal(f"wrote {written[-1]} and {len(written) - 1} pictures"))


def _show_views(args: argparse.Namespace) -> None:
    from pretrain import config

    cfg = config.load(args.config, args.overrides)
    from pretrain.data import sources, views_sheet  # after the config's errors: they take seconds to import
    from pretrain.data.folders import Endings

    files = sources.find(cfg.DATA.TRAIN, Endings(cfg.DATA.ENDINGS))
    views_sheet.write(args.output, files, cfg, count=args.count)
    print(for_terminal(f"wrote {args.output}"))


def _show_data(args: argparse.Namespace) -> list[Path]:
    from transfer.config.load import load_config
    from transfer.visualize import show

    # No model is built, so no weights are needed.
    overrides = [*args.overrides, "MODEL.INIT", "random", "MODEL.WEIGHTS", ""]
    cfg = load_config(args.config, overrides)
    return show.show_data(cfg, args.output, count=args.count, raw=args.raw)


def _show_predictions(args: argparse.Namespace) -> list[Path]:
    from transfer.config.load import load_config
    from transfer.detector_files import config_file, weights_file
    from transfer.visualize import show

    name, weights = args.config, []
    if args.run is not None:
        name = str(config_file(args.run))
        given = any(word == "MODEL.WEIGHTS" for word in args.overrides[::2])
        weights = [] if given else ["MODEL.WEIGHTS", str(weights_file(args.run, "MODEL.WEIGHTS"))]
    cfg = load_config(name, ["MODEL.INIT", "weights", *weights, *args.overrides], need_weights=False)
    if not cfg.MODEL.WEIGHTS:
        raise UserError(
            "MODEL.WEIGHTS is empty: set it to a fine-tuned model, such as a run's model_final.pth, or give --run"
        )
    return show.show_predictions(cfg, args.output, count=args.count, images=args.images)


def _parse(about: str | None) -> argparse.Namespace:
    parser = command_line.Parser(description=about)
    commands = parser.add_subparsers(dest="what", required=True, metavar="views|data|predictions")
    config_help = "YAML file, as a path or relative to configs/"

    views = commands.add_parser("views", help="pairs of pre-training views, with the parameters of each view")
    views.add_argument("--config", required=True, help=config_help)
    views.add_argument("--output", type=Path, default=Path("views.jpg"), help=".jpg or .png file (views.jpg)")
    views.add_argument("--count", type=int, default=8, help="number of images (8)")
    command_line.add_overrides(views)

    data = commands.add_parser("data", help="training images with boxes, masks, keypoints or labels")
    data.add_argument("--config", required=True, help=config_help)
    data.add_argument(
        "--raw", action="store_true", help="show images as they are on disk, without augmentation"
    )

    predictions = commands.add_parser(
        "predictions", help="annotations next to predictions, worst mistakes first"
    )
    source = predictions.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run", type=Path, help="OUTPUT_DIR of a run, with its config.yaml and model_final.pth"
    )
    source.add_argument("--config", help="YAML file; set MODEL.WEIGHTS to a fine-tuned model as well")
    predictions.add_argument(
        "--images", type=int, default=500, help="number of test images to examine, spread over the set (500)"
    )

    for command in (data, predictions):
        command.add_argument(
            "--output", type=Path, required=True, help="folder for index.html and JPEG files"
        )
        command.add_argument("--count", type=int, default=16, help="number of pictures in each section (16)")
        command_line.add_overrides(command)
    args = command_line.parse(parser)
    if args.count < 1 or getattr(args, "images", 1) < 1:
        raise UserError("--count and --images must be 1 or more")
    return args
