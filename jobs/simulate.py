#!/usr/bin/env python
"""Simulate an interaction log whose truth is known.

Run: python jobs/simulate.py run=runs/first
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["simulate", *sys.argv[1:]]))
