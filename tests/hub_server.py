"""A local server that speaks the Hugging Face Hub's protocol to the real client, with what it saw written down.

Large files come through Xet, the client's default, or through git-lfs (HF_HUB_DISABLE_XET=1).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from tests.hub.protocol import make_app
from tests.hub.state import Hub


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine, in a thread."""
    hub = Hub()
    # Without a date of its own, since a test may want another.
    config = uvicorn.Config(make_app(hub), host="127.0.0.1", port=0, log_level="critical", date_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="hub", daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive(), "the hub did not start"
    hub.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield hub
    finally:
        hub.closing = server.should_exit = True
        thread.join()
