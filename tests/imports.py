"""What a piece of code brings into a fresh interpreter."""

import os
import subprocess
import sys
from collections.abc import Mapping

HEAVY = frozenset({"torch", "transformers", "peft", "accelerate", "datasets"})
"""Libraries that only the compressing process may import."""


def imported(code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> set[str]:
    """The modules that are loaded after the code ran; `sys.argv[1:]` are the arguments."""
    script = f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | (environment or {}),
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.split())
