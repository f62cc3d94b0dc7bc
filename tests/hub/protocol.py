"""The Hugging Face Hub's HTTP protocol as its Python client speaks it, over a `Hub`'s state.

Models only, and the storage of their large files, by Xet and by git-lfs. It lives at another host name than the Hub,
as on the real one, so that a token sent there shows.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

from tests.hub.repositories import DATE, Commit, ParentMoved, Repository, file_oid, is_large, new_repository
from tests.hub.state import NAMESPACE, READ_TOKEN, WRITE_TOKEN, XET_TOKEN, Break, Hub, Seen


class Refused(Exception):
    """Ends a request as the Hub refuses one: a status, its error code and its message."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


def make_app(hub: Hub) -> FastAPI:
    """The protocol, over what `hub` holds."""
    app = FastAPI()

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
        return JSONResponse({"error": error.message}, error.status, headers)

    @app.middleware("http")
    async def watched(request: Request, call_next: Any) -> Response:
        headers = request.headers
        seen = Seen(request.method, headers["host"], request.url.path, headers.get("authorization"))
        hub.seen.append(seen)
        fault = hub.take_fault(f"{seen.method} {seen.path}")
        moved = next((old for old in hub.renamed if f"/{old}" in seen.path), None)
        if moved is not None:
            return RedirectResponse(seen.path.replace(moved, hub.renamed[moved]), 307)
        if fault is None:
            return await call_next(request)
        match fault.answer:
            case Break.SILENCE:
                await silence()
            case Break.UNANSWERED:
                await call_next(request)
                await silence()
            case Break.NONE:
                return await call_next(request)
            case Break.HELD:
                while not (hub.released or hub.closing):
                    await asyncio.sleep(0.02)
                return await call_next(request)
            case Break.CUT_UPLOAD:
                pass
            case _:
                await request.body()
        if isinstance(fault.answer, Break):
            return StreamingResponse(_cut(), headers={"content-length": "1000"})
        return JSONResponse({"error": fault.message}, fault.answer, fault.headers)

    async def silence() -> None:
        while not hub.closing:
            await asyncio.sleep(0.05)

    async def _cut() -> AsyncIterator[bytes]:
        yield b"{"
        raise ConnectionAbortedError

    @app.post("/api/repos/create")
    async def create(request: Request) -> dict[str, str]:
        asked = await request.json()
        repo_id = f"{asked['organization'] or NAMESPACE}/{asked['name']}"
        may_write(request, repo_id)
        if repo_id in hub.repositories:
            raise Refused(409, "You already created this model repo")
        hub.repositories[repo_id] = new_repository(repo_id, private=asked.get("visibility") == "private")
        return {"url": f"{hub.endpoint}/{repo_id}"}

    @app.get("/api/models/{owner}/{name}")
    @app.get("/api/models/{owner}/{name}/revision/{revision:path}")
    @app.get("/api/datasets/{owner}/{name}")
    @app.get("/api/datasets/{owner}/{name}/revision/{revision:path}")
    async def info(request: Request, owner: str, name: str, revision: str = "main") -> dict[str, Any]:
        repository, commit = at(request, owner, name, revision)
        return {
            "id": repository.id,
            "sha": commit.id,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "cardData": _card_data(commit),
            "siblings": [_sibling(path, content) for path, content in commit.files.items()],
        }

    @app.get("/api/models/{owner}/{name}/commits/{revision:path}")
    async def commits(request: Request, owner: str, name: str, revision: str) -> list[dict[str, Any]]:
        repository, _ = at(request, owner, name, revision)
        newest_first = reversed(repository.commits)
        return [
            {"id": commit.id, "title": commit.title, "message": "", "date": DATE, "authors": [{"user": owner}]}
            for commit in newest_first
        ]

    @app.get("/api/models/{owner}/{name}/tree/{revision:path}")
    @app.get("/api/datasets/{owner}/{name}/tree/{revision}")
    @app.get("/api/datasets/{owner}/{name}/tree/{revision}/{folder:path}")
    async def tree(request: Request, owner: str, name: str, revision: str) -> list[dict[str, Any]]:
        _, commit = at(request, owner, name, revision)
        return [_tree_entry(path, content) for path, content in commit.files.items()]

    @app.post("/api/validate-yaml")
    async def validate_yaml() -> dict[str, list[str]]:
        return {"errors": [], "warnings": []}

    @app.post("/api/models/{owner}/{name}/preupload/{revision:path}")
    async def preupload(request: Request, owner: str, name: str, revision: str) -> dict[str, Any]:
        may_write(request, f"{owner}/{name}")
        _, commit = at(request, owner, name, revision)
        return {
            "files": [
                {
                    "path": path,
                    "uploadMode": "lfs" if is_large(path) else "regular",
                    "shouldIgnore": False,
                    "oid": file_oid(path, commit.files[path]) if path in commit.files else None,
                }
                for path in (file["path"] for file in (await request.json())["files"])
            ]
        }

    @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request, owner: str, name: str) -> dict[str, Any]:
        may_write(request, f"{owner}/{name}")
        wanted = (await request.json())["objects"]
        return {"transfer": "basic", "objects": [_upload_action(hub, owner, name, one) for one in wanted]}

    @app.get("/api/models/{owner}/{name}/xet-write-token/{revision:path}")
    async def xet_token(request: Request, owner: str, name: str) -> dict[str, Any]:
        may_write(request, f"{owner}/{name}")
        return {"casUrl": hub.xet_url, "accessToken": XET_TOKEN, "exp": int(time.time()) + 3600}

    @app.get("/storage/xet/{_}/v1/chunks/{path:path}")
    async def known_chunks(path: str) -> Response:
        return Response(status_code=404)

    @app.post("/storage/xet/{_}/v1/xorbs/default/{name}")
    async def xorb(request: Request, name: str) -> dict[str, bool]:
        body = await request.body()
        hub.uploaded.append(len(body))
        hub.xet.put_xorb(name, body)
        return {"was_inserted": True}

    @app.post("/storage/xet/{_}/v1/shards")
    async def shard(request: Request) -> dict[str, int]:
        for content in hub.xet.files(await request.body()):
            hub.storage[hashlib.sha256(content).hexdigest()] = content
        return {"result": 1}

    @app.put("/storage/{oid}")
    async def store(request: Request, oid: str) -> Response:
        hub.storage[oid] = await request.body()
        hub.uploaded.append(len(hub.storage[oid]))
        return Response()

    @app.get("/storage/{oid}")
    async def stored(oid: str) -> Response:
        return Response(hub.storage[oid], media_type="application/octet-stream")

    @app.post("/{owner}/{name}.git/info/lfs/objects/verify")
    async def verify(request: Request, owner: str, name: str) -> dict[str, str]:
        may_write(request, f"{owner}/{name}")
        claimed = await request.json()
        if len(hub.storage[claimed["oid"]]) != claimed["size"]:
            raise Refused(422, "the size differs")
        return {}

    @app.post("/api/models/{owner}/{name}/commit/{revision:path}")
    async def commit(request: Request, owner: str, name: str, revision: str) -> dict[str, str]:
        may_write(request, f"{owner}/{name}")
        repository, _ = at(request, owner, name, revision)
        try:
            made = repository.commit(await request.body(), hub.storage)
        except ParentMoved:
            raise Refused(412, "A commit has happened since. Please refresh and try again.") from None
        return {"commitUrl": f"{hub.endpoint}/{repository.id}/commit/{made.id}", "commitOid": made.id}

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    @app.api_route("/datasets/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(request: Request, owner: str, name: str, revision: str, path: str) -> Response:
        repository, commit = at(request, owner, name, revision)
        if repository.gated and request.headers.get("authorization") is None:
            raise Refused(401, f"Access to model {repository.id} is restricted.", "GatedRepo")
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        oid = file_oid(path, content)
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{oid}"'}
        if not is_large(path):
            return Response(content, headers=headers)
        hub.storage[oid] = content
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        return RedirectResponse(f"{hub.storage_url}/{oid}", 302, headers | linked)

    def at(request: Request, owner: str, name: str, revision: str) -> tuple[Repository, Commit]:
        known(request)
        repository = hub.repositories.get(f"{owner}/{name}")
        if repository is None or (repository.private and request.headers.get("authorization") is None):
            signed = request.headers.get("authorization") is not None
            raise Refused(404 if signed else 401, "Repository not found", "RepoNotFound")
        commit = repository.at(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, commit

    def known(request: Request) -> str | None:
        """The request's token, if it has one that the hub knows."""
        authorization = request.headers.get("authorization")
        token = authorization.removeprefix("Bearer ") if authorization else None
        if token not in (None, READ_TOKEN, WRITE_TOKEN):
            raise Refused(401, "Invalid credentials in Authorization header")
        return token

    def may_write(request: Request, repo_id: str) -> None:
        if known(request) != WRITE_TOKEN or not repo_id.startswith(f"{NAMESPACE}/"):
            raise Refused(403, f"You don't have the rights to write to {repo_id}")

    return app


def _card_data(commit: Commit) -> dict[str, Any]:
    """The metadata at the head of the card."""
    parts = commit.files.get("README.md", b"").split(b"---\n")
    return yaml.safe_load(parts[1]) if len(parts) > 2 else {}


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    entry = _tree_entry(path, content)
    lfs = {"lfs": {"sha256": file_oid(path, content), "size": len(content), "pointerSize": 134}}
    return {"rfilename": path, "size": len(content), "blobId": entry["oid"]} | (lfs if is_large(path) else {})


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    oid = file_oid(path, content)
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid[:40]}
    return entry | ({"lfs": {"oid": oid, "size": len(content), "pointerSize": 134}} if is_large(path) else {})


def _upload_action(hub: Hub, owner: str, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Where to put a large file, and how to confirm it; nothing for one that is there."""
    if wanted["oid"] in hub.storage:
        return wanted
    verify = f"{hub.endpoint}/{owner}/{name}.git/info/lfs/objects/verify"
    return wanted | {"actions": {"upload": {"href": f"{hub.storage_url}/{wanted['oid']}"}, "verify": {"href": verify}}}
