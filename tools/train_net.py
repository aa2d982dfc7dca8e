"""Fine-tune Faster or Mask R-CNN from converted weights, test it, and write results.json.

python tools/train_net.py --config transfer/coco_R50_FPN.yaml --num-gpus 8 MODEL.WEIGHTS moco_v2.pkl
python tools/train_net.py --config transfer/demo_R18_FPN.yaml MODEL.INIT random OUTPUT_DIR output/random
python tools/train_net.py --config transfer/coco_R50_FPN.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from pretrain import dist
from pretrain.errors import UserError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", "--config-file", required=True, help="YAML file, as given or under configs/"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes on this machine; the total batch stays"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in OUTPUT_DIR")
    parser.add_argument(
        "--eval-only", action="store_true", help="only test MODEL.WEIGHTS, a fine-tuned detector"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their new values")
    args = parser.parse_intermixed_args()

    from transfer import config, trainer

    cfg = config.load(args.config, args.overrides)
    started = int(os.environ.get("WORLD_SIZE", 1))  # by torchrun
    if started > 1 and args.num_gpus != 1:
        raise UserError("--num-gpus: torchrun has started the processes already; leave it out")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", started)) if started > 1 else args.num_gpus
    config.check_processes(cfg, max(started, args.num_gpus), local=local, train=not args.eval_only)
    dist.spawn(partial(trainer.run, cfg, resume=args.resume, eval_only=args.eval_only), args.num_gpus)
    dist.shutdown()  # not after an error: NCCL would wait for the other processes


if __name__ == "__main__":
    run_tool(main)
