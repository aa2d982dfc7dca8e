"""`tools/benchmark.py gpu`: the plan, a run on the CPU with tiny networks, and mistakes in one line."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.common import command_line
from pretrain.common.errors import UserError
from transfer.benchmark import arguments, command, report


def parse(*words: str) -> argparse.Namespace:
    parser = command_line.Parser()
    arguments.add_gpu(parser.add_subparsers(required=True))
    return command_line.parse(parser, ["gpu", *words])


def test_the_plan_begins_with_what_matters_most(tmp_path: Path) -> None:
    """Every combination of pre-training is there once, and only the last cells are compiled or hold whole batches."""
    cells = command.cells("cuda", folder=tmp_path, images="", rounds=3, tiny=False)
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    assert names[:5] == [
        "batch 256, bf16", "batch 256, fp32", "coco_R50_FPN, 2 images, fp32", "voc_R50_C4_24k, 2 images, fp32",
        "1000 images",
    ]  # fmt: skip
    combinations = {
        f"batch {batch}, {precision}{compiled}"
        for batch in (64, 128, 256) for precision in ("bf16", "fp32") for compiled in ("", ", compiled")
    }  # fmt: skip
    assert {cell.name for cell in cells if cell.table == "pre-training"} == combinations
    assert [cell.kind for cell in cells].index("compiled") > names.index("batch 64, fp32")


def test_everything_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell of each kind; the others differ from them in numbers."""
    planned = command.cells

    def few(*args: Any, **options: Any) -> list[Any]:
        cells = planned(*args, **options)
        assert len({cell.name for cell in cells}) == len(cells) == 9
        return [cells[0], cells[2], cells[3], cells[4]]

    monkeypatch.setattr(command, "cells", few)
    output = tmp_path / "gpu.json"
    command.run(output, device="cpu", minutes=10, rounds=1)
    content = json.loads(output.read_text())
    assert [row["status"] for row in content["rows"]] == ["measured"] * 4, content["rows"]
    assert content["tiny"] and content["gpu"] is None and content["versions"]["torch"] == torch.__version__
    assert content["date"].endswith("UTC")
    pretraining, fpn, c4, evaluation = (row["result"] for row in content["rows"])
    assert pretraining["pairs_per_second"]["published"]["low"] > 0
    assert min(fpn["ours"]["low"], c4["plain"]["low"], evaluation["segm"]["pycocotools"]["low"]) > 0
    table = output.with_suffix(".md").read_text()
    assert "these figures say nothing about anything" in table
    assert table.count("| batch 16, bf16 |") == table.count("| voc_R50_C4_24k, 2 images, fp32 |") == 1


def test_the_table_shows_what_was_not_measured() -> None:
    device = torch.device("cpu")
    rows = [
        {"table": "pre-training", "cell": "batch 64, fp32", "status": "out of memory", "seconds": 1.0},
        {"table": "fine-tuning", "cell": "x", "status": "dropped", "seconds": 0.0},
        {"table": "evaluation", "cell": "y", "status": "failed", "seconds": 0.0, "error": "RuntimeError: no"},
    ]
    head = report.head(device, images="", minutes=1, rounds=1, tiny=False)
    table = report.markdown({**head, "rows": rows})
    assert "| batch 64, fp32 | out of memory | – |" in table and "| x | dropped | – |" in table
    assert table.endswith("y failed: RuntimeError: no\n") and "no GPU" in table
    widths = {line.count("|") for line in table.splitlines() if line.startswith("| batch 64")}
    assert widths == {len(report._TABLES["pre-training"]) + 2}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--output", "a.txt"], r"--output a\.txt: name a file that ends in \.json"),
        (["--output", "a.json", "--rounds", "0"], "--rounds 0: give 1 or more"),
        (["--output", "a.json", "--minutes", "nan"], "--minutes nan: give a number above 0"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str) -> None:
    args = parse(*words)
    with pytest.raises(UserError, match=line):
        args.run(args)


def test_without_a_gpu_one_line_names_the_way_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = parse("--output", str(tmp_path / "a.json"))
    with pytest.raises(UserError, match=r"no GPU here.*tools/benchmark\.py gpu --device cpu --output"):
        args.run(args)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_few_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("old")
    args = parse("--output", str(tmp_path / "a.json"), "--device", "cpu")
    with pytest.raises(UserError, match=r"a\.md exists"):
        args.run(args)
    (tmp_path / "one.jpg").write_bytes(b"x")
    args = parse("--output", str(tmp_path / "b.json"), "--device", "cpu", "--images", str(tmp_path))
    with pytest.raises(UserError, match=r"it holds 1 image\(s\): name a folder of 16 or more"):
        args.run(args)
    assert not (tmp_path / "b.json").exists()
