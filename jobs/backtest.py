#!/usr/bin/env python
"""Train and evaluate the settings of the current builds on windows of the past.

Run: python jobs/backtest.py run=runs/first windows=4
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["backtest", *sys.argv[1:]]))
