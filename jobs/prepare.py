#!/usr/bin/env python
"""Turn raw logs into interactions and profiles.

Run: python jobs/prepare.py run=runs/first source=logs.parquet
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare", *sys.argv[1:]]))
