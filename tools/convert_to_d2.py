"""Convert a MoCo or torchvision checkpoint to detectron2 weights, and prove that both compute the same.

Example:
    python tools/convert_to_d2.py output/moco_v2_R50/checkpoint_0199.pth.tar moco_v2_R50.pkl
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# not tools/: tools/pretrain.py would shadow the package
sys.path[0] = str(Path(__file__).resolve().parents[1])

from pretrain.checkpoint import write_atomic
from pretrain.errors import run_tool
from transfer.convert import config_block, convert
from transfer.sources import LAYOUTS


def main() -> None:
    """Parse, convert, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path, help="checkpoint by torch.save")
    parser.add_argument("output", type=Path, help="weights file to write, *.pkl")
    parser.add_argument("--source", choices=["auto", *LAYOUTS], default="auto", help="layout (default: auto)")
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help="numeric proof")
    parser.add_argument(
        "--record", type=Path, metavar="FILE.json", help="write settings and origin as JSON too"
    )
    args = parser.parse_args()

    written = convert(args.input, args.output, source=args.source, verify=args.verify)
    if args.record:
        text = json.dumps(written, indent=2) + "\n"
        write_atomic(args.record, lambda file: file.write(text.encode()))
    show(written, args.output)


def show(written: dict[str, Any], output: Path) -> None:
    """Print what was found, what became of it, and the configuration to paste."""
    record, net = written["record"], written["record"]["architecture"]
    branch = record["branch"] or "(none)"
    print(f"source    {record['source']} checkpoint, branch {branch}, epoch {record['epoch']}")
    print(f"network   ResNet-{net['depth']}, width {net['width']:g}, {net['groups']} group(s)")
    print("dropped   " + (", ".join(f"{group} ({n})" for group, n in record["dropped"].items()) or "nothing"))
    if record["opaque"]:
        print("not read  " + ", ".join(record["opaque"]))
    if record["proof"]:
        print("proof     the source network and detectron2's backbone differ by at most (relative):")
        print("          " + ", ".join(f"{level} {value:.1e}" for level, value in record["proof"].items()))
    else:
        print("proof     none (--no-verify)")
    print(f"wrote     {output}; its configuration:\n")
    print(config_block(written["preprocessing"], output))


run_tool(main)
