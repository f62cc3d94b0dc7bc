"""`accelerate launch -m flattengpt_core.recovery FOLDER`: do the task of a prepared recovery folder."""

import sys
from pathlib import Path

from flattengpt_core.progress import Silent
from flattengpt_core.recovery.folder import RecoveryFolder
from flattengpt_core.recovery.launch import Lines
from flattengpt_core.recovery.run import rank, recover

if __name__ == "__main__":
    recover(RecoveryFolder(Path(sys.argv[1])), Lines() if rank() == 0 else Silent())
