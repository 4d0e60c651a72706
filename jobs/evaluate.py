#!/usr/bin/env python
"""Evaluate the current builds.

Run: python jobs/evaluate.py run=runs/first period=test via=index
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
