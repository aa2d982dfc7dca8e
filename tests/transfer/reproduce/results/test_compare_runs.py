"""Comparing two runs: tools/compare_runs.py on hand-made pairs."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.common.errors import UserError
from tests.support.scripts import run_script
from transfer.reproduce.results import compare_runs

CONFIG: dict[str, Any] = {
    "SOLVER": {
        "BASE_LR": 0.02,
        "MAX_ITER": 24000,
        "STEPS": [18000, 22000],
        "IMS_PER_BATCH": 16,
        "LOG_PERIOD": 20,
    },
    "DATASETS": {"ROOT": "/a", "TRAIN": ["voc_2007_trainval"], "FRACTION": 1.0},
    "MODEL": {"WEIGHTS": "a.pkl", "FPN": {"NORM": "SyncBN"}},
    "INPUT": {"MIN_SIZE_TRAIN": [480, 800]},
    "OUTPUT_DIR": "/out/a",
    "SEED": 0,
}
RESULTS: dict[str, Any] = {
    "config_sha256": "c" * 64,
    "init": "weights",
    "weights": {
        "path": "a.pkl",
        "sha256": "e" * 64,
        "record": {"branch": "encoder_q", "proof": {"res5": 1e-14}},
    },
    "seed": 0,
    "precise_bn": "x",
    "iterations": 24000,
    "versions": {"torch": "2.6.0"},
    "hardware": {"gpu": "V100"},
    "data": {"sets": {"voc": {"sha256": "d" * 64}}},
    "metrics": {"voc": {"bbox": {"AP": 55.9, "AP50": 81.5, "AP-cat": 60.0, "AP-dog": 50.0}}},
}


def run(folder: Path, *, config: dict[str, Any] | None = None, **results: Any) -> Path:
    """Write the standard run with these settings (dotted keys) and these parts of results.json changed."""
    tree = copy.deepcopy(CONFIG)
    for key, value in (config or {}).items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    (folder / "results.json").write_text(json.dumps(RESULTS | results))
    return folder


def compare(a: Path, b: Path) -> list[str]:
    return compare_runs.table(compare_runs.read(a), compare_runs.read(b))


def line(lines: list[str], start: str) -> list[str]:
    return next(text.split() for text in lines if text.strip().startswith(start))


def test_what_differs_is_sorted_by_how_likely_it_matters(tmp_path: Path) -> None:
    a = run(tmp_path / "a")
    changed = {"INPUT.MIN_SIZE_TRAIN": [600], "MODEL.FPN.NORM": "BN", "DATASETS.FRACTION": 0.1, "OUTPUT_DIR": "/out/b",
               "SOLVER.IMS_PER_BATCH": 8, "SOLVER.BASE_LR": 0.01, "SOLVER.MAX_ITER": 12000, "SOLVER.LOG_PERIOD": 5,
               "MODEL.WEIGHTS": "b.pkl", "SEED": 7}  # fmt: skip
    weights = {
        "path": "b.pkl",
        "sha256": "f" * 64,
        "record": {"branch": "encoder_k", "proof": {"res5": 2e-14}},
    }
    metrics = {"voc": {"bbox": {"AP": 54.4, "AP50": 81.5, "AP-cat": 61.0, "AP-dog": 45.0}}}
    b = run(tmp_path / "b", config=changed, weights=weights, seed=7, versions={"torch": "2.7.0"}, metrics=metrics,
            hardware={"gpu": "H100"}, data={"sets": {"voc": {"sha256": "b" * 64}}}, iterations=12000)  # fmt: skip
    lines = compare(a, b)
    titles = [text.split("  ")[0] for text in lines[3:-2] if not text.startswith(" ")]
    assert titles == ["metrics", "schedule", "learning rate", "batch", "data", "model", "augmentation", "weights",
                      "versions", "data digests", "seed", "hardware", "length", "bookkeeping"]  # fmt: skip
    assert line(lines, "voc bbox AP ") == ["voc", "bbox", "AP", "55.9", "54.4", "-1.50"]
    assert line(lines, "voc bbox AP50")[-1] == "equal"
    assert line(lines, "voc bbox AP-") == ["voc", "bbox", "AP-dog", "(differs", "most)", "50", "45", "-5.00"]
    assert line(lines, "SOLVER.BASE_LR") == ["SOLVER.BASE_LR", "0.02", "0.01"]
    assert line(lines, "weights.sha256") == ["weights.sha256", "e" * 12, "f" * 12]
    assert line(lines, "weights.record.branch")[1:] == ["encoder_q", "encoder_k"]
    text = "\n".join(lines)
    assert "proof" not in text and "weights.path" not in text and "STEPS" not in text
    assert text.index("bookkeeping") < text.index("SOLVER.LOG_PERIOD") and text.index(
        "bookkeeping"
    ) < text.index("MODEL.WEIGHTS")
    assert lines[-1].startswith("look first at: schedule, learning rate, batch")


def test_a_seed_alone_is_noise(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b", config={"SEED": 1, "OUTPUT_DIR": "/b"}, seed=1)
    assert compare(a, b)[-1].startswith("only the seed differs")
    assert compare(a, a / "results.json")[-1].startswith("the same settings")


def test_linear_probes_bring_their_config_along(tmp_path: Path) -> None:
    for name, rate in (("a", 30.0), ("b", 10.0)):
        config = {"SOLVER": {"BASE_LR": rate, "MAX_EPOCH": 100}, "OUTPUT_DIR": name, "SEED": 0}
        content = {
            "top1": 60.0 + rate / 10,
            "top5": 80.0,
            "config": config,
            "weights": {"sha256": "e" * 64},
            "seed": 0,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    lines = compare(tmp_path / "a.json", tmp_path / "b.json")
    assert line(lines, "top1") == ["top1", "63", "61", "-2.00"]
    assert (
        line(lines, "SOLVER.BASE_LR") == ["SOLVER.BASE_LR", "30", "10"]
        and lines[-1] == "look first at: learning rate"
    )


@pytest.mark.parametrize(
    ("value", "told"), [("step", "the same settings"), ("cosine", "look first at: schedule")]
)
def test_a_key_that_an_older_probe_lacks_counts_unless_it_has_its_default(
    tmp_path: Path, value: str, told: str
) -> None:
    for name, more in (("a", {}), ("b", {"SCHEDULE": value})):
        solver = {"MAX_EPOCH": 100, **more}
        content = {"top1": 60.0, "config": {"SOLVER": solver}, "weights": {"sha256": "e" * 64}, "seed": 0}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert compare(tmp_path / "a.json", tmp_path / "b.json")[-1].startswith(told)


def test_without_a_config_the_digests_are_compared(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b", config_sha256="9" * 64)
    (b / "config.yaml").unlink()
    assert compare(a, b)[-1] == f"no {b}/config.yaml: settings are not compared; their digests are different"


def test_what_is_known_without_a_config_is_said(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b", versions={"torch": "2.7.0"}, config_sha256=None)
    (b / "config.yaml").unlink()
    unknown = "settings are not compared; a digest is missing, so nothing shows whether they are equal"
    assert compare(a, b)[-1] == f"no {b}/config.yaml: {unknown}; look first at: versions"
    for folder in (a, b):
        (folder / "results.json").write_text(json.dumps({"metrics": {"x": {"bbox": {"AP": 1.0}}}}))
    # Two missing digests do not count as equal.
    assert compare(a, b)[-1].endswith("nothing shows whether they are equal")


def test_odd_numbers_are_no_difference_and_no_error(tmp_path: Path) -> None:
    metrics = {"voc": {"bbox": {"AP": float("nan"), "AP50": 10**400, "AP-cat": 10**400, "AP-dog": 1.0}}}
    a = run(tmp_path / "a", metrics=metrics, iterations=float("nan"))
    b = run(tmp_path / "b", metrics=metrics, iterations=float("nan"), versions={"torch": 10**400})
    lines = compare(a, b)
    assert line(lines, "voc bbox AP ") == ["voc", "bbox", "AP", "nan", "nan"]
    assert "length" not in "\n".join(lines) and lines[-1] == "look first at: versions"


def test_absent_and_undefined_values_are_shown(tmp_path: Path) -> None:
    a = run(tmp_path / "a", metrics={"voc": {"bbox": {"AP": None, "AP50": 1.0}}}, precise_bn=None)
    b = run(tmp_path / "b", metrics={"voc": {"bbox": {"AP": 3.0}}}, config={"SOLVER.NEW": "\x1b[31mred"})
    lines = compare(a, b)
    assert line(lines, "voc bbox AP ") == ["voc", "bbox", "AP", "None", "3"]
    assert line(lines, "voc bbox AP50") == ["voc", "bbox", "AP50", "1", "(absent)"]
    assert line(lines, "SOLVER.NEW") == ["SOLVER.NEW", "(absent)", r"\x1b[31mred"]
    assert line(lines, "precise_bn") == ["precise_bn", "None", "x"]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("results.json", None, "no such file"),
        ("results.json", "{", "not a complete JSON file"),
        ("results.json", "\x00\xff", "not a complete JSON file"),
        ("results.json", "[]", "no metrics"),
        ("results.json", '{"a": 1}', "no metrics"),
        ("config.yaml", "!!python/object:os.system x", "!!python tag would run code"),
        ("config.yaml", "- 1", "not a YAML mapping"),
    ],
)
def test_foreign_files_are_one_line(tmp_path: Path, file: str, content: str | None, words: str) -> None:
    folder = run(tmp_path / "a")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=words) as caught:
        compare_runs.read(folder)
    assert str(folder / file) in str(caught.value) and "\n" not in str(caught.value)


def test_command(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b", seed=1)
    found = run_script("tools/compare_runs.py", str(a), str(b))
    assert found.returncode == 0 and "only the seed differs" in found.stdout
    failed = run_script("tools/compare_runs.py", str(a), str(tmp_path / "none"))
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
