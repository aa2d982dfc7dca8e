"""What torchrun, srun and mpirun put into the environment becomes one process group, or one line of advice."""

import os
from pathlib import Path

import pytest
import torch

from pretrain.common import distributed, launcher
from pretrain.common.errors import UserError

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "29500"}
# The second of two tasks on one node, as srun starts it, and the last of four on two.
TASK = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0",
        "SLURM_NNODES": "1", "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "2"}  # fmt: skip
TASK_OF_TWO_NODES = TASK | {
    "SLURM_PROCID": "3", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "localhost,gpu[05-07]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "by_srun", False)
    monkeypatch.setattr("sys.argv", ["tools/pretrain.py"])


def join(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], **options: bool) -> int:
    monkeypatch.setattr(os, "environ", dict(environment))
    return launcher.join(**options)


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, 1),
        ({"WORLD_SIZE": ""}, 1),
        ({"WORLD_SIZE": "1"}, 1),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1),
        (TORCHRUN, 2),
        # torchrun in tasks of srun, as in tools/slurm/job.sbatch, and separate runs in them
        (TASK | TORCHRUN | {"WORLD_SIZE": "16"}, 16),
        (TASK | {"WORLD_SIZE": "1"}, 1),
        # a batch script, which runs once; an interactive shell, whose step has one task
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967291"}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 1),
    ],
)
def test_processes_are_counted_and_nothing_is_changed(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], processes: int
) -> None:
    assert join(monkeypatch, environment) == processes
    assert os.environ == environment and not launcher.by_srun


def test_tasks_of_srun_get_the_variables_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join(monkeypatch, TASK) == 2
    port = os.environ.pop("MASTER_PORT")
    assert os.environ == TASK | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
                                 "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    join(monkeypatch, TASK | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert os.environ["MASTER_PORT"] == port
    join(monkeypatch, TASK | {"SLURM_STEP_ID": "4"})  # another step of the job, at the same time
    assert os.environ["MASTER_PORT"] != port
    assert join(monkeypatch, TASK_OF_TWO_NODES) == 4
    group = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")]
    assert group == ["3", "1", "2", "localhost"]
    join(monkeypatch, TASK_OF_TWO_NODES | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "4000")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[01-04,07],big1", "gpu01"),
        ("gpu[7,9]", "gpu7"),
        ("big1,gpu[01-04]", "big1"),
        ("rack[1-2]node[03-04]", "rack1node03"),
        ("gpu[2-3]-ib.cluster", "gpu2-ib.cluster"),
    ],
)
def test_first_host_of_a_node_list(monkeypatch: pytest.MonkeyPatch, nodes: str, first: str) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    join(monkeypatch, TASK_OF_TWO_NODES | {"SLURM_STEP_NODELIST": nodes})
    assert os.environ["MASTER_ADDR"] == first


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE is 8.*RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.*unset WORLD_SIZE"),
        ({"RANK": "0"}, "RANK is 0.*: WORLD_SIZE, LOCAL_RANK, .*unset RANK"),
        (TORCHRUN | {"LOCAL_RANK": ""}, "not set: LOCAL_RANK; start with torchrun"),
        (TORCHRUN | {"RANK": "2"}, "RANK 2, WORLD_SIZE 2: ranks go from 0"),
        (TORCHRUN | {"RANK": "-1"}, "RANK -1"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE 'two' is not an integer: start with torchrun"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "MASTER_PORT 99999: .*torchrun"),
        (TORCHRUN | {"LOCAL_RANK": "-1"}, "LOCAL_RANK -1: .*torchrun"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "SLURM_STEP_NUM_TASKS": "2"}, "mpirun started 4 .*torchrun"),
        ({"PMI_SIZE": "4"}, "mpirun started 4 processes .PMI_SIZE.*torchrun"),
        (TASK | {"SLURM_PROCID": "2"}, "SLURM_PROCID 2 of 2 tasks.*torchrun"),
        (TASK | {"SLURM_LOCALID": ""}, "SLURM_LOCALID is not set: start with torchrun"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "SLURM_STEP_NUM_TASKS is not set: start with torchrun"),
        (TASK_OF_TWO_NODES | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is not set.*MASTER_ADDR.*torchrun"),
        (TASK_OF_TWO_NODES | {"SLURM_STEP_NODELIST": "a..b"}, "SLURM_STEP_NODELIST a..b.*torchrun"),
        (TASK_OF_TWO_NODES | {"SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "3,2"}, "5 tasks on 2 nodes"),
        (TASK_OF_TWO_NODES | {"SLURM_PROCID": "2"}, "numbered node by node"),  # srun --distribution=cyclic
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        join(monkeypatch, environment)
    assert "\n" not in str(caught.value)


def test_flags_that_connect_machines_come_before_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun python tools/train_net.py --num-machines 2 --machine-rank ...` starts one program on each machine."""
    assert join(monkeypatch, TASK_OF_TWO_NODES, srun=False) == 1
    with pytest.raises(UserError, match="WORLD_SIZE is 8"):
        join(monkeypatch, {"WORLD_SIZE": "8"}, srun=False)


def test_a_tool_of_one_process_refuses_several(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment, name in [(TASK, "srun"), (TORCHRUN, "torchrun"), ({"PMI_SIZE": "2"}, "mpirun")]:
        monkeypatch.setattr(os, "environ", dict(environment))
        with pytest.raises(UserError, match=f"pretrain.py works in one process, and {name} started 2"):
            launcher.refuse_several()
    for environment in ({}, {"WORLD_SIZE": "8"}, TASK | {"WORLD_SIZE": "1"}):
        monkeypatch.setattr(os, "environ", environment)
        launcher.refuse_several()


def test_restarts_by_torchrun_need_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only then does the same command continue the run; `--resume FROM` would begin from there each time."""
    monkeypatch.setattr(os, "environ", dict(TORCHRUN))
    launcher.check_restarts(False)
    os.environ["TORCHELASTIC_MAX_RESTARTS"] = "0"
    launcher.check_restarts(False)
    launcher.check_restarts(Path("old.pth"))
    os.environ["TORCHELASTIC_MAX_RESTARTS"] = "3"
    launcher.check_restarts(True)
    with pytest.raises(UserError, match=r"torchrun --max-restarts 3 starts .*add --resume"):
        launcher.check_restarts(False)
    with pytest.raises(UserError, match=r"--resume old\.pth: torchrun --max-restarts 3 would go back"):
        launcher.check_restarts(Path("old.pth"))
    os.environ["GROUP_WORLD_SIZE"] = "2"
    with pytest.raises(UserError, match="on several machines is not supported"):
        launcher.check_restarts(True)


def test_tasks_with_different_arguments_do_not_train_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun bash -c 'python tools/pretrain.py SEED $SLURM_PROCID'`: the other process has other arguments."""
    other: list[torch.Tensor] = []

    def gathered(own: torch.Tensor) -> torch.Tensor:
        other.append(own)
        return torch.cat(other)

    monkeypatch.setattr(distributed, "all_gather_interleaved", gathered)
    for seed in ("0", "0"):
        monkeypatch.setattr("sys.argv", ["tools/pretrain.py", "SEED", seed])
        distributed._compare_arguments(torch.device("cpu"))
    monkeypatch.setattr("sys.argv", ["tools/pretrain.py", "SEED", "1"])
    with pytest.raises(UserError, match=r"different arguments.*WORLD_SIZE=1"):
        distributed._compare_arguments(torch.device("cpu"))
