"""A Hub on 127.0.0.1, for the genuine client: what it answers, whom it refuses, and how it fails when it is told to.

It speaks the part of the Hub's API that pushing, looking and downloading take, by both upload protocols (LFS and Xet).
What the real Hub is reported to refuse, it refuses: a local path as the base model of a card, a token in a file.
"""

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub.storage import LFS_SUFFIXES, Refused, Repository, Storage, StoredFile, apply_commit

API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
GIT = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
# By method and path; the first that matches answers.
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"{GIT}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/object/(?P<sha256>\w+)", "lfs_put"),
    ("PUT", r"/lfs/part/(?P<sha256>\w+)/(?P<number>\d+)", "lfs_part"),
    ("POST", r"/lfs/complete/(?P<sha256>\w+)", "lfs_complete"),
    ("POST", r"/lfs/verify", "lfs_verify"),
    ("GET", rf"{API}(?:/revision/{REVISION})?", "repo_info"),
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<folder>.*))?", "tree"),
    ("POST", rf"{API}/paths-info/{REVISION}", "paths_info"),
    ("GET", rf"{API}/refs", "refs"),
    ("GET", rf"{API}/commits/{REVISION}", "list_commits"),
    ("GET", rf"{API}/auth-check(?P<write>/write)?", "auth_check"),
    ("GET", rf"{API}/xet-(?P<role>read|write)-token/{REVISION}", "xet_token"),
    ("PUT", rf"{API}/settings", "settings"),
    ("POST", rf"{API}/branch/(?P<name>.+)", "branch"),
    ("POST", rf"{API}/tag/{REVISION}", "tag"),
    ("POST", rf"{API}/preupload/{REVISION}", "preupload"),
    ("POST", rf"{API}/commit/{REVISION}", "commit"),
    ("GET|HEAD", rf"{GIT}/resolve/{REVISION}/(?P<name>.+)", "resolve"),
]
NOT_FOUND = "Repository not found"
HUB_ID = r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}"


@dataclass
class Token:
    """Whose it is, and what it allows: `write`, `read`, or a fine-grained one to write where `scopes` say."""

    user: str
    role: str = "write"
    scopes: list[dict] = field(default_factory=list)

    def may_write(self, repository: str) -> bool:
        owner = repository.partition("/")[0]
        return self.role == "write" or any(
            scope["entity"]["name"] in (owner, repository) and "repo.write" in scope["permissions"]
            for scope in self.scopes
        )


