"""Download, unpack and convert a data set into the layout that training expects, or check one.

python tools/prepare_data.py demo --size standard            # composes datasets/demo_standard
python tools/prepare_data.py voc                             # downloads what is missing; resumes after Ctrl-C
python tools/prepare_data.py voc-masks --archives ~/Downloads  # uses files downloaded elsewhere, no network
python tools/prepare_data.py coco --check --root /data       # reports what is missing and where it comes from
python tools/prepare_data.py custom --json mine.json --images photos --check
python tools/prepare_data.py custom --json mine.json --images photos --fraction 0.1 --output tenth.json

What each data set needs and where it goes: docs/data.md
"""

from typing import NoReturn

from pretrain.common.errors import run_tool
from transfer.prepare.command import main


def program() -> NoReturn:
    run_tool(lambda: main(__doc__))


if __name__ == "__main__":
    program()
