#!/usr/bin/env python
"""Take new logs in, retrain, and publish unless it is worse.

Run: python jobs/refresh.py run=runs/first source=logs/new.parquet
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["refresh", *sys.argv[1:]]))
