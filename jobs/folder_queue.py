"""The embedded queue: kombu's queue of folders, of which nothing is ever seen half-written.

Kombu writes a message under its final name, so that a reader may take it while it is still empty, and fail. And it
keeps which queue belongs to which exchange in a file that it empties before it writes it: a worker that was killed in
between left one that no worker could start with any more.
"""

import os
import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem, virtual
from kombu.utils.json import dumps

SCHEME = "folders"


class Channel(filesystem.Channel):
    """As kombu's, but for how a message is written, and with the bindings in memory.

    Every process that sends or listens declares its queues, and so has the bindings that it needs. Only fanout would
    need those of others; Celery's remote control is what uses it, and leaves itself out without it.
    """

    supports_fanout = False
    get_table = virtual.Channel.get_table
    _delete = virtual.Channel._delete

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]  # as kombu overrides it itself
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        aside = folder / f"{name}.partial"  # which no reader takes for a message
        aside.write_text(dumps(payload), encoding="utf-8")  # type: ignore[no-untyped-call]
        os.replace(aside, folder / name)


class Transport(filesystem.Transport):
    """Kombu's, with that channel; its URL is `folders://`."""

    Channel = Channel
    implements = filesystem.Transport.implements.extend(exchange_type=frozenset(["direct", "topic"]))


TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"
