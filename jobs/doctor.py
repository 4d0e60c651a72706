#!/usr/bin/env python
"""Check versions, cluster, storage and data.

Run: python jobs/doctor.py run=runs/first
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["doctor", *sys.argv[1:]]))
