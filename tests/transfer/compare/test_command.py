"""The whole of a comparison except the runs: what is planned, timed and refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.common.errors import UserError
from tests.support import detection_data
from tests.support.checkpoints import plain_file, small_network
from transfer.compare import command
from transfer.compare.arguments import parse
from transfer.compare.cost import Cost
from transfer.config.load import load_config
from transfer.reproduce.jobs.job import Job, in_order
from transfer.reproduce.plan.options import Options
from transfer.reproduce.plan.tables import Table

TINY = [*detection_data.TINY, *detection_data.NARROW_HEADS]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    train, test = (
        detection_data.write_coco(tmp_path / name, images=6, seed=seed) for seed, name in enumerate("ab")
    )
    weights = plain_file(tmp_path / "mine.pth", small_network().state_dict())
    data = zip(("--train", "--train-images", "--test", "--test-images"), (*train, *test), strict=True)
    inits = (
        "--init",
        f"mine={weights}",
        "--init",
        "random",
        "--output",
        str(tmp_path / "out"),
        "--jobs",
        "1",
    )
    return [*(str(word) for pair in data for word in pair), *inits]


def planned(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Return the jobs that would run."""
    found: list[Any] = []
    monkeypatch.setattr(command.command, "execute", lambda table, cells, *_, **__: found.extend(cells) or 0)
    assert command.run(parse("", words)) == 0
    return in_order([job for cell in found for jobs in cell.runs.values() for job in jobs])


