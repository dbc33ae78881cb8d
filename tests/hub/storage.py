"""What a Hub keeps: repositories with commits and branches, LFS objects, and files that lie in a Xet store."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".arrow", ".zip", ".gz", ".h5", ".npz", ".png")


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """A request is answered by a status that is no success.

    Args:
        status: Of HTTP.
        message: `X-Error-Message`, which the client shows.
        code: `X-Error-Code`, by which the client chooses its exception.
        body: The JSON of the answer; the message when None.
    """

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.body = body or {"error": message}


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class StoredFile:
    """A file of a commit: either its bytes, or an LFS pointer to an object, which may lie in the Xet store."""

    size: int
    oid: str  # of git
    data: bytes | None = None
    sha256: str | None = None
    xet_hash: str | None = None

    @classmethod
    def regular(cls, data: bytes) -> "StoredFile":
        return cls(len(data), git_sha1(data), data=data)

    @classmethod
    def pointer(cls, sha256: str, size: int, xet_hash: str | None = None) -> "StoredFile":
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(size, git_sha1(text.encode()), sha256=sha256, xet_hash=xet_hash)

    def describe(self, path: str) -> dict:
        """Return what `tree` and `paths-info` say of it."""
        found = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.sha256:
            found["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        if self.xet_hash:
            found["xetHash"] = self.xet_hash
        return found


@dataclass
class Commit:
    id: str
    parent: str | None
    title: str
    files: dict[str, StoredFile]


@dataclass
class Repository:
    """A repository of one kind (`models`, `datasets`, `spaces`) with its history."""

    kind: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", "initial commit", {".gitattributes": StoredFile.regular(b"*.safetensors filter=lfs\n")})

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    def head(self, branch: str = "main") -> Commit:
        return self.commits[self.branches[branch]]

    def find(self, revision: str) -> Commit:
        """Return the commit of a branch, a tag or a hash."""
        name = self.branches.get(revision) or self.tags.get(revision) or revision
        hits = [commit for commit in self.commits.values() if commit.id.startswith(name)]
        if len(hits) != 1 or not re.fullmatch(r"[0-9a-f]{7,40}", name):
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return hits[0]

    def commit(self, branch: str, title: str, files: dict[str, StoredFile]) -> Commit:
        parent = self.branches.get(branch)
        content = [parent, title, len(self.commits), sorted((path, file.oid) for path, file in files.items())]
        made = Commit(hashlib.sha1(json.dumps(content).encode()).hexdigest(), parent, title, files)
        self.commits[made.id] = made
        self.branches[branch] = made.id
        return made


class Storage:
    """The contents of large files, from the LFS protocol and from the Xet one.

    Args:
        folder: Empty. To the Rust client `local://<folder>` is a Xet server; it writes its chunks and tables there.
    """

    def __init__(self, folder: Path):
        self.xet_folder = folder
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}

    def find(self, sha256: str, size: int) -> StoredFile:
        """Return a pointer to what was uploaded before, by either protocol."""
        if sha256 in self.objects:
            return StoredFile.pointer(sha256, len(self.objects[sha256]))
        if xet_hash := self.xet_hashes().get(sha256):
            return StoredFile.pointer(sha256, size, xet_hash)
        raise Refused(400, f"LFS pointer pointed to a file that does not exist: {sha256}")

    def put(self, sha256: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Refused(400, "the sha256 is of other data")
        self.objects[sha256] = data

    def complete(self, sha256: str) -> None:
        """Put the parts of a multipart upload together."""
        numbers = sorted(number for of, number in self.parts if of == sha256)
        self.put(sha256, b"".join(self.parts[sha256, number] for number in numbers))

    def xet_hashes(self) -> dict[str, str]:
        """Return {sha256: hash of Xet} of the files in the tables (`*.mdb`) that the Rust client has written.

        A table begins with 48 bytes of header; then follow its files: 48 bytes each (hash, flags, number of segments),
        48 for each segment, as many again if they can be verified (bit 31), 48 that begin with the sha256 (bit 30). A
        hash of ones ends the list.
        """
        found = {}
        for path in self.xet_folder.rglob("*.mdb"):
            table, position = path.read_bytes(), 48
            while position + 48 <= len(table) and table[position : position + 32] != b"\xff" * 32:
                name = table[position : position + 32]
                flags, segments = (
                    int.from_bytes(table[position + at : position + at + 4], "little") for at in (32, 36)
                )
                position += 48 + 48 * segments * (2 if flags >> 31 & 1 else 1)
                if flags >> 30 & 1:
                    found[_hexadecimal(table[position : position + 32])] = _hexadecimal(name)
                    position += 48
        return found


def _hexadecimal(digest: bytes) -> str:
    """Return a hash as Xet writes it: four little-endian words."""
    return "".join(f"{int.from_bytes(digest[at : at + 8], 'little'):016x}" for at in range(0, 32, 8))


def apply_commit(repository: Repository, storage: Storage, branch: str, payload: bytes) -> tuple[dict, dict]:
    """Return the header of a commit, and the files of the branch after it.

    Args:
        repository: That is committed to.
        storage: Of the large files.
        branch: Of the repository.
        payload: Lines of JSON, as the client sends them.
    """
    header, files = {}, dict(repository.head(branch).files)
    for line in payload.splitlines():
        item = json.loads(line)
        key, value = item["key"], item["value"]
        path = value.get("path", "")
        if key != "header" and (path.startswith("/") or {"..", ".git"} & {*path.split("/")}):
            raise Refused(400, f"invalid path {path}")
        if key == "header":
            header = value
            if header.get("parentCommit", repository.branches[branch]) != repository.branches[branch]:
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
        elif key == "file":
            files[path] = StoredFile.regular(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[path] = storage.find(value["oid"], value["size"])
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refused(404, f"{path} does not exist", "EntryNotFound")
        elif key == "deletedFolder":
            files = {name: file for name, file in files.items() if not name.startswith(f"{path.rstrip('/')}/")}
        else:
            raise Refused(400, f"unknown operation {key}")
    return header, files
