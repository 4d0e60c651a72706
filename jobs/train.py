#!/usr/bin/env python
"""Train the autoencoder and the compressor.

Run: python jobs/train.py run=runs/first
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
