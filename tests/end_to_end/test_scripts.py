"""The tools as Python starts them: nothing loaded before, and nothing said but one line."""

import subprocess
import sys

import pytest

from tests.support.scripts import ROOT, run_script

WRONG = {
    "benchmark": ["train", "--rounds", "0"],
    "compare_runs": ["none.json", "nothing.json"],
    "convert_to_d2": ["none.pth", "none.pkl"],
    "linear_eval": ["--weights", "none.pth"],
    "predict": ["--run", "none", "photos"],
    "prepare_data": ["custom", "--json", "none.json", "--images", "none"],
    "pretrain": ["--config", "pretrain/none.yaml"],
    "reproduce": ["--table", "none"],
    "train_net": ["--config", "transfer/none.yaml"],
    "visualize": ["views", "--config", "pretrain/none.yaml"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_in_a_fresh_process_too(name: str) -> None:
    """Other tests fork their scripts from a process with loaded libraries, which could hide what loading prints."""
    command = [f"tools/{name}.py", *WRONG[name]]
    fresh = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert fresh.returncode == 2 and fresh.stderr.startswith("error: ") and fresh.stderr.count("\n") == 1
    forked = run_script(*command)
    assert (forked.returncode, forked.stdout, forked.stderr) == (2, fresh.stdout, fresh.stderr)
