"""The process of one contender: a JSON line says what to build, each further one runs it once.

Started by `_measure.Worker`, which reads one JSON line back for each.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import warnings
from typing import Any

import numpy as np

# glibc maps a block afresh, page fault by page fault, up to the size of the largest one that was
# ever freed, and never above this. Whether a process has freed one is chance; here every one has.
SETTLED = 2**25 - 2**14


def main() -> None:
    """Answer until the pipe closes."""
    replies = sys.stdout
    np.ones(SETTLED, np.uint8)

    def reply(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=replies, flush=True)

    # What a library prints is not an answer.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = json.loads(sys.stdin.readline())
        try:
            module = importlib.import_module(asked["module"])
            made = getattr(module, asked["function"])(**asked["arguments"])
        except ImportError as missing:
            return reply({"error": f"{missing.name} is not installed (make peers)"})
        except Exception as raised:
            return reply({"error": f"{type(raised).__name__}: {raised}"})
        reply(
            {
                "moved": made.moved,
                "temporary": made.temporary,
                "trace": made.trace,
                "compile": made.compile,
            }
        )
        for _ in sys.stdin:
            reply({"cost": made.call()})


if __name__ == "__main__":
    main()