def test_every_init_has_the_same_schedule_data_and_seeds(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--fractions", "0.5", "1.0", "--seeds", "2", "--frozen", *TINY]
    jobs = planned([*words, *more], monkeypatch)
    runs = [job for job in jobs if job.name.startswith("finetune/")]
    assert len(runs) == 2 * 2 * 2 and len({job.key for job in runs}) == 8
    commands: dict[str, list[dict[str, str]]] = {"mine": [], "random": []}
    for job in runs:
        start = job.command.index("DATASETS.TRAIN_JSON")
        pairs = dict(zip(job.command[start::2], job.command[start + 1 :: 2], strict=False))
        commands[job.name.split("/")[2]].append(
            {key: pairs[key] for key in pairs if key not in ("MODEL.INIT", "MODEL.WEIGHTS", "OUTPUT_DIR")}
        )
    assert commands["mine"] == commands["random"]
    assert {found["SOLVER.MAX_ITER"] for found in commands["mine"]} == {"500"}  # the least for so few images
    assert {found["MODEL.BACKBONE.FREEZE_AT"] for found in commands["mine"]} == {"5"}
    printed = capsys.readouterr().out
    assert "50 %" in printed and "29 epochs, at least 500 iterations" in printed


def test_a_dry_run_plans_and_starts_nothing(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["SOLVER.MAX_ITER", "4", *TINY]
    assert planned([*words, "--jobs", "2", "--dry-run", *given], monkeypatch) == []  # timed in two processes
    printed = capsys.readouterr().out
    assert "2 run(s) at a time" in printed
    assert "SOLVER.MAX_ITER, as given" in printed
    assert "from scratch" not in printed  # that is said of the model that is timed
    with pytest.raises(UserError, match=r"--hours 0\.001: even 100 iterations"):
        planned([*words, "--hours", "0.001", *TINY], monkeypatch)


def test_the_same_command_resumes_the_same_runs_although_times_differ(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--hours` follows from a timing, which is therefore kept with the runs."""
    times = iter((2.0, 3.0))
    monkeypatch.setattr(command.budget.cost, "measure", lambda cfg, **_: Cost(next(times), 5.0, 6))
    more = ["--hours", "1", *TINY]
    first, again = ({job.key for job in planned([*words, *more], monkeypatch)} for _ in range(2))
    assert first == again and len(first) == 7  # three seeds of both, and a conversion
    assert {job.key for job in planned([*words, *more, "--jobs", "3"], monkeypatch)} == first
    other = planned([*words, *more, "SEED", "1"], monkeypatch)
    assert not {job.key for job in other if "finetune" in job.name} & first


def test_more_than_a_day_on_a_processor_names_a_smaller_config(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        command.budget.cost, "measure", lambda cfg, **_: Cost(60.0, 5.0, 6)
    )  # 6 runs of 500 minutes: 50 hours
    planned([*words, *TINY], monkeypatch)
    assert "--config transfer/laptop_custom.yaml" in capsys.readouterr().out
    planned([*words, *TINY, "--hours", "23"], monkeypatch)
    assert "laptop" not in capsys.readouterr().out


def test_epochs_of_the_user_decide_the_length(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.budget.cost, "measure", lambda cfg, **_: Cost(0.1, 5.0, 6))
    jobs = planned([*words, *TINY, "SOLVER.EPOCHS", "200"], monkeypatch)
    (job, *_) = (job for job in jobs if "finetune" in job.name)
    assert "SOLVER.EPOCHS" not in job.command
    assert (
        job.command[job.command.index("SOLVER.MAX_ITER") + 1] == "600"
    )  # 200 epochs of 6 images in batches of 2
    assert "200 epochs" in capsys.readouterr().out


def test_other_annotations_are_other_runs(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["SOLVER.MAX_ITER", "4", *TINY]
    before = {job.key for job in planned([*words, *more], monkeypatch) if "finetune" in job.name}
    path = Path(words[1])
    path.write_text(path.read_text() + " ")
    after = {job.key for job in planned([*words, *more], monkeypatch) if "finetune" in job.name}
    assert len(before) == len(after) == 6 and not before & after


def test_the_rate_of_each_init_is_chosen_without_the_test_images(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three rates, tried with one seed, the first init gets the largest and the other the recipe's own."""
    calls: list[tuple[Table, list[Any], Options]] = []
    monkeypatch.setattr(
        command,
        "_execute",
        lambda args, table, cells, options, *_, **__: calls.append((table, cells, options)) or 0,
    )
    best = {("mine", "100 %"): "0.04", ("random", "100 %"): "0.02"}
    monkeypatch.setattr(command.rates, "best", lambda _: best)
    monkeypatch.setattr(command, "read_json", lambda _: {"rows": [], "columns": []})
    args = parse(
        "", [*words, "--lr-sweep", "--seeds", "2", *TINY, "SOLVER.BASE_LR", "0.02", "SOLVER.MAX_ITER", "4"]
    )
    assert command.run(args) == 0
    assert "100 %     6         4" in capsys.readouterr().out
    (sweep, tried, choosing), (_, tuned, _), (_, main, _) = calls
    assert choosing.seeds == (0,) and choosing.sweep == ("SOLVER.BASE_LR", ("0.01", "0.02", "0.04"))
    test_json, test_images = words[5], words[7]
    for job in (job for cell in tried for jobs in cell.runs.values() for job in jobs):
        assert test_json not in job.command and test_images not in job.command
    assert sweep.columns[0].overrides[:8:2] == main[0].column.overrides[:8:2]  # the same keys, other places
    (mine,) = (cell for cell in tuned if cell.row.init.name == "mine")
    for job in mine.runs[""]:
        assert job.command[len(job.command) - 1 - job.command[::-1].index("SOLVER.BASE_LR") + 1] == "0.04"
    keys = {cell.row.init.name: {job.key for job in cell.runs[""]} for cell in tuned}
    plain = {cell.row.init.name: {job.key for job in cell.runs[""]} for cell in main}
    assert keys["random"] == plain["random"]  # the recipe's own rate is not run twice
    assert not keys["mine"] & plain["mine"] and len(keys["mine"]) == 2


@pytest.mark.parametrize(
    ("gpus", "cores", "memory", "given", "expected"),
    [
        (8, 64, 64, [], 8),
        (8, 64, 64, ["--jobs", "3"], 3),
        (8, 64, 64, ["--num-gpus", "4"], 2),
        (1, 64, 64, ["--jobs", "4"], 1),
        (0, 2, 64, [], 2),
        (0, 2, 64, ["--jobs", "1"], 1),
        (0, 8, 64, [], 6),  # not more than there are runs
        (0, 8, 4, [], 1),  # a run of this config takes 1.5 GB, and 60 % of 4 GB may be used
        (0, 8, 8, [], 3),
        (0, 8, 64, ["--num-gpus", "4"], 2),
    ],
)
def test_runs_share_gpus_or_else_cores_and_memory(
    gpus: int, cores: int, memory: int, given: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = command.budget
    monkeypatch.setattr(budget, "visible_gpus", lambda: ["0"] * gpus)
    monkeypatch.setattr(budget.distributed, "pick_device", lambda _: torch.device("cuda" if gpus else "cpu"))
    monkeypatch.setattr(budget.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(budget, "machine_bytes", lambda: memory * 1e9)
    cfg = load_config("transfer/custom_R50_FPN.yaml", ["SOLVER.IMS_PER_BATCH", "1", "MODEL.INIT", "random"])
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    base = ["--train", "a", "--train-images", "b", "--holdout", "0.1", "--init", "a", "--init", "b"]
    assert budget.runs_at_once(parse("", [*base, *given]), cfg, 6) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--train": "none.json"}, "--train none.json: no such file"),
        ({"--test-images": "none"}, "--test-images none: no such folder"),
        ({"--init": "mine=none.pth"}, "--init mine: none.pth: no such checkpoint"),
    ],
)
def test_mistakes_are_named_before_anything_is_timed(
    words: list[str], change: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.budget.cost, "measure", None)
    for flag, value in change.items():
        words[words.index(flag) + 1] = value
    with pytest.raises(UserError) as error:
        command.run(parse("", words))
    assert message in str(error.value)


def test_a_network_that_the_checkpoints_do_not_have(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.budget.cost, "measure", None)
    with pytest.raises(
        UserError, match=r"^MODEL\.RESNETS\.WIDTH_PER_GROUP 16: the checkpoints of --init have 8"
    ):
        command.run(parse("", [*words, "MODEL.RESNETS.WIDTH_PER_GROUP", "16"]))