@dataclass
class Request:
    """A request, and the status of its answer: 0 when there was none."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    status: int = 0

    def json(self) -> dict:
        return json.loads(self.body or b"{}")


@dataclass
class Answer:
    status: int = 200
    content: bytes | dict | list = b""
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> tuple[bytes, dict[str, str]]:
        data = self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()
        kind = "application/octet-stream" if isinstance(self.content, bytes) else "application/json"
        return data, {"Content-Type": kind, "Content-Length": str(len(data)), **self.headers}


@dataclass
class Fault:
    """What is to go wrong.

    Args:
        method: Of the requests that it befalls; `*` is any.
        path: A pattern that their path holds.
        how: A status, `drop` (the connection is closed), `stall` (nothing is said), `cut` (half an answer), or `drip`
            (a byte of it every tenth of a second).
        times: How many requests it befalls.
        skip: How many go well before.
        after: What was asked is done first, and only its answer is lost.
        headers: Of the answer.
        body: Of the answer: JSON, or text as a proxy on the way would send it.
    """

    method: str
    path: str
    how: int | str = 503
    times: int = 1
    skip: int = 0
    after: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    body: dict | str | None = None

    def befalls(self, request: Request) -> bool:
        if self.method not in ("*", request.method) or not re.search(self.path, request.path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return self.times >= 0


class LoopbackHub:
    """A Hub that serves while it is entered as a context.

    `me` owns repositories and may write to those of the organisation `lab`; of `library` they are a reader.

    Args:
        folder: Empty, for the Xet store.
        part_size: Files that are larger are uploaded in parts of this size by the LFS protocol.
    """

    def __init__(self, folder: Path, part_size: int = 10**9):
        self.tokens = {"hf_write": Token("me"), "hf_read": Token("me", "read"), "hf_other": Token("somebody")}
        self.organisations = {"lab": {"me": "write"}, "library": {"me": "read"}}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.storage, self.part_size = Storage(folder), part_size
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock, self.closing = threading.RLock(), threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    # For tests

    def fail(self, method: str, path: str, how: int | str = 503, **options) -> Fault:
        self.faults.append(Fault(method, path, how, **options))
        return self.faults[-1]

    def add(self, repo: str, private: bool = True, kind: str = "models") -> Repository:
        return self.repositories.setdefault((kind, repo), Repository(kind, repo, private))

    def repository(self, repo: str, kind: str = "models") -> Repository:
        return self.repositories[kind, repo]

    def requests(self, path: str, method: str = "") -> list[Request]:
        """Return those whose path holds a pattern, oldest first."""
        return [seen for seen in self.log if re.search(path, seen.path) and method in ("", seen.method)]

    def content(self, repo: str, path: str, kind: str = "models") -> bytes:
        """Return a file that was pushed; not one of the Xet store."""
        file = self.repository(repo, kind).head().files[path]
        return self.storage.objects[file.sha256] if file.sha256 else file.data

    # Answers

    def answer(self, request: Request) -> Answer:
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and request.method in method.split("|"):
                groups = {key: value and unquote(value) for key, value in match.groupdict().items()}
                if "repo" in groups:
                    groups["kind"] = groups["kind"] or "models"
                if groups.get("revision") is None and "revision" in groups:
                    groups["revision"] = "main"
                with self.lock:
                    return getattr(self, name)(request, **groups)
        # Ids of one word are those of the first models; there are none here.
        known = re.match(r"/(?:api/models/)?[\w.-]+(?:/resolve/|$)", request.path)
        raise Refused(404 if self.token(request) else 401, NOT_FOUND, "RepoNotFound" if known else None)

    def token(self, request: Request) -> Token | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if given and given not in self.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.tokens.get(given)

    def readable(self, request: Request, kind: str, repo: str) -> Repository:
        token, found = self.token(request), self.repositories.get((kind, repo))
        member = token and found and (token.user == found.owner or token.user in self.members(found.owner))
        if found is None or (found.private and not member):
            raise Refused(404 if token else 401, NOT_FOUND, "RepoNotFound")
        return found

    def members(self, owner: str) -> dict[str, str]:
        return self.organisations.get(owner, {})

    def check_rights(self, request: Request, repo: str) -> None:
        token, owner = self.token(request), repo.partition("/")[0]
        if token is None:
            raise Refused(401, "Invalid username or password.")
        if (token.user != owner and self.members(owner).get(token.user) != "write") or not token.may_write(repo):
            raise Refused(403, "You don't have the rights to create or write to a repository in this namespace")

    def writable(self, request: Request, kind: str, repo: str) -> Repository:
        found = self.readable(request, kind, repo)
        self.check_rights(request, repo)
        return found

    def whoami(self, request):
        token = self.token(request)
        if token is None:
            raise Refused(401, "Invalid username or password.")
        access = {"displayName": "a token", "role": token.role}
        if token.role == "fineGrained":
            access["fineGrained"] = {"global": [], "scoped": token.scopes}
        orgs = [{"type": "org", "name": name, "roleInOrg": members[token.user]}
                for name, members in self.organisations.items() if token.user in members]  # fmt: skip
        auth = {"type": "access_token", "accessToken": access}
        return Answer(content={"type": "user", "name": token.user, "orgs": orgs, "auth": auth})

    def create(self, request):
        asked = request.json()
        token = self.token(request)
        repo = f"{asked.get('organization') or (token and token.user)}/{asked['name']}"
        self.check_rights(request, repo)
        kind = f"{asked.get('type') or 'model'}s"
        url = f"{self.url}/{'' if kind == 'models' else f'{kind}/'}{repo}"
        if (kind, repo) in self.repositories:
            message = f"You already created this {kind.removesuffix('s')} repo"
            raise Refused(409, message, body={"error": message, "url": url})
        self.add(repo, asked.get("visibility") == "private", kind)  # public, unless asked otherwise
        return Answer(content={"url": url, "name": repo, "id": "0" * 24})

    def validate_yaml(self, request):
        match = re.match(r"---\s*\n(.*?)\n---", request.json()["content"], re.S)
        meta = (yaml.safe_load(match[1]) if match else None) or {}
        for key in ("base_model", "datasets"):
            values = meta.get(key) if isinstance(meta.get(key), list) else [meta.get(key)]
            for value in (value for value in values if value is not None):
                if not re.fullmatch(HUB_ID, str(value)):
                    message = f'"{key}" with value "{value}" is not valid. Use an id from https://hf.co.'
                    errors = {"error": "Invalid metadata", "errors": [{"message": message}], "warnings": []}
                    raise Refused(400, message, body=errors)
        return Answer(content={"errors": [], "warnings": []})

    def repo_info(self, request, kind, repo, revision):
        found = self.readable(request, kind, repo)
        commit = found.find(revision)
        content = {"id": repo, "author": found.owner, "sha": commit.id, "private": found.private, "tags": [],
                   "gated": False, "disabled": False, "downloads": 0, "likes": 0,
                   "siblings": [{"rfilename": path} for path in sorted(commit.files)]}  # fmt: skip
        return Answer(content=content)

    def tree(self, request, kind, repo, revision, folder):
        files = self.readable(request, kind, repo).find(revision).files
        start = f"{folder}/" if folder else ""
        deep = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        inside = sorted(path for path in files if path.startswith(start))
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        folders = {path[: path.index("/", len(start))] for path in inside if "/" in path[len(start) :]}
        shown = [path for path in inside if deep or "/" not in path[len(start) :]]
        content = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        return Answer(content=content + [files[path].describe(path) for path in shown])

    def paths_info(self, request, kind, repo, revision):
        files = self.readable(request, kind, repo).find(revision).files
        asked = parse_qs(request.body.decode())["paths"]
        return Answer(content=[files[path].describe(path) for path in asked if path in files])

    def refs(self, request, kind, repo):
        found = self.readable(request, kind, repo)

        def listed(names, prefix):
            return [
                {"name": name, "ref": f"refs/{prefix}/{name}", "targetCommit": commit}
                for name, commit in names.items()
            ]

        content = {"branches": listed(found.branches, "heads"), "tags": listed(found.tags, "tags"), "converts": []}
        return Answer(content=content)

    def list_commits(self, request, kind, repo, revision):
        found = self.readable(request, kind, repo)
        commit, content = found.find(revision), []
        while commit:
            date = "2026-01-01T00:00:00.000Z"
            content.append({"id": commit.id, "title": commit.title, "message": "", "date": date, "authors": []})
            commit = found.commits.get(commit.parent)
        return Answer(content=content)

    def auth_check(self, request, kind, repo, write):
        (self.writable if write else self.readable)(request, kind, repo)
        return Answer(content={})

    def settings(self, request, kind, repo):
        found = self.writable(request, kind, repo)
        found.private = request.json()["visibility"] == "private"
        return Answer(content={"private": found.private})

    def branch(self, request, kind, repo, name):
        found = self.writable(request, kind, repo)
        if name in found.branches:
            raise Refused(409, f"Reference already exists: {name}")
        found.branches[name] = found.find(request.json().get("startingPoint") or "main").id
        return Answer(content={})

    def tag(self, request, kind, repo, revision):
        found = self.writable(request, kind, repo)
        found.tags[request.json()["tag"]] = found.find(revision).id
        return Answer(content={})

    def preupload(self, request, kind, repo, revision):
        stored = self.writable(request, kind, repo).find(revision).files
        content = []
        for file in request.json()["files"]:
            large = file["size"] > 10**7 or file["path"].endswith(LFS_SUFFIXES)
            known = stored.get(file["path"])
            oid = known and (known.sha256 or known.oid)
            mode = "lfs" if large else "regular"
            content.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Answer(content={"files": content})

    def commit(self, request, kind, repo, revision):
        found = self.writable(request, kind, repo)
        if revision not in found.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header, files = apply_commit(found, self.storage, revision, request.body)
        for path, file in files.items():
            data = file.data if file.sha256 is None else self.storage.objects.get(file.sha256, b"")
            if any(token.encode() in data for token in self.tokens):  # the real one scans for tokens that are valid
                what = "one or more of your files contain valid Hugging Face secrets, such as tokens or API keys"
                raise Refused(400, f"It appears that {what}: {path}")
        made = found.commit(revision, header["summary"], files)
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{self.url}/{prefix}{repo}/commit/{made.id}"
        return Answer(content={"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})

    # Large files

    def xet_token(self, request, kind, repo, role, revision):
        (self.writable if role == "write" else self.readable)(request, kind, repo)
        ends, url = int(time.time()) + 3600, f"local://{self.storage.xet_folder}"
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(ends)}
        return Answer(content={"casUrl": url, "accessToken": "x", "exp": ends}, headers=headers)

    def lfs_batch(self, request, kind, repo):
        self.writable(request, kind, repo)
        objects = []
        for asked in request.json()["objects"]:
            sha256, size = asked["oid"], asked["size"]
            entry = {"oid": sha256, "size": size}
            if sha256 not in self.storage.objects and size > self.part_size:
                count = -(-size // self.part_size)
                parts = {str(i): f"{self.url}/lfs/part/{sha256}/{i}" for i in range(1, count + 1)}
                header = {"chunk_size": str(self.part_size), **parts}
                entry["actions"] = {"upload": {"href": f"{self.url}/lfs/complete/{sha256}", "header": header}}
            elif sha256 not in self.storage.objects:
                upload = {"href": f"{self.url}/lfs/object/{sha256}", "header": {}}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/lfs/verify", "header": {}}}
            objects.append(entry)
        several = any(
            "chunk_size" in entry.get("actions", {}).get("upload", {}).get("header", {}) for entry in objects
        )
        return Answer(content={"transfer": "multipart" if several else "basic", "objects": objects})

    def lfs_put(self, request, sha256):
        self.storage.put(sha256, request.body)
        return Answer()

    def lfs_part(self, request, sha256, number):
        self.storage.parts[sha256, int(number)] = request.body
        return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    def lfs_complete(self, request, sha256):
        self.storage.complete(sha256)
        return Answer(content={})

    def lfs_verify(self, request):
        asked = request.json()
        if len(self.storage.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "the object is missing")
        return Answer(content={})

    def resolve(self, request, kind, repo, revision, name):
        commit = self.readable(request, kind, repo).find(revision)
        file = commit.files.get(name)
        if file is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.sha256 or file.oid}"', "Accept-Ranges": "bytes"}
        if file.sha256:
            headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        if file.xet_hash:
            route = f"{self.url}/api/{kind}/{repo}/xet-read-token/{commit.id}"
            headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{route}>; rel="xet-auth"'}
        if request.method == "HEAD":
            return Answer(headers=headers | {"Content-Length": str(file.size)})
        return self.download(request, file, headers)

    def download(self, request: Request, file: StoredFile, headers: dict[str, str]) -> Answer:
        if file.xet_hash:
            raise Refused(501, "only the Xet protocol serves this file")
        data = self.storage.objects[file.sha256] if file.sha256 else file.data
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if not asked:
            return Answer(200, data, headers)
        first, last = int(asked[1]), int(asked[2] or len(data) - 1)
        if first >= len(data):
            return Answer(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
        last = min(last, len(data) - 1)
        return Answer(206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})


class _Handler(BaseHTTPRequestHandler):
    """HTTP: reads a request, lets the Hub answer, and does what a fault says."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *arguments):
        pass

    def serve(self):
        address = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, address.path, parse_qs(address.query), headers, self.read_body(headers))
        with self.hub.lock:
            self.hub.log.append(request)
            fault = next((fault for fault in self.hub.faults if fault.befalls(request)), None)
        answer = self.answer(request) if fault is None or fault.after or fault.how in ("cut", "drip") else Answer()
        if fault is None:
            return self.send(request, answer)
        if fault.how == "stall":
            self.hub.closing.wait(60)
        if fault.how == "cut":
            return self.send(request, answer, cut=True)
        if fault.how == "drip":
            return self.send(request, answer, drip=True)
        if isinstance(fault.how, int):
            content = {"error": f"injected {fault.how}"} if fault.body is None else fault.body
            content = content.encode() if isinstance(content, str) else content
            return self.send(request, Answer(fault.how, content, fault.headers))
        self.close_connection = True
        return None

    def read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, request: Request) -> Answer:
        try:
            return self.hub.answer(request)
        except Refused as refused:
            headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
            return Answer(refused.status, refused.body, headers)

    def send(self, request: Request, answer: Answer, cut: bool = False, drip: bool = False) -> None:
        request.status = answer.status
        data, headers = answer.encoded()
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if drip:
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.hub.closing.wait(0.1)
        elif self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815
