"""Tasks by lm-eval's name, or from a .jsonl file of the user's, as tasks of lm-eval. Knows nothing of models.

A file holds one object a line, all of one form:

    {"query", "choices", "gold"}                    which choice goes on best after the query
    {"context_options", "continuation", "gold"}     after which context the continuation fits best (partial scoring)
    {"question", "answer"}                          how likely the answer is, and whether it is the greedy one
    {"instruction", "input", "output"}              the same of Alpaca's rows
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from huggingface_hub.errors import HfHubHTTPError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flattengpt_core.errors import FlattenGPTError, InvalidRequest
from flattengpt_core.hub import HubUnreachable

FIELD = "evaluation.tasks"
_FILE_SUFFIXES = (".jsonl", ".json")
_FEWSHOT_SEED = 1234
"""lm-eval's own: the examples that a few-shot task such as gsm8k shows."""


class TaskNotFound(InvalidRequest):
    code = "task_not_found"
    title = "The task cannot be loaded"

    def __init__(self, message: str) -> None:
        super().__init__(message, field=FIELD)


@dataclass(frozen=True)
class Task:
    """A task that is ready to be asked. source: lm-eval's task object. answers: whether it is a file of answers."""

    name: str
    source: Any
    answers: bool

    @property
    def shots(self) -> int:
        """How many solved examples stand before each item."""
        return self.source.config.num_fewshot or 0

    def items(self, limit: int | None) -> int:
        """How many items are asked: all, or the first `limit`."""
        return len(self.source.eval_docs) if limit is None else min(limit, len(self.source.eval_docs))


def is_file(name: str) -> bool:
    """Whether a task of that name is a file's; lm-eval's names have no suffix and no folder."""
    return name.endswith(_FILE_SUFFIXES) or "/" in name or os.sep in name


def load_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks with their data, in the order of `names`; a group of lm-eval's gives each of its tasks.

    Raises:
        TaskNotFound: a name is unknown, or its task cannot be asked of a language model alone, or a file is wrong.
        HubUnreachable: a task's data is the Hub's, which does not answer.
    """
    loaded = [task for name in names for task in ([_from_file(name)] if is_file(name) else _by_name(name))]
    return list({task.name: task for task in loaded}.values())


_Text = Annotated[str, Field(min_length=1)]


class _Row(BaseModel):
    """A line of a file. Fields that no form has, such as an id, are left alone."""

    model_config = ConfigDict(frozen=True, strict=True)

    def document(self) -> dict[str, Any]:
        """What lm-eval's task sees of it."""
        return self.model_dump()


class _Chosen(_Row):
    options: ClassVar[str]
    gold: int = Field(ge=0)

    @model_validator(mode="after")
    def _gold_is_an_option(self) -> Self:
        count = len(getattr(self, self.options))
        if self.gold >= count:
            raise ValueError(f"gold is {self.gold}, but {self.options} has {count} entries, counted from 0")
        return self


class _Choices(_Chosen):
    options = "choices"
    query: _Text
    choices: list[_Text] = Field(min_length=2)


class _Contexts(_Chosen):
    options = "context_options"
    context_options: list[_Text] = Field(min_length=2)
    continuation: _Text


class _Answer(_Row):
    question: _Text
    answer: _Text

    def document(self) -> dict[str, Any]:
        return {"prompt": f"Question: {self.question}\nAnswer:", "answer": f" {self.answer}"}


class _Instruction(_Row):
    instruction: _Text
    input: str = ""
    output: str

    def document(self) -> dict[str, Any]:
        given = f"### Input:\n{self.input}\n\n" if self.input else ""
        prompt = f"### Instruction:\n{self.instruction}\n\n{given}### Response:"
        return {"prompt": prompt, "answer": f"\n{self.output}"}


def _config(metrics: Mapping[str, str], **fields: str) -> dict[str, Any]:
    """A task's config in lm-eval's terms. metrics: how each is put together; fields: what names a document's keys."""
    listed = [{"metric": name, "aggregation": how, "higher_is_better": how == "mean"} for name, how in metrics.items()]
    return {"num_fewshot": 0, "test_split": "test", "metric_list": listed, **fields}


_ANSWERS = _config(
    {"perplexity": "perplexity", "acc": "mean"},
    output_type="loglikelihood",
    doc_to_text="prompt",
    doc_to_target="answer",
)
_FORMS: dict[type[_Row], dict[str, Any]] = {
    _Choices: _config(
        {"acc": "mean", "acc_norm": "mean"},
        output_type="multiple_choice",
        doc_to_text="query",
        doc_to_choice="choices",
        doc_to_target="gold",
    ),
    # As lm-eval's own winogrande: the text is the number of the right context, the target what follows all of them.
    _Contexts: _config(
        {"acc": "mean"},
        output_type="multiple_choice",
        doc_to_text="gold",
        doc_to_choice="context_options",
        doc_to_target="continuation",
    ),
    _Answer: _ANSWERS,
    _Instruction: _ANSWERS,
}


