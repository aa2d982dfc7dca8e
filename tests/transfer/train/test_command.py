"""The command line of tools/train_net.py: process counts, overrides from flags, and what it imports."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from pretrain.common.errors import UserError
from tests.support.scripts import ROOT
from transfer.linear import command as linear_command
from transfer.programs import pretrain as pretrain_program
from transfer.train import command


def _count(started: int, num_gpus: int = 1, num_machines: int = 1) -> tuple[int, int]:
    return command._count_processes(Namespace(num_gpus=num_gpus, num_machines=num_machines), started)


def test_process_counts_come_from_the_flags_or_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _count(1) == (1, 1)
    assert _count(1, num_gpus=4, num_machines=2) == (8, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert _count(8) == (8, 4)
    with pytest.raises(UserError, match="torchrun or srun has already started the processes"):
        _count(8, num_gpus=4)


def test_flags_come_after_the_users_overrides() -> None:
    args = command._parse(
        "", ["--config", "x.yaml", "SEED", "3", "--shots", "2", "--fraction", "0.5", "--frozen"]
    )
    flags = ["DATASETS.FRACTION", "0.5", "DATASETS.SHOTS", "2", "MODEL.BACKBONE.FREEZE_AT", "5"]
    assert command._overrides(args) == ["SEED", "3", *flags]


def test_a_file_to_resume_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both tools that write states of their own."""
    monkeypatch.chdir(tmp_path)
    Path("old.pth").touch()
    for words, start in (
        (["--resume", "SEED", "3"], True),
        (["--resume", "old.pth", "SEED", "3"], Path("old.pth")),
    ):
        monkeypatch.setattr(sys, "argv", ["linear_eval.py", "--weights", "random", *words])
        for args in (command._parse("", ["--config", "x.yaml", *words]), linear_command._parse("")):
            assert (args.resume, args.overrides) == (start, ["SEED", "3"])


def test_help_needs_neither_torch_nor_detectron2() -> None:
    code = "import sys, transfer.train.command; print({'torch', 'detectron2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_test_writes_next_to_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(command, "_run", lambda cfg, args: seen.append(cfg.OUTPUT_DIR))
    weights = tmp_path / "model_final.pth"
    weights.touch()
    given = ["--config", "transfer/coco_R50_FPN.yaml", "--eval-only", "MODEL.WEIGHTS"]
    command.main("", [*given, str(weights)])
    command.main("", [*given, str(weights), "OUTPUT_DIR", "there"])
    command.main("", [*given, str(tmp_path / "missing.pth")])  # an error of the run
    assert seen == [str(tmp_path), "there", "output/transfer/coco_R50_FPN"]


def test_restarts_by_torchrun_need_resume_to_train_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the three tools that resume; a test of weights can simply be repeated."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    train = ["--config", "transfer/coco_R50_FPN.yaml"]
    with pytest.raises(UserError, match=r"--max-restarts 3 .*add --resume"):
        command.main("", train)
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS is empty"):  # not refused before
        command.main("", [*train, "--resume"])
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS is empty"):
        command.main("", [*train, "--eval-only"])
    monkeypatch.setattr(sys, "argv", ["linear_eval.py", "--weights", "random"])
    with pytest.raises(UserError, match=r"--max-restarts 3 .*add --resume"):
        linear_command.main("")
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--config", "pretrain/moco_v2_R50.yaml"])
    with pytest.raises(UserError, match=r"--max-restarts 3 .*add --resume"):
        pretrain_program.main()
