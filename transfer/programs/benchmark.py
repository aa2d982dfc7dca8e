"""Measure how fast this machine trains and makes views, compared with plain detectron2 and torchvision.

python tools/benchmark.py train                                      # the model of the demo
python tools/benchmark.py train --config transfer/coco_R50_FPN.yaml SOLVER.IMS_PER_BATCH 2
python tools/benchmark.py train --iterations 50 --rounds 7 SOLVER.AMP.ENABLED True
python tools/benchmark.py views --images my/photos --rounds 9        # view pairs per second on one core
python tools/benchmark.py step --config pretrain/demo_R18.yaml       # where the time of a pre-training step goes
python tools/benchmark.py gpu --output gpu.json --minutes 20         # everything on this machine's GPU, as one table
"""

from typing import NoReturn

from pretrain.benchmark import command
from pretrain.common import command_line
from pretrain.common.errors import run_tool
from transfer.benchmark import arguments
from transfer.train import benchmark_command


def main() -> None:
    parser = command_line.Parser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="train,views,step,gpu")
    benchmark_command.add_train(commands)
    command.add_views(commands)
    command.add_step(commands)
    arguments.add_gpu(commands)
    args = command_line.parse(parser)
    args.run(args)


def program() -> NoReturn:
    run_tool(main)


if __name__ == "__main__":
    program()
