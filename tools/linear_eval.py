"""How well a linear classifier does on frozen features: the protocol of He et al. 2020, Sec. 4.1; also kNN.

    python tools/linear_eval.py --weights output/moco_v2_R50/checkpoint_last.pth.tar
    python tools/linear_eval.py --weights moco_v2_R50.pkl --sweep 10,30,100 OUTPUT_DIR output/sweep
    python tools/linear_eval.py --weights random --config linear/demo.yaml --knn
    torchrun --nproc-per-node 8 tools/linear_eval.py --weights checkpoint.pth DATA.TRAIN a/train DATA.VAL a/val

Takes every checkpoint that tools/convert_to_d2.py takes; nothing inside of a file is ever run. KEY VALUE pairs
override the config. What is computed, and what the paper leaves open: docs/linear.md.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from pretrain.common import distributed
from pretrain.common.errors import run_tool


def main() -> None:
    args = _parse()
    from transfer.linear import config

    sweep = ["SWEEP", f"[{args.sweep}]"] if args.sweep else []
    processes = int(os.environ.get("WORLD_SIZE", 1))
    cfg = config.load(args.config, [*args.overrides, *sweep], processes=processes)
    from transfer.linear import run  # after the config's errors: it takes seconds to import

    distributed.init_from_env(distributed.pick_device(cfg.DEVICE))
    run.run(cfg, args.weights, knn=args.knn, resume=args.resume, source=args.source, branch=args.branch)
    distributed.shutdown()  # not after an error: NCCL would wait for the other processes


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="a checkpoint, or `random` for an untrained network")
    add("--config", "--config-file", default="linear/imagenet.yaml", help="YAML, as given or under configs/")
    add("--knn", action="store_true", help="weighted kNN (KNN.K, KNN.T) in the place of a classifier")
    add(
        "--sweep", metavar="RATES", help="learning rates, as in 10,30,100: a classifier for each, in one pass"
    )
    add("--resume", action="store_true", help="go on with an interrupted run in OUTPUT_DIR")
    add("--source", default="auto", metavar="KIND", help="kind of checkpoint, as of tools/convert_to_d2.py")
    add("--branch", default="", help="which network, where a file holds several")
    add("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their new values")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_tool(main)
