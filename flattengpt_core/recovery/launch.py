"""Recovery on many devices: the folder's task started by `accelerate launch`, its progress read from its output."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from flattengpt_core.errors import RecoveryFailed
from flattengpt_core.progress import Progress
from flattengpt_core.recovery.folder import Recovered, RecoveryFolder

MARK = "flattengpt-recovery "
"""What a line of progress begins with; the rest is JSON: the method's name and its arguments."""


class Lines:
    """A `Progress` that prints each message as a line, for the process that launched this one."""

    def stage(self, name: str) -> None: ...

    def step(self, done: int, total: int) -> None:
        self._say("step", done=done, total=total)

    def event(self, type: str, **data: Any) -> None:
        self._say("event", type=type, **data)

    @staticmethod
    def _say(method: str, /, **given: Any) -> None:
        print(MARK + json.dumps([method, given]), flush=True)  # noqa: T201


def recover_launched(folder: RecoveryFolder, progress: Progress, accelerate_config: Path) -> Recovered:
    """As `run.recover`, in the processes that accelerate's config file asks for.

    Raises:
        RecoveryFailed: they ended without a result; their last words are on standard error.
        Exception: whatever `progress` raises to stop; the processes are ended and the last checkpoint stays.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate_config)]
    command += ["-m", "flattengpt_core.recovery", str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        try:
            assert launcher.stdout is not None
            for line in launcher.stdout:
                if line.startswith(MARK):
                    method, given = json.loads(line.removeprefix(MARK))
                    getattr(progress, method)(**given)
                else:
                    sys.stderr.write(line)
        finally:
            launcher.terminate()  # does nothing to one that has ended
    result = folder.result()
    if result is None or launcher.returncode:
        raise RecoveryFailed(
            f"The processes that accelerate launched ended without a result (exit code {launcher.returncode}); what "
            "they said stands above. The same command goes on at the last checkpoint.",
        )
    return result
