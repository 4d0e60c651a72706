#!/usr/bin/env python
"""Sweep training settings against the validation metric.

Run: python jobs/tune.py run=runs/first trials=4
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["tune", *sys.argv[1:]]))