def _from_file(name: str) -> Task:
    """The task that a file holds; lm-eval builds it from a config as it builds its own."""
    documents, form = _read(Path(name))
    _quieten()
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = {"test": Dataset.from_list(documents)}
    source = ConfigurableTask(config=deepcopy(_FORMS[form]) | {"task": name, "custom_dataset": lambda **_: rows})
    return Task(name, source, answers=_FORMS[form] is _ANSWERS)


def _read(file: Path) -> tuple[list[dict[str, Any]], type[_Row]]:
    """The file's rows as documents, and the form that all of them have."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TaskNotFound(f"the task file {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise TaskNotFound(f"the task file {file} is not UTF-8 text.") from None
    form: type[_Row] | None = None
    documents = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            form = form or _form_of(entry)
            documents.append(form.model_validate(entry).document())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            said = ": ".join(filter(None, (where, first["msg"].removeprefix("Value error, "))))
            raise TaskNotFound(f"line {number} of the task file {file}: {said}.") from None
        except ValueError as error:
            raise TaskNotFound(f"line {number} of the task file {file}: {error}.") from None
    if form is None:
        raise TaskNotFound(f"the task file {file} holds no item.")
    return documents, form


def _form_of(entry: object) -> type[_Row]:
    """The form that has this entry's keys; `gold` may be missing, which is then said. Raises ValueError."""
    keys = set(entry) if isinstance(entry, dict) else set()
    for form in _FORMS:
        required = {name for name, field in form.model_fields.items() if field.is_required()}
        if required - {"gold"} <= keys:
            return form
    forms = "; ".join(", ".join(form.model_fields) for form in _FORMS)
    raise ValueError(f"no form of task has the keys {', '.join(sorted(map(str, keys))) or '(none)'}; known are {forms}")


def _by_name(name: str) -> list[Task]:
    """lm-eval's task of that name, or each task of its group, with its data from the Hub or the cache."""
    _quieten()
    from lm_eval.tasks import TaskManager

    described = _description(name)
    # The whole index, for groups and the like, is thousands of files, which take lm-eval ten seconds.
    known = TaskManager(include_defaults=described is None)
    if described is None and name not in known.task_index:
        raise TaskNotFound(
            f"lm-eval knows no task {name!r}; a task of your own is a .jsonl file, on the command line alone."
        )
    try:
        sources = known.load([name if described is None else str(described)])["tasks"]
    except Exception as error:  # the tasks run code of their own to set themselves up
        raise _explained(error, name) from None
    for source in sources.values():
        if source.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood", "generate_until"):
            raise TaskNotFound(f"the task {name!r} is of the kind {source.OUTPUT_TYPE}, which is not supported.")
        if getattr(source, "MULTIMODAL", False) or getattr(source, "UNSAFE_CODE", False):
            raise TaskNotFound(f"the task {name!r} needs pictures, sound or running what a model wrote: refused.")
        source.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return [Task(own, source, answers=False) for own, source in sources.items()]


def _description(name: str) -> Path | None:
    """The one file of lm-eval's that describes this one task; None if it is a group, or takes more than a look."""
    import lm_eval.tasks

    line = re.compile(rf"^task: *{re.escape(name)} *$", re.MULTILINE)
    texts = {file: file.read_text(encoding="utf-8") for file in Path(lm_eval.tasks.__file__).parent.glob("**/*.yaml")}
    found = [file for file, text in texts.items() if line.search(text)]
    return found[0] if len(found) == 1 and "\ngroup:" not in f"\n{texts[found[0]]}" else None


def _quieten() -> None:
    """Before lm-eval comes in: it warns of what is meant here, and its metrics must not fetch code from the Hub."""
    os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
    for logger in ("lm_eval", "huggingface_hub"):  # the Hub's client warns of each time it tries again
        logging.getLogger(logger).setLevel(logging.ERROR)


def _explained(error: Exception, name: str) -> FlattenGPTError:
    """Why a task could not be set up. The error's own text is left out: it may hold request data."""
    kind = type(error).__name__
    if isinstance(error, ImportError):
        return TaskNotFound(f"the task {name!r} needs a package that is not installed ({error.name}).")
    if isinstance(error, ConnectionError | HfHubHTTPError):
        return HubUnreachable(
            f"The data of the task {name!r} cannot be loaded from the Hugging Face Hub ({kind}): check the network and "
            "HF_ENDPOINT, or give a .jsonl file of your own on the command line.",
            field=FIELD,
        )
    return TaskNotFound(
        f"lm-eval cannot set up the task {name!r} ({kind}): its data is gone or gated, or it needs code from the Hub, "
        "which is never run."
    )
