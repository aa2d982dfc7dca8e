"""Show why two runs have different numbers: metrics, settings, weights, versions, data, seed, hardware.

python tools/compare_runs.py output/a/results.json output/b/results.json
python tools/compare_runs.py results/runs/finetune-A results/runs/finetune-B    # folders of runs

Lists what differs, the likeliest reasons first. Settings are read from the config.yaml next to each results.json.
"""

from pathlib import Path
from typing import NoReturn

from pretrain.common.command_line import Parser
from pretrain.common.errors import run_tool


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("a", type=Path, help="a results.json, or the folder of a run")
    parser.add_argument("b", type=Path, help="the run to compare it with")
    args = parser.parse_args()
    from transfer.reproduce.results import compare_runs

    print("\n".join(compare_runs.table(compare_runs.read(args.a), compare_runs.read(args.b))))


def program() -> NoReturn:
    run_tool(main)


if __name__ == "__main__":
    program()
