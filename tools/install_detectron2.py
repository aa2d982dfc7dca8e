"""Install detectron2 in this Python environment, unless it is already installed.

`python tools/install_detectron2.py --help` shows examples.
"""

import runpy
from pathlib import Path

if __name__ == "__main__":
    # Run by its path and not imported, because the packages of this project need libraries and a recent Python.
    program = Path(__file__).resolve().parents[1] / "transfer" / "install_detectron2.py"
    runpy.run_path(str(program), run_name="__main__")
