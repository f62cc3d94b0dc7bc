"""What the documentation says to type is typed: on a real service, page by page, from top to bottom.

A command that cannot run here is in NOT_RUN with the reason; those of `flattengpt` are held against the command line.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from itertools import groupby
from pathlib import Path

import pytest
import yaml
from sqlalchemy import create_engine, make_url, text
from typer.testing import CliRunner

from api.app import create_app
from cli.client import Client
from cli.demo_service import embedded_service
from cli.main import app
from jobs.database import make_engine, upgrade
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from tests.command_lines import check_command, commands_in, logical_lines
from tests.docs.conftest import Place
from tests.docs.pages import ROOT, Block, blocks, pages

RUN = ("README.md", "docs/quickstart.md", "docs/guide.md", "docs/api.md", "docs/deploy.md", "docs/operations.md",
       "docs/models-and-data.md", "docs/mlflow.md")  # fmt: skip
"""Pages whose every command runs, or is in NOT_RUN. Of other pages the commands of `flattengpt` are parsed."""

HAVE_MODEL = ("docs/guide.md", "docs/models-and-data.md")
"""Pages whose reader has a model to upload."""

NOT_RUN = {
    r"make (demo|test|serve)": "tests/e2e/test_journey.py runs what `make demo` runs, and each test run is `make test`",
    r"docker compose .*": "there is no container engine; `make check` validates docker-compose.yml by its schema",
    r"kubectl .*": "there is no cluster; `make check` validates deploy/kubernetes by its schemas",
    r"flattengpt serve .*": "it is what all the pages run against",
    r"flattengpt worker( --queues .*)?": "it runs until it is stopped; tests/worker/test_queues.py starts both",
    r"export FLATTENGPT_QUEUES=.*": "a setting of services, not of their clients",
    r"export (POSTGRES_PASSWORD|AWS_ACCESS_KEY_ID|FLATTENGPT_ARTIFACTS_URL)=.*": "values for servers of the reader's",
    r"export FLATTENGPT_MLFLOW_.*": "tests/worker/test_mlflow.py runs with a server of its own",
    r"pip install .*": "it would change the environment of the tests",
    r"(\.venv/bin/)?flattengpt submit org/model .*": "it asks the Hub for a model",
    r"(\.venv/bin/)?flattengpt (compress|evaluate) .*": "it takes long; tests/cli/test_commands.py runs both",
    r"(\.venv/bin/)?flattengpt (compare|ladder) .*": "it takes long; tests/cli/test_commands.py runs both",
    r"(\.venv/bin/)?flattengpt diagnose .*": "it takes long; tests/cli/test_diagnose.py runs it",
    r"flattengpt track .*": "tests/worker/test_mlflow.py runs it with a server",
    r"pg_(dump|restore) .*": "test_a_backup_of_postgresql runs it",
    r"(tar|curl) .*my-model\.(tar\.gz|gguf).*": "tests/api/test_models.py uploads both",
    r"openapi-python-client generate .*": "tests/e2e/test_generated_client.py runs it",
    r"flattengpt migrate": "the service has the data folder; tests/e2e/test_journey.py runs it on PostgreSQL",
    r".*FLATTENGPT_DATA_DIR=restored.*": "test_a_backup_of_a_folder runs it on a copy of its own",
}

GENERATED = "from flattengpt_client"
"""How Python begins that needs a generated client; tests/e2e/test_generated_client.py has one."""

SECONDS = 300
"""For one block, on a machine that has much else to do."""

WORDS = {
    "https://flat.example.org": "{url}",
    "http://127.0.0.1:8000": "{url}",
    "https://example.org/hooks/flattengpt": "{hook}",
    "local:smollm2-135m-instruct": "local:tiny",
    "org/model": "local:tiny",
    "demo-output/model": "{model}",
    "JOB_ID": "{job_id}",
    ".venv/bin/": "",
}
"""What stands for something of the reader's, and what it is here."""
PATTERNS = {
    r"\bMODEL\b": "local:tiny",
    r"--layers 24\b": "--layers 4",
    r'"layers": 24': '"layers": 4',
    r"\.flattengpt\b": "{data}",
}


def runs_here(command: str) -> bool:
    return not any(re.fullmatch(pattern, command.split("  #")[0].strip(), re.DOTALL) for pattern in NOT_RUN)


def as_here(text: str, place: Place) -> str:
    """The text with what there is here in place of what is the reader's."""
    for theirs, ours in WORDS.items():
        text = text.replace(theirs, ours.replace("{url}", place.url).replace("{hook}", place.hook))
    text = text.replace("{job_id}", place.job_id).replace("{model}", str(place.files / "my-model"))
    for pattern, ours in PATTERNS.items():
        text = re.sub(pattern, ours.replace("{data}", os.environ["FLATTENGPT_DATA_DIR"]), text)
    return text


def _is_plain(line: str) -> bool:
    """Whether the line is one command of `flattengpt` and nothing for a shell."""
    words = shlex.split(line, comments=True)
    return words[0] == "flattengpt" and not re.search(r"[|<>$&;]", " ".join(words))


