"""Fine-tune Faster or Mask R-CNN from converted weights, test it, and write results.json.

python tools/train_net.py --config transfer/coco_R50_FPN.yaml --num-gpus 8 MODEL.WEIGHTS moco_v2.pkl
python tools/train_net.py --config transfer/voc_R50_C4_24k.yaml --scale 1 MODEL.WEIGHTS moco_v2.pkl
python tools/train_net.py --config transfer/demo_R18_FPN.yaml MODEL.INIT random OUTPUT_DIR output/random
python tools/train_net.py --config transfer/coco_R50_FPN.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
python tools/train_net.py --config transfer/coco_R50_FPN.yaml --explain

Several machines, stopping and resuming, memory: docs/running.md.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from pretrain.common import distributed
from pretrain.common.errors import UserError, run_tool


def main() -> None:
    args = _parse()
    from transfer.config import scale
    from transfer.config.load import check_processes, load_config, read_config

    overrides = [*args.overrides]
    for flag, key in ((args.fraction, "DATASETS.FRACTION"), (args.shots, "DATASETS.SHOTS")):
        overrides += [] if flag is None else [key, str(flag)]
    if args.follow_weights:
        from transfer.models import init_weights

        name = read_config(args.config, overrides).MODEL.WEIGHTS
        overrides = [*init_weights.settings(name), *overrides]
    cfg = load_config(args.config, overrides, need_weights=not args.explain)
    started = int(os.environ.get("WORLD_SIZE", 1))  # by torchrun
    if started > 1 and (args.num_gpus, args.num_machines) != (1, 1):
        raise UserError(
            "--num-gpus, --num-machines: torchrun has started the processes already; leave them out"
        )
    if args.num_gpus < 1:
        raise UserError(
            f"--num-gpus {args.num_gpus}: give 1 or more (without a GPU, one process runs on the CPU)"
        )
    processes = max(started, args.num_gpus * args.num_machines)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", started)) if started > 1 else args.num_gpus
    says = int(os.environ.get("RANK", 0)) == 0 and args.machine_rank == 0
    # SOLVER.REFERENCE_WORLD_SIZE scales to the processes there are, as in detectron2
    gpus = processes if args.scale is None and cfg.SOLVER.REFERENCE_WORLD_SIZE else args.scale
    if gpus is not None and not args.eval_only:
        cfg, sentence = scale.rescale(cfg, gpus)
        if says:
            print(sentence, flush=True)
    if args.explain:
        from transfer.config.explain import explain

        print("\n".join(explain(cfg, args.config)))
        return
    check_processes(cfg, processes, local=local, train=not args.eval_only)
    warning = scale.lr_warning(cfg, read_config(args.config))
    if says and warning and not args.eval_only:
        print(warning, flush=True)
    from transfer.train import run as train_run

    run = partial(train_run.run, cfg, resume=args.resume, eval_only=args.eval_only)
    machines = {"machines": args.num_machines, "machine_rank": args.machine_rank, "url": args.dist_url}
    distributed.spawn(run, args.num_gpus, **machines)
    distributed.shutdown()  # not after an error: NCCL would wait for the other processes


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", "--config-file", required=True, help="YAML file, as given or under configs/")
    add("--num-gpus", type=int, default=1, help="processes on each machine; the total batch stays")
    add("--num-machines", type=int, default=1, help="each runs this command with its --machine-rank")
    add("--machine-rank", type=int, default=0, help="of this machine, from 0")
    add("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0; auto: this machine only")
    add("--resume", action="store_true", help="go on with an interrupted run in OUTPUT_DIR")
    add("--eval-only", action="store_true", help="only test MODEL.WEIGHTS, a fine-tuned detector")
    add(
        "--explain",
        action="store_true",
        help="only say what the config does otherwise than paper and detectron2",
    )
    add("--scale", type=int, metavar="GPUS", help="batch, learning rate and schedule for so many GPUs, not 8")
    add("--fraction", type=float, help="of the training images to train on (DATASETS.FRACTION)")
    add("--shots", type=int, help="train on so many objects of each class (DATASETS.SHOTS)")
    add("--follow-weights", action="store_true", help="take the settings that MODEL.WEIGHTS says it needs")
    add("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their new values")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_tool(main)
