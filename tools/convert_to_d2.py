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

from pretrain.errors import UserError, run_tool


def main() -> None:
    """Parse, call."""
    from transfer import converting, describe, reverse
    from transfer.layouts import LAYOUTS
    from transfer.weights_writer import FORMATS

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
    parser.add_argument("--format", choices=FORMATS, default="pkl", help="with --output-dir [%(default)s]")
    parser.add_argument("--inspect", action="store_true", help="say what each FILE is; write nothing")
    parser.add_argument("--to", choices=reverse.TARGETS, help="write OUTPUT for another library instead")
    args = parser.parse_args()

    how = {"verify": args.verify, "keep": tuple(part for part in args.keep.split(",") if part)}
    choice = {"source": args.source, "branch": args.branch}
    if args.inspect:
        for path in converting.expand(args.files):
            print("\n".join([*describe.describe(path, **choice), ""]))
        return
    if args.output_dir:
        if args.to:
            raise UserError("--to writes one file: give INPUT OUTPUT without --output-dir")
        inputs = converting.expand(args.files)
        converting.convert_all(inputs, args.output_dir, form=args.format, **how, **choice)
        return
    if len(args.files) != 2:
        raise UserError("give INPUT OUTPUT.pkl; or several inputs and --output-dir DIR; or --inspect")
    source, output = map(Path, args.files)
    if args.to:
        print("\n".join(reverse.export(source, output, to=args.to, **choice)))
        return
    converting.convert_one(source, output, record=args.record, **how, **choice)


run_tool(main)
