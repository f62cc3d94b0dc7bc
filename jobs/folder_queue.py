"""The embedded queue: kombu's queue of folders, whose messages appear whole.

Kombu writes a message under its final name, so that a reader may take it while it is still empty, and fail.
"""

import os
import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

SCHEME = "folders"


class Channel(filesystem.Channel):
    """As kombu's, but for how a message is written."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]  # as kombu overrides it itself
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        aside = folder / f"{name}.partial"  # which no reader takes for a message
        aside.write_text(dumps(payload), encoding="utf-8")  # type: ignore[no-untyped-call]
        os.replace(aside, folder / name)


class Transport(filesystem.Transport):
    """Kombu's, with that channel; its URL is `folders://`."""

    Channel = Channel


TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"
