"""Look at training data as the model sees them, in either stage, and at what a fine-tuned model does wrong.

python tools/visualize.py views --config pretrain/moco_v2_R50.yaml --output views.jpg DATA.TRAIN my/photos
python tools/visualize.py data --config transfer/coco_R50_FPN.yaml --output pictures/data
python tools/visualize.py data --config transfer/voc_R50_C4_24k.yaml --raw --count 40 --output pictures/raw
python tools/visualize.py predictions --run output/transfer --output pictures/predictions
python tools/visualize.py predictions --config A.yaml --output pictures/b MODEL.WEIGHTS model_final.pth
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from pretrain.common import command_line
from pretrain.common.errors import UserError, run_tool


def main() -> None:
    args = _parse()
    if args.what == "views":
        return _show_views(args)
    from transfer.config.load import load_config
    from transfer.visualize import show

    if args.what == "data":
        overrides = [*args.overrides, "MODEL.INIT", "random", "MODEL.WEIGHTS", ""]  # no model is built
        cfg = load_config(args.config, overrides)
        written = show.show_data(cfg, args.output, count=args.count, raw=args.raw)
    else:
        name, weights = args.config, []
        if args.run is not None:
            name, weights = (
                str(args.run / "config.yaml"),
                ["MODEL.WEIGHTS", str(args.run / "model_final.pth")],
            )
            if not Path(name).is_file():
                raise UserError(
                    f"--run {args.run}: no config.yaml there; name the OUTPUT_DIR of a finished run"
                )
        cfg = load_config(name, ["MODEL.INIT", "weights", *weights, *args.overrides], need_weights=False)
        if not cfg.MODEL.WEIGHTS:
            raise UserError(
                "MODEL.WEIGHTS is empty: name a fine-tuned model, such as a run's model_final.pth, or give --run"
            )
        written = show.show_predictions(cfg, args.output, count=args.count, images=args.images)
    print(f"wrote {written[-1]} and {len(written) - 1} pictures")


def _show_views(args: argparse.Namespace) -> None:
    from pretrain import config
    from pretrain.data import sources, views_sheet

    cfg = config.load(args.config, args.overrides)
    files = sources.find(cfg.DATA.TRAIN)
    views_sheet.write(args.output, files, cfg, count=args.count)
    print(f"wrote {args.output}")


def _parse() -> argparse.Namespace:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    commands = parser.add_subparsers(dest="what", required=True, metavar="views|data|predictions")
    views = commands.add_parser("views", help="view pairs of pre-training, and what was drawn for each")
    views.add_argument("--config", required=True, help="YAML file, as given or under configs/")
    views.add_argument("--output", type=Path, default=Path("views.jpg"), help=".jpg or .png file (views.jpg)")
    views.add_argument("--count", type=int, default=8, help="images (8)")
    command_line.add_overrides(views)
    data = commands.add_parser("data", help="training images with boxes, masks, keypoints or labels")
    data.add_argument("--config", required=True, help="YAML file, as given or under configs/")
    data.add_argument("--raw", action="store_true", help="as they are on the disk, without augmentation")
    predictions = commands.add_parser("predictions", help="annotation beside prediction, the worst first")
    source = predictions.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="OUTPUT_DIR of a run: its config.yaml and model_final.pth")
    source.add_argument("--config", help="YAML file; give MODEL.WEIGHTS, a fine-tuned model, too")
    predictions.add_argument(
        "--images", type=int, default=500, help="test images that are looked at, spread over the set (500)"
    )
    for command in (data, predictions):
        command.add_argument("--output", type=Path, required=True, help="folder for index.html and JPEGs")
        command.add_argument("--count", type=int, default=16, help="pictures of each kind (16)")
        command_line.add_overrides(command)
    args = command_line.parse(parser)
    if args.count < 1 or getattr(args, "images", 1) < 1:
        raise UserError("--count and --images: give 1 or more")
    return args


if __name__ == "__main__":
    run_tool(main)
