"""`import pretrain`: OpenMP's wait policy on a busy and on a quiet machine."""

import pytest

from pretrain import is_busy


@pytest.mark.parametrize(
    ("loadavg", "cores", "busy"),
    [
        ("9.00 9.00 9.00 1/80 11206", 2, False),  # load of the past; nothing but this process runs now
        ("0.20 0.18 0.12 2/80 11206", 2, True),
        ("0.20 0.18 0.12 2/80 11206", 4, False),
        ("0.20 0.18 0.12 33/800 11206", 64, True),
        ("", 2, False),  # not Linux
        ("0.20 0.18", 2, False),
    ],
)
def test_a_machine_is_busy_when_others_run_on_half_of_its_cores(loadavg: str, cores: int, busy: bool) -> None:
    assert is_busy(loadavg, cores) is busy
