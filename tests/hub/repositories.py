"""Model repositories as the Hub keeps them, in memory: commits that hold files, plain or in large-file storage."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
DATE = "2026-01-01T00:00:00.000Z"


def is_large(path: str) -> bool:
    """Whether the Hub wants the file in large-file storage."""
    return path.endswith((".safetensors", ".bin"))


def file_oid(path: str, content: bytes) -> str:
    """What the Hub compares a file by: SHA-256 if it is large, else git's own hash."""
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """id: 40 hexadecimal digits."""

    id: str
    title: str
    files: dict[str, bytes]


class ParentMoved(Exception):
    """The branch is not where the committer believes it to be."""


@dataclass
class Repository:
    """A model repository with one branch, `main`. `tags` names commits."""

    id: str
    private: bool
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, tag or id names."""
        wanted = self.head.id if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.id == wanted), None)

    def add(self, title: str, files: dict[str, bytes]) -> Commit:
        """Commit these files as all that the repository holds."""
        names = [f"{path}:{file_oid(path, content)}" for path, content in sorted(files.items())]
        seed = "\n".join([*(commit.id for commit in self.commits), title, *names])
        self.commits.append(Commit(hashlib.sha1(seed.encode()).hexdigest(), title, files))
        return self.head

    def commit(self, lines: bytes, large: dict[str, bytes]) -> Commit:
        """Apply a commit as the client sends it, one JSON object a line; `large` is the storage by SHA-256."""
        header: dict[str, Any] = {}
        files = dict(self.head.files)
        for line in lines.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        if header.get("parentCommit") not in (None, self.head.id):
            raise ParentMoved
        return self.add(header["summary"], files)


def new_repository(repo_id: str, *, private: bool) -> Repository:
    """A repository as the Hub makes it: one commit with .gitattributes."""
    made = Repository(repo_id, private)
    made.add("initial commit", {".gitattributes": GIT_ATTRIBUTES})
    return made
