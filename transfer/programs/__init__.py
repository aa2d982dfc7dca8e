"""The command-line programs, one module each: `tools/X.py` and the console command of setup.py run its `program`."""
