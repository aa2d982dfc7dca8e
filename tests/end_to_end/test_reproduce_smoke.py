"""`tools/reproduce.py --smoke`: all data sets in miniature, and a whole table run with the real commands."""

import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.scripts import kill_script, run_script, start_script
from transfer.config.load import load_config
from transfer.data import datasets
from transfer.data.on_disk import MINIATURE
from transfer.reproduce.plan import smoke_data
from transfer.reproduce.plan.tables import read

CONFIGS = sorted(
    {c.config for t in read().tables.values() for c in t.columns if c.config.startswith("transfer/")}
)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    smoke_data.build(folder / "smoke-data")
    return folder


def test_the_miniature_is_made_without_a_network_and_by_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    made: list[Path] = []
    last = smoke_data._stand_ins

    def count(path: Path) -> None:
        made.append(path)
        last(path)

    monkeypatch.setattr(smoke_data, "_stand_ins", count)
    times = {"beat": 0.1, "stale": 5.0}
    threads = [threading.Thread(target=smoke_data.build, args=(tmp_path,), kwargs=times) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert (tmp_path / MINIATURE).exists() and not (tmp_path / "lock").exists()
    assert len(made) == 1
    stamps = {path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    smoke_data.build(tmp_path, **times)
    assert stamps == {path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    splits = [
        {path.read_bytes() for path in tmp_path.glob(f"imagenet/{part}/*/*")} for part in ("train", "val")
    ]
    assert [len(found) for found in splits] == [16, 16] and not splits[0] & splits[1]
    boxes = json.loads((tmp_path / "coco/annotations/instances_val2017.json").read_text())["annotations"]
    assert len(boxes) == 2 * smoke_data.IMAGES["val"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_the_tables_finds_its_data_in_miniature(output: Path, name: str) -> None:
    cfg = load_config(name, ["MODEL.INIT", "random", "DATASETS.ROOT", str(output / "smoke-data")])
    datasets.prepare(cfg)
    assert 4 <= len(datasets.training_records(cfg)) <= 12


@pytest.mark.slow
def test_a_whole_table_also_when_it_is_interrupted(output: Path) -> None:
    command = [
        "--table",
        "voc_C4",
        "--smoke",
        "--inits",
        "random,moco_v1,moco_v1_ig1b",
        "--output",
        str(output),
    ]
    log, runs = output / "interrupted.txt", output / "smoke-runs"
    process = start_script(["tools/reproduce.py", *command], log, log)
    try:
        end = time.monotonic() + 300
        while not any(runs.glob("pretrain-*/log.txt")):  # the first job is done, the second has begun
            assert time.monotonic() < end and process.exitcode is None
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        process.join(200)
    finally:
        kill_script(process)
    assert process.exitcode == 130 and "stopping" in log.read_text()
    so_far = (output / "voc_C4-smoke" / "table.csv").read_text()
    assert "not run yet" in so_far and re.search(r"^random,.*\d", so_far, re.M)
    status = run_script("tools/reproduce.py", *command, "--status").stdout
    assert "finetune/voc_R50_C4_24k/random/seed0" in status and "running" not in status

    result = run_script("tools/reproduce.py", *command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "random/seed0: started" not in result.stdout and "moco_v1_R50/seed0: done" in result.stdout
    folder = output / "voc_C4-smoke"
    assert {path.name for path in folder.iterdir()} == {
        "report.html", "table.csv", "table.json", "table.md", "table.tex",
    }  # fmt: skip
    table = json.loads((folder / "table.json").read_text())
    numbers = {row["init"]: [n["ours"] for n in row["cells"][0]["numbers"]] for row in table["rows"]}
    assert all(len(ours) == 1 for ours in numbers["random"] + numbers["moco_v1"])
    assert numbers["moco_v1_ig1b"] == [[], [], []]
    (record,) = (json.loads(path.read_text()) for path in runs.glob("convert-moco_v1_R50-*/record.json"))
    assert record["record"]["source"] == "moco" and max(record["record"]["proof"].values()) < 1e-9

    again = run_script("tools/reproduce.py", *command, "--only", "moco_v1_ig1b")  # overrides --inits
    assert again.returncode == 0 and "started" not in again.stdout
    kept = json.loads((folder / "table.json").read_text())
    assert kept["rows"] == table["rows"] and "not run yet" in str(table["rows"])


@pytest.mark.slow
def test_a_smoke_run_in_two_processes(output: Path) -> None:
    """`--num-gpus 2` without a GPU: torchrun and the commands that it starts can be tried on any machine."""
    command = ["--table", "voc_C4", "--smoke", "--num-gpus", "2", "--inits", "random", "--seeds", "5"]
    result = run_script("tools/reproduce.py", *command, "--output", str(output))
    assert result.returncode == 0, result.stdout + result.stderr
    (folder,) = (output / "smoke-runs").glob("finetune-voc_R50_C4_24k-random-seed5-*")
    assert json.loads((folder / "results.json").read_text())["hardware"]["processes"] == 2


@pytest.mark.slow
def test_a_smoke_run_of_moco_v3_with_a_vit(output: Path) -> None:
    command = ["--table", "moco_v3", "--smoke", "--inits", "moco_v3_ViTS", "--output", str(output)]
    result = run_script("tools/reproduce.py", *command)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder,) = (output / "smoke-runs").glob("linear-moco_v3_ViTS-seed0-*")
    found = json.loads((folder / "results.json").read_text())
    assert found["weights"]["architecture"]["width"] == 48 and found["weights"]["architecture"]["heads"] == 12
    assert "mocov3" in found["weights"]["network"]
