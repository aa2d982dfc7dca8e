"""Any self-supervised ResNet as detectron2 weights, with a proof that both compute the same.

python tools/convert_to_d2.py output/moco_v2_R50/checkpoint_0199.pth.tar moco_v2_R50.pkl
python tools/convert_to_d2.py dino_resnet50_full.pth student.pkl --branch student
python tools/convert_to_d2.py 'downloads/*.pth' --output-dir weights
python tools/convert_to_d2.py --inspect anything.pth
python tools/convert_to_d2.py moco_v2_R50.pkl resnet50.pth --to torchvision

The ways in which projects lay out their checkpoints are told apart by the tensors themselves. Nothing inside of
a file is ever run.
"""

import argparse
import sys
from pathlib import Path

# not tools/: tools/pretrain.py would shadow the package
sys.path[0] = str(Path(__file__).resolve().parents[1])

from pretrain.common.errors import UserError, run_tool


def main() -> None:
    """Parse, call."""
    from transfer.convert import command, export
    from transfer.convert.layouts import LAYOUTS
    from transfer.convert.weights_file import FORMATS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="INPUT OUTPUT; or inputs with --output-dir")
    parser.add_argument("--source", default="auto", metavar="KIND", help=f"auto, {', '.join(LAYOUTS)}")
    parser.add_argument("--branch", default="", help="which network, where a file holds several")
    parser.add_argument(
        "--keep", default="", metavar="PARTS", help="fpn, box_head or fpn,box_head, where pre-trained"
    )
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help="numeric proof")
    parser.add_argument("--record", type=Path, metavar="FILE.json", help="settings and origin as JSON too")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="convert every FILE into DIR")
    parser.add_argument("--format", choices=FORMATS, help="of the files in --output-dir (pkl)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an OUTPUT that is not of our making"
    )
    parser.add_argument("--inspect", action="store_true", help="say what each FILE is; write nothing")
    parser.add_argument("--to", choices=export.TARGETS, help="write OUTPUT for another library instead")
    args = parser.parse_intermixed_args()
    _refuse_idle_flags(args)

    how = {
        "verify": args.verify,
        "keep": tuple(part for part in args.keep.split(",") if part),
        "overwrite": args.overwrite,
    }
    choice = {"source": args.source, "branch": args.branch}
    if args.inspect:
        command.inspect_all(command.expand(args.files), **choice)
        return
    if args.output_dir:
        inputs = command.expand(args.files)
        command.convert_all(inputs, args.output_dir, form=args.format or "pkl", **how, **choice)
        return
    if len(args.files) != 2:
        raise UserError("give INPUT OUTPUT.pkl; or several inputs and --output-dir DIR; or --inspect")
    source, output = map(Path, args.files)
    if args.to:
        print("\n".join(export.export(source, output, to=args.to, overwrite=args.overwrite, **choice)))
        return
    command.convert_one(source, output, record=args.record, **how, **choice)


def _refuse_idle_flags(args: argparse.Namespace) -> None:
    """A flag that would change nothing is a misunderstanding."""
    given = {
        "--output-dir": args.output_dir, "--to": args.to, "--keep": args.keep, "--record": args.record,
        "--format": args.format, "--no-verify": not args.verify, "--overwrite": args.overwrite,
    }  # fmt: skip
    without_effect = {"--format"} if not args.output_dir else {"--record", "--to"}
    if args.to:
        without_effect |= {"--keep", "--record", "--no-verify"}
    if args.inspect:
        without_effect = set(given)
    mode = (
        "--inspect"
        if args.inspect
        else "--output-dir"
        if args.output_dir
        else "--to"
        if args.to
        else "INPUT OUTPUT"
    )
    for flag, value in given.items():
        if value and flag in without_effect:
            hint = "; the ending of OUTPUT says the format" if flag == "--format" else ""
            raise UserError(f"{flag} has no effect with {mode}{hint}: leave it out")


run_tool(main)
