"""The OpenAPI document of HTTP v1, as a file beside the guides.

python -m raysys.http.openapi docs/openapi.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from raysys.http.app import create_app
from raysys.http.wire import VERSION


def document() -> dict[str, Any]:
    """Return the document, which no build changes."""

    def nothing() -> Any:
        raise AssertionError("no route is asked")

    return create_app(nothing).openapi()


def text() -> str:
    """Return the document as the file holds it."""
    told = document()
    told["info"]["version"] = VERSION.rpartition(".")[0]
    return json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text())
