"""Tasks as a user names them: by file, by lm-eval's name, and wrongly."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flattengpt_core.tasks import TaskNotFound, is_file, load_tasks
from tests.hub_server import running_hub
from tests.task_files import ANSWERS, CHOICES, CONTEXTS, INSTRUCTIONS, task_file


@pytest.mark.parametrize(
    ("rows", "kind", "answers"),
    [
        (CHOICES, "multiple_choice", False),
        (CONTEXTS, "multiple_choice", False),
        (ANSWERS, "loglikelihood", True),
        (INSTRUCTIONS, "loglikelihood", True),
    ],
)
def test_each_form_is_a_task_of_lm_evals(tmp_path: Path, rows: list[dict[str, Any]], kind: str, answers: bool) -> None:
    name = task_file(tmp_path / "mine.jsonl", rows)
    [task] = load_tasks([name])
    assert (task.name, task.source.OUTPUT_TYPE, task.answers, task.shots) == (name, kind, answers, 0)
    assert (task.items(None), task.items(2), task.items(99)) == (len(rows), 2, len(rows))


def test_the_same_named_twice_is_one_task(tmp_path: Path) -> None:
    name = task_file(tmp_path / "mine.jsonl", CHOICES)
    assert [task.name for task in load_tasks([name, name])] == [name]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "holds no item"),
        ("\n \n", "holds no item"),
        ("{", "line 1"),
        ("[1]", "no form of task has the keys (none)"),
        ('{"query": "a"}', "no form of task has the keys query; known are"),
        ('{"query": "a", "choices": ["b", "c"]}', "gold: Field required"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "gold is 2, but choices has 2 entries"),
        ('{"query": "a", "choices": ["b", "c"], "gold": -1}', "gold: Input should be greater than or equal to 0"),
        ('{"query": "a", "choices": ["b", "c"], "gold": "1"}', "gold: Input should be a valid integer"),
        ('{"query": "a", "choices": ["b"], "gold": 0}', "choices: List should have at least 2 items"),
        ('{"query": "a", "choices": ["b", ""], "gold": 0}', "choices.1: String should have at least 1 character"),
        ('{"context_options": ["b", "c"], "continuation": "d", "gold": 2}', "context_options has 2 entries"),
        ('{"question": "a", "answer": "b"}\n{"query": "a", "choices": ["b", "c"], "gold": 0}', "line 2"),
        ('{"question": "a", "answer": 4}', "answer: Input should be a valid string"),
    ],
)
def test_a_wrong_file_is_said_with_its_line(tmp_path: Path, lines: str, message: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(lines)
    with pytest.raises(TaskNotFound) as refused:
        load_tasks([str(file)])
    assert message in refused.value.message
    assert refused.value.message.startswith(("line ", "the task file"))
    assert (refused.value.field, refused.value.status) == ("evaluation.tasks", 422)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskNotFound, match="not UTF-8"):
        load_tasks([str(tmp_path / "binary.jsonl")])
    with pytest.raises(TaskNotFound, match="No such file"):
        load_tasks(["absent.jsonl"])


@pytest.mark.parametrize(("name", "file"), [("piqa", False), ("arc_easy", False), ("a.jsonl", True), ("./piqa", True)])
def test_a_name_of_lm_evals_is_never_a_file(name: str, file: bool) -> None:
    assert is_file(name) is file


TRY_TASKS = """
import sys
from flattengpt_core.errors import FlattenGPTError
from flattengpt_core.tasks import load_tasks
for name in sys.argv[1:]:
    try:
        print(*[(task.name, task.items(None), task.shots) for task in load_tasks([name])])
    except FlattenGPTError as error:
        print(error.code, error.field, error.message)
"""


def tried(*names: str, **environment: str) -> list[str]:
    """A line a task, from a process of its own: the Hub's client reads its settings once."""
    command = [sys.executable, "-c", TRY_TASKS, *names]
    said = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
    assert "Traceback" not in said.stderr
    return said.stdout.splitlines()


@pytest.mark.slow
def test_names_with_the_hub(tmp_path: Path) -> None:
    rows = [{"goal": f"open jar {n}", "sol1": "twist the lid", "sol2": "eat the lid", "label": 0} for n in range(5)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with running_hub() as hub:
        hub.add("baber/piqa", {"train.jsonl": data, "validation.jsonl": data})
        names = ("piqa", "winogrande", "no_such_task", "humaneval")
        there, gone, unknown, code = tried(*names, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path))
    assert there == "('piqa', 5, 0)"
    assert gone.startswith("task_not_found evaluation.tasks lm-eval cannot set up the task 'winogrande'")
    assert unknown.startswith("task_not_found evaluation.tasks lm-eval knows no task 'no_such_task'")
    assert code.startswith("task_not_found evaluation.tasks lm-eval cannot set up the task 'humaneval'")
    assert not [seen for seen in hub.seen if seen.authorization]


def test_names_without_the_hub(tmp_path: Path) -> None:
    [said] = tried("piqa", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert said.startswith("hub_unreachable evaluation.tasks The data of the task 'piqa' cannot be loaded")
