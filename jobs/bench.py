#!/usr/bin/env python
"""Measure raysys against its peers.

Run: python jobs/bench.py suite=retrieval run=runs/first
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["bench", *sys.argv[1:]]))
