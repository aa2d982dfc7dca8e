"""Pre-train an encoder by Momentum Contrast on a folder of images; labels are not needed.

    python tools/pretrain.py --config pretrain/moco_v2_R50.yaml DATA.TRAIN my/photos OUTPUT_DIR output/mine
    torchrun --nproc-per-node 8 tools/pretrain.py --config pretrain/moco_v2_R50.yaml
    srun --ntasks 8 python tools/pretrain.py --config pretrain/moco_v2_R50.yaml

KEY VALUE pairs override the config; `--resume` continues from OUTPUT_DIR/checkpoint_last.pth.tar, `--resume FILE` from
another checkpoint.
"""

from typing import NoReturn

from pretrain.common import command_line, launcher
from pretrain.common.configs import find_config
from pretrain.common.errors import run_tool


def main() -> None:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "--config", "--config-file", required=True, help="YAML file, as given or under configs/"
    )
    command_line.add_resume(parser, "checkpoint_last.pth.tar")
    parser.add_argument(
        "--other-processes",
        action="store_true",
        help="with --resume: allow another number of processes than before; the result is then not bit-identical",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their new values")
    args = parser.parse_intermixed_args(command_line.mark_resume())
    find_config(args.config)
    launcher.check_restarts(args.resume)
    from pretrain import config  # only now: --help and a wrong name do not need it

    config.check_images(args.config, args.overrides)
    from pretrain.common import distributed  # only now: it imports PyTorch, which takes seconds

    cfg = config.load(args.config, args.overrides, processes=launcher.join())
    from pretrain.train.loop import train  # after the config's errors: it takes seconds to import

    distributed.init_from_env(distributed.pick_device(cfg.DEVICE))
    train(cfg, resume=args.resume, other_processes=args.other_processes)
    distributed.shutdown()  # not after an error: NCCL would wait for the other processes


def program() -> NoReturn:
    run_tool(main, processes=True)


if __name__ == "__main__":
    program()