class Reader:
    """Types what a page says, one block after another, in one shell and one interpreter."""

    def __init__(self, place: Place, state: Path) -> None:
        self._place, self._state = place, state
        self._names: dict[str, object] = {"__name__": "page"}

    def type(self, block: Block) -> None:
        """Do what the block says; fails where it fails."""
        match block.language:
            case "console":
                self._shell(block)
            case "python" if not block.text.startswith(GENERATED):
                exec(compile(as_here(block.text, self._place), str(block), "exec"), self._names)

    def _shell(self, block: Block) -> None:
        lines = list(logical_lines(block.text))
        if "<<" in block.text:  # a document inside is no line of its own
            assert all(map(runs_here, lines)), f"{block}: put what cannot run here into a block of its own"
            self._bash(block, as_here(block.text, self._place))
            return
        here = [as_here(line, self._place) for line in lines if runs_here(line)]
        for plain, some in groupby(here, key=_is_plain):
            if plain:
                for line in some:
                    self._invoke(block, shlex.split(line, comments=True)[1:])
            else:
                self._bash(block, "\n".join(some))

    @staticmethod
    def _invoke(block: Block, arguments: list[str]) -> None:
        """In this process, which is much faster."""
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{block}: {arguments}\n{done.output}"

    def _bash(self, block: Block, text: str) -> None:
        """In a shell of its own, which leaves its variables to the next one."""
        # An answer of 400 and more is a failure, also where the page does not ask curl to say so.
        curl = 'curl() { command curl --fail-with-body --silent --show-error "$@"; }'
        before = f"set -euo pipefail -a\n{curl}\n[ ! -f {self._state} ] || . {self._state}"
        script = f"{before}\n{text}\nexport -p > {self._state}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, f"{block}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        exported = self._exported()
        os.environ.update({name: exported[name] for name in ("FLATTENGPT_URL", "FLATTENGPT_API_KEY")})

    def _exported(self) -> dict[str, str]:
        show = subprocess.run(
            ["bash", "-c", f". {self._state}; env -0"], capture_output=True, text=True, check=True
        ).stdout
        return dict(entry.split("=", 1) for entry in show.split("\0") if "=" in entry)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_a_page_does_what_it_says(page: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLATTENGPT_URL", "FLATTENGPT_API_KEY"):
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(shutil.copytree(place.files, tmp_path / "work"))
    if page not in HAVE_MODEL:
        shutil.rmtree("my-model")  # they make one of this name
    reader = Reader(place, tmp_path / "state")
    for block in blocks(page):
        reader.type(block)


def console() -> list[Block]:
    return [block for page in pages() for block in blocks(page) if block.language == "console"]


@pytest.mark.parametrize("block", console(), ids=str)
def test_commands_are_those_of_the_command_line(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    for file in ("request.yaml", "docs/accelerate-fsdp.yaml", "my-text.txt", "a.txt", "b.txt", "mine.jsonl"):
        Path(file).touch()
    for arguments in commands_in(block.text):
        check_command(arguments)


def test_each_exception_is_still_one() -> None:
    written = [line.split("  #")[0].strip() for block in console() for line in logical_lines(block.text)]
    for pattern in NOT_RUN:
        assert [line for line in written if re.fullmatch(pattern, line, re.DOTALL)], pattern


def test_requests_are_valid() -> None:
    """JSON and YAML of the pages can be read, and what looks like a request is one."""
    found = 0
    for page in pages():
        for block in blocks(page):
            if block.language in ("json", "yaml"):
                document = yaml.safe_load(block.text)
                if isinstance(document, dict) and "model" in document:
                    JobSpec.model_validate(document)
                    found += 1
    assert found


def test_links_lead_somewhere() -> None:
    for page in pages():
        folder = (ROOT / page).parent
        for target in re.findall(
            r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")
        ):
            assert (folder / target).exists(), f"{page} links to {target}"


def test_the_guide_has_every_call(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    paths = create_app(Settings(data_dir=tmp_path, database_url="")).openapi()["paths"]
    calls = {
        f"`{method.upper()} {path.replace('{job_id}', '{id}')}`"
        for path, methods in paths.items()
        for method in methods
    }
    assert {call for call in calls if call not in text} == set()


@pytest.mark.slow
def test_a_backup_of_a_folder(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/operations.md backs up, while the service runs, is a service again where it is restored."""
    monkeypatch.chdir(tmp_path)
    script = [as_here(block.text, place) for block in blocks("docs/operations.md") if "backup" in block.text]
    assert len(script) == 2
    for commands in script:
        done = subprocess.run(["bash", "-euc", commands], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.delenv("FLATTENGPT_URL")
    restored = embedded_service(tmp_path / "restored", tmp_path / "restored.log", auth="required")
    with restored as url, Client(url) as client:
        job = client.get(place.job_id)
        assert job.status == "succeeded"
        client.download(job, tmp_path / "result")
    assert json.loads((tmp_path / "result" / "config.json").read_text())["num_hidden_layers"] == 4


@pytest.mark.slow
def test_a_backup_of_postgresql(postgres_url: str, postgres_server: str, tmp_path: Path) -> None:
    if shutil.which("pg_dump") is None:
        pytest.skip("no pg_dump: the backup of PostgreSQL is NOT tested")
    engine = make_engine(postgres_url)
    upgrade(engine)
    job = JobStore(engine).submit(JobSpec(model="local:tiny", layers=4))
    commands = {
        line.split()[0]: line
        for block in blocks("docs/operations.md")
        for line in logical_lines(block.text)
        if line.startswith("pg_")
    }

    def run(command: str) -> None:
        environment = os.environ | {"FLATTENGPT_DATABASE_URL": postgres_url}
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr

    run(commands["pg_dump"])
    engine.dispose()
    name = make_url(postgres_url).database
    server = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE {name}"))
    server.dispose()
    run(commands["pg_restore"])
    restored = make_engine(postgres_url)
    assert JobStore(restored).get(job.id).request == job.request
    restored.dispose()
