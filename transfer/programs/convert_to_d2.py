"""Any self-supervised ResNet or ViT as detectron2 weights, verified to compute the same.

python tools/convert_to_d2.py output/moco_v2_R50/checkpoint_0199.pth.tar moco_v2_R50.pkl
python tools/convert_to_d2.py dino_resnet50_full.pth student.pkl --branch student
python tools/convert_to_d2.py 'downloads/*.pth' --output-dir weights
python tools/convert_to_d2.py --inspect anything.pth
python tools/convert_to_d2.py moco_v2_R50.pkl resnet50.pth --to torchvision

The kind of checkpoint is recognised by its tensors. Nothing inside a file is ever run.
"""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from pretrain.common.command_line import Parser
from pretrain.common.errors import UserError, label, run_tool
from transfer.convert import FORMATS, TARGETS


def main() -> None:
    parser = Parser(description=__doc__)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("files", nargs="+", metavar="FILE", help="INPUT OUTPUT, or several inputs with --output-dir")
    add(
        "--source",
        default="auto",
        metavar="KIND",
        help="kind of checkpoint (auto); docs/converter.md lists them",
    )
    add("--branch", default="", help="which network to take, if a file holds several")
    add("--keep", default="", metavar="PARTS", help="fpn, box_head or fpn,box_head, if pre-trained too")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--channel-order", choices=("RGB", "BGR"), help="of the network's input")
    order.add_argument(
        "--bgr", action="store_const", const="BGR", dest="channel_order", help="the same as BGR"
    )
    add("--pixel-mean", "--mean", metavar="A,B,C", help="what was subtracted from the pixels, in that order")
    add("--pixel-std", "--std", metavar="A,B,C", help="what the result was divided by")
    add("--scale", choices=("255", "1"), help="largest pixel value that both are for (255)")
    add("--stride-in-1x1", action=switch, help="whether bottlenecks have the stride in the 1x1 convolution")
    add(
        "--merged-norm",
        action="store_true",
        help="batch norm without statistics is merged into weight and bias",
    )
    add("--heads", type=int, metavar="N", help="of a ViT's attention, if they cannot be known")
    add(
        "--resample-patch",
        type=int,
        choices=(16,),
        help="resample a ViT's smaller patches, as DINOv2's of 14 pixels",
    )
    add("--verify", action=switch, default=True, help="compare the written file with the source network")
    add("--record", type=Path, metavar="FILE.json", help="also write settings and origin as JSON")
    add("--output-dir", type=Path, metavar="DIR", help="convert every FILE into DIR")
    add("--format", choices=FORMATS, help="format of the files in --output-dir (pkl)")
    add("--overwrite", action="store_true", help="replace an OUTPUT that this tool did not write")
    add("--inspect", action="store_true", help="print what each FILE holds; write nothing")
    add("--to", choices=TARGETS, help="write OUTPUT for another library instead")
    args = parser.parse_intermixed_args()
    if len(args.files) == 2 and not (args.output_dir or args.inspect or os.path.lexists(args.files[0])):
        raise UserError(f"{label(args.files[0])}: no such file")
    # Imported only now: it loads PyTorch, which --help does not need.
    from transfer.convert.program import command

    command.run(args)


def program() -> NoReturn:
    run_tool(main)


if __name__ == "__main__":
    program()
