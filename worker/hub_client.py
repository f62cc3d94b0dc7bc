"""The Hub's client as publishing needs it: none of its requests waits for ever, and none is tried again in secret."""

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # lazily exported


def set_up_client(timeout_seconds: float) -> None:
    """Make this process's Hub client give up each request after so long without a byte, and draw no bars in the log.

    The timeout does not reach the transfers of Xet, which have limits of their own (`HF_XET_CLIENT_READ_TIMEOUT`).
    """
    disable_progress_bars()

    def client() -> httpx2.Client:
        return httpx2.Client(
            timeout=httpx2.Timeout(timeout_seconds, pool=None),
            follow_redirects=True,
            event_hooks={"response": [_raise_at_once]},
        )

    set_client_factory(client)


def _raise_at_once(response: httpx2.Response) -> None:
    # Else the client sleeps for as long as the answer says, five times over, and does not know dates.
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise HfHubHTTPError(f"The Hub answered {response.status_code}.", response=response)
