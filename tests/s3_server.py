"""A server on this machine that speaks S3's protocol, for tests of stores on other hosts.

Import the fixtures in a conftest: `from tests.s3_server import bucket, s3_server`.
"""

import secrets
from collections.abc import Iterator

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The server's URL; the environment leads every client of this session and its child processes there."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            environment.setenv(name, value)
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str) -> str:
    """The name of a new, empty bucket."""
    name = f"flattengpt-{secrets.token_hex(4)}"
    files = new_client()
    files.mkdir(name)
    return name


def new_client():  # type: ignore[no-untyped-def]  # s3fs has no types
    """A client that knows nothing of what others have seen, as one in another process."""
    import s3fs

    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
