"""Small files of tasks, one of each form."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHOICES = [
    {"id": "a", "query": "Question: the sun is\nAnswer:", "choices": ["hot", "a very cold place"], "gold": 0},
    {"id": "b", "query": "Two and two make", "choices": ["five", "four", "a great many"], "gold": 1},
    {"id": "c", "query": "A week has", "choices": ["one day", "two days", "six", "7", "seven days"], "gold": 4},
    {"id": "d", "query": "Birds", "choices": ["fly", "swim in the sea", "read", "sleep"], "gold": 0},
]
CONTEXTS = [
    {"context_options": ["Ann beat Bob, so Ann", "Ann beat Bob, so Bob"], "continuation": "won.", "gold": 0},
    {"context_options": ["Ann beat Bob, so Ann", "Ann beat Bob, so Bob"], "continuation": "lost.", "gold": 1},
    {"context_options": ["The cup fell", "The wall fell", "It"], "continuation": "off the table.", "gold": 0},
]
ANSWERS = [
    {"question": "What is 2 + 3?", "answer": "2 and 3 make 5. So it is 5."},
    {"question": "What is 1 + 1?", "answer": "2"},
]
INSTRUCTIONS = [
    {"instruction": "Say yes.", "input": "", "output": "yes"},
    {"instruction": "Count the letters.", "input": "abc", "output": "There are 3 letters."},
    {"instruction": "Say nothing.", "input": "", "output": ""},
]


def task_file(file: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """The name of a task that is this file, with a row a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)
