#!/usr/bin/env python
"""Write every user's top list to Parquet.

Run: python jobs/score.py run=runs/first
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["score", *sys.argv[1:]]))
