"""Run the demo: from photographs to a detection table and demo/report.html.

python tools/demo.py --size quick       # about a minute on two cores: every step runs, nothing is learnt
python tools/demo.py                    # eight and a half minutes on two cores
python tools/demo.py --mechanism        # what batch norm and the momentum do, as curves
"""

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from pretrain.common.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=("quick", "standard", "full"), default="standard", help="[%(default)s]"
    )
    parser.add_argument("--mechanism", action="store_true", help="pre-train only, under six settings")
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="data sets' folder [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="results' folder [%(default)s]")
    parser.add_argument(
        "--deb", type=Path, nargs="+", default=[], help="packages fetched elsewhere, without apt"
    )
    args = parser.parse_args()
    # The steps run in the project's folder: say paths as seen from there.
    args.root, args.output, *args.deb = (
        Path(os.path.relpath(path, sys.path[0])) for path in (args.root, args.output, *args.deb)
    )
    os.chdir(sys.path[0])

    from transfer.demo import run  # under run_tool: without detectron2 it says what to install

    if args.mechanism:
        run.run_mechanism(root=args.root, output=args.output, debs=tuple(args.deb))
    else:
        run.run(args.size, root=args.root, output=args.output, debs=tuple(args.deb))


if __name__ == "__main__":
    run_tool(main)
