"""The Hub of the tests answers the genuine client as the real one does, by both upload protocols."""

import hashlib
import os
import subprocess
import sys

import pytest
from hub.server import Token
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LARGE = os.urandom(300_000)
pytestmark = pytest.mark.usefixtures("login")


def put(repo="me/mine", **files):
    operations = [CommitOperationAdd(name.replace("_", "."), content) for name, content in files.items()]
    return HfApi().create_commit(repo, operations, commit_message="files")


@pytest.mark.parametrize("protocol", ["lfs", "xet"])
def test_what_is_pushed_comes_back(hub, protocol, tmp_path):
    (tmp_path / "large").write_bytes(LARGE)
    assert HfApi().create_repo("mine", private=True).repo_id == "me/mine"
    commit = put(README_md=b"# hello", model_safetensors=tmp_path / "large")
    found = {file.path: file for file in HfApi().get_paths_info("me/mine", ["README.md", "model.safetensors"])}
    assert found["model.safetensors"].lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert found["README.md"].blob_id == hashlib.sha1(b"blob 7\0# hello").hexdigest()
    folder = snapshot_download("me/mine")
    assert sorted(os.listdir(folder)) == [".gitattributes", "README.md", "model.safetensors"]
    with open(os.path.join(folder, "model.safetensors"), "rb") as file:
        assert file.read() == LARGE
    assert HfApi().repo_info("me/mine").sha == commit.oid
    assert bool(hub.requests("xet-write-token")) == bool(hub.requests("xet-read-token")) == (protocol == "xet")
    assert bool(hub.requests("/lfs/object/", "PUT")) == (protocol == "lfs")


def test_a_large_file_goes_in_parts(hub):
    hub.part_size = 10**5
    hub.add("me/mine")
    put(model_safetensors=LARGE)
    assert len(hub.requests("/lfs/part/", "PUT")) == 3
    assert hub.content("me/mine", "model.safetensors") == LARGE


def test_a_download_that_is_cut_off_goes_on_where_it_was(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.add("me/mine")
    put(model_safetensors=LARGE)
    hub.fail("GET", "/resolve/", "cut")
    with open(hf_hub_download("me/mine", "model.safetensors"), "rb") as file:
        assert file.read() == LARGE
    ranges = [seen.headers.get("range") for seen in hub.requests("/resolve/", "GET")]
    assert ranges == [None, f"bytes={len(LARGE) // 2}-"]


def test_history_branches_tags_and_deletions(hub):
    hub.add("me/mine")
    first = put(a_txt=b"1").oid
    api = HfApi()
    api.create_branch("me/mine", branch="old")
    api.create_tag("me/mine", tag="v1")
    api.create_commit("me/mine", [CommitOperationDelete("a.txt")], commit_message="away")
    assert [commit.title for commit in api.list_repo_commits("me/mine")] == ["away", "files", "initial commit"]
    assert "a.txt" not in api.list_repo_files("me/mine")
    for revision in ("old", "v1", first, first[:8]):
        assert "a.txt" in api.list_repo_files("me/mine", revision=revision)
    assert [branch.name for branch in api.list_repo_refs("me/mine").branches] == ["main", "old"]
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("me/mine", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/mine", "b.txt")


def status(call) -> int:
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    return caught.value.response.status_code


def test_who_may_not_is_refused(hub, login):
    hub.add("me/mine")
    hub.add("library/open", private=False)
    assert status(lambda: HfApi().create_repo("google/mine")) == 403
    assert status(lambda: HfApi().create_repo("mine")) == 409
    HfApi().auth_check("me/mine", write=True)
    assert status(lambda: HfApi().auth_check("library/open", write=True)) == 403
    assert HfApi(token=False).repo_info("library/open").private is False
    for token in ("hf_other", False):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).repo_info("me/mine")
    login("hf_read")
    assert HfApi().repo_info("me/mine").private
    assert status(lambda: put(a_txt=b"1")) == 403
    scope = {"entity": {"type": "user", "name": "me"}, "permissions": ["repo.write"]}
    hub.tokens["hf_fine"] = Token("me", "fineGrained", [scope])
    login("hf_fine")
    put(a_txt=b"1")
    del hub.tokens["hf_fine"]  # revoked
    assert status(HfApi().whoami) == 401


def test_a_commit_on_top_of_another_one_is_refused(hub):
    hub.add("me/mine")
    before = HfApi().repo_info("me/mine").sha
    put(a_txt=b"1")
    operation = CommitOperationAdd("b.txt", b"2")
    commit = HfApi().create_commit
    assert status(lambda: commit("me/mine", [operation], commit_message="b", parent_commit=before)) == 412


def test_what_the_real_one_refuses_is_refused(hub):
    hub.add("me/mine")
    for path in ("/models/bert", "runs/mlm/checkpoint-3", "<local>/bert"):
        with pytest.raises(ValueError, match='"base_model" with value'):
            put(README_md=f"---\nbase_model: {path}\n---\n".encode())
    put(README_md=b"---\nbase_model: org/bert\n---\n")
    with pytest.raises(BadRequestError, match="valid Hugging Face secrets"):
        put(notes_txt=b"my token is hf_other")


def test_faults_come_when_they_are_told_to(hub):
    hub.add("me/mine")
    hub.fail("POST", "/commit/", 503, skip=1, times=2)
    put(a_txt=b"1")
    assert [status(lambda: put(a_txt=b"2")) for _ in range(2)] == [503, 503]
    put(a_txt=b"3")
    hub.fail("POST", "/commit/", "drop", after=True)
    with pytest.raises(Exception, match="disconnected"):
        put(a_txt=b"4")
    assert hub.content("me/mine", "a.txt") == b"4"
    assert [seen.status for seen in hub.requests("/commit/")] == [200, 503, 503, 200, 0]


CLIENT = """
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
HfApi().create_repo("mine", private=True)
HfApi().create_commit("me/mine", [CommitOperationAdd("model.safetensors", b"x" * 50_000)], commit_message="a file")
print(len(open(hf_hub_download("me/mine", "model.safetensors")).read()))
"""


@pytest.mark.parametrize("protocol", [pytest.param("lfs", marks=pytest.mark.slow), "xet"])
def test_a_client_that_is_told_by_variables_alone_does_the_same(hub, protocol, tmp_path):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write", "HF_HOME": str(tmp_path / "home")}
    variables |= {"HF_HUB_DISABLE_XET": "1"} if protocol == "lfs" else {}
    done = subprocess.run([sys.executable, "-c", CLIENT], env=variables, capture_output=True, text=True, check=False)
    assert done.stdout == "50000\n", done.stderr
    assert bool(hub.requests("xet-write-token")) == (protocol == "xet")
