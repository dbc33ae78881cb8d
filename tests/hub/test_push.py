"""A push arrives once and whole, or fails with the command that tries again."""

import json
import re
import shlex
import time
from types import SimpleNamespace

import pytest
import yaml
from hub.server import Token
from huggingface_hub import CommitOperationAdd, HfApi
from transformers import AutoModelForSequenceClassification

from ptft_recipes import hub as library
from ptft_recipes.errors import InputError, PushError
from ptft_recipes.hub import check_login, push_files, push_run
from ptft_recipes.outgoing import pushed_files

pytestmark = pytest.mark.usefixtures("login")


def slowly(*values) -> list:
    """Return parameters whose tests are for `-m slow`."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else [value]), marks=pytest.mark.slow) for value in values
    ]


BOTH = pytest.mark.parametrize("protocol", ["lfs", "xet"])


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert "hf_write" not in message
    return message


def publish(run, private=None):
    """Do what a recipe does at its end."""
    args = SimpleNamespace(output_dir=str(run), hub_model_id="mine", hub_private_repo=private)
    trainer = SimpleNamespace(args=args, push_at_end=True, checkpoint_uploads=None, is_world_process_zero=lambda: True)
    library.publish(trainer, json.loads((run / "results.json").read_text()), "text-classification")


def commits(hub, repo="me/mine") -> list[str]:
    return [commit.title for commit in hub.repository(repo).commits.values()]


@BOTH
def test_a_run_is_pushed_privately_whole_and_once(hub, run, capfd):
    (run / ".env").write_text("SECRET=1")
    address = push_run(run)
    assert "%|" not in capfd.readouterr().err, "no progress bars where there is no terminal"
    files = hub.repository("me/mine").head().files
    assert sorted(files) == [".gitattributes", *pushed_files(run)]
    assert {"README.md", "config.json", "config.yaml", "model.safetensors", "results.json"} <= {*files}
    assert hub.repository("me/mine").private
    assert address == f"{hub.url}/me/mine/commit/{hub.repository('me/mine').head().id}"
    assert push_run(run) == address
    assert push_run(run, "me/mine") == address
    assert len(commits(hub)) == 2
    assert re.fullmatch(r"finetune_cls of ptft-recipes [\d.]+, seed 42", commits(hub)[1])


def test_no_path_of_this_machine_leaves_it(hub, run, tmp_path):
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "README.md"}
    assert str(tmp_path.parent.parent).encode() in before[run / "config.yaml"], "else there is nothing to test"
    push_run(run)
    for name in pushed_files(run):
        content = hub.content("me/mine", name)
        assert str(tmp_path.parent.parent).encode() not in content, name
        assert not re.search(rb"[ \"'`(]/[a-z]+/", content) or name.startswith(("plots", "model", "tokenizer")), name
    config = yaml.safe_load(hub.content("me/mine", "config.yaml"))
    assert config["train_file"] == "<local>/train.csv"
    assert json.loads(hub.content("me/mine", "results.json"))["run"]["config"] == config
    assert before == {path: path.read_bytes() for path in before}


def test_the_card_names_the_repository_and_ones_own_card_stays(hub, run):
    assert '"text-classification", "me/mine"' not in (run / "README.md").read_text()
    push_run(run)
    assert b'"text-classification", "me/mine"' in hub.content("me/mine", "README.md")
    (run / "README.md").write_text("---\nlicense: mit\n---\n\n# My own words\n")
    push_run(run)
    assert hub.content("me/mine", "README.md").endswith(b"# My own words\n")


@pytest.mark.parametrize(("name", "text"), [
    ("plots/a.png", "hf_{}"), ("tokenizer.json", "api_org_{}"), ("config.json", '{{"url": "https://me:{}@host/data"}}'),
    ("model.safetensors", "\x40\0\0\0\0\0\0\0hf_{}"), ("chat_template.jinja", "the password of this test"),
])  # fmt: skip
def test_a_secret_stops_the_push(hub, run, name, text, monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", "the password of this test")
    (run / name).write_text(text.format("AbCdEfGh0123456789"))
    with pytest.raises(PushError, match="looks like a token or a password; nothing was pushed") as caught:
        push_run(run)
    assert name in one_line(caught)
    assert "AbCd" not in one_line(caught)
    assert commits(hub) == ["initial commit"]


def test_a_secret_in_the_configuration_stops_the_push(hub, run):
    results = json.loads((run / "results.json").read_text())
    results["run"]["config"]["dataset_name"] = "hf_AbCdEfGh0123456789"
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(PushError, match="looks like a token"):
        push_run(run)
    assert commits(hub) == ["initial commit"]


def test_a_token_that_only_the_hub_knows_is_refused_by_it(hub, run):
    hub.tokens["short"] = Token("me")
    (run / "chat_template.jinja").write_text("short")
    with pytest.raises(PushError, match=r"valid Hugging Face secrets.* Retry: ptft push"):
        push_run(run)
    assert len(hub.requests("/commit/")) == 1, "the Hub has said no"


def test_nothing_becomes_public_by_accident(hub, run):
    hub.add("me/mine", private=False)
    with pytest.raises(
        InputError, match=r"me/mine is public already; .* --hub_private_repo false .* --public to `ptft"
    ):
        push_run(run)
    with pytest.raises(PushError, match=r"me/mine is public already.*; nothing was pushed"):
        publish(run)  # it became public while the run was training
    assert commits(hub) == ["initial commit"]
    push_run(run, private=False)
    assert len(commits(hub)) == 2
    push_run(run, "open", private=False)
    assert not hub.repository("me/open").private


def refused(repo_id="mine", private=True) -> str:
    with pytest.raises(InputError) as caught:
        check_login(repo_id, private)
    return one_line(caught)


def test_what_would_fail_at_the_end_is_told_at_the_start(hub, login, monkeypatch):
    assert check_login() is None
    assert [check_login(name) for name in ("new", "me/new", "lab/new")] == ["me/new", "me/new", "lab/new"]
    assert "lab/not a name cannot be the name of a repository; choose one with --hub_model_id" in refused(
        "lab/not a name"
    )
    assert "you can push to me, lab, not to google" in refused("google/mine")
    assert "you can push to me, lab, not to library" in refused("library/mine")
    hub.add("library/open", private=False)
    assert "you may not write to library/open" in refused("library/open", private=False)
    login("hf_read")
    assert "the token of the Hub may only read" in refused()
    scope = {"entity": {"type": "user", "name": "me"}, "permissions": ["repo.content.read"]}
    hub.tokens["hf_fine"] = Token("me", "fineGrained", [scope])
    login("hf_fine")
    assert "the token may not make repositories of me" in refused()
    scope["permissions"].append("repo.write")
    assert check_login("mine") == "me/mine"
    assert "the token may not make repositories of lab" in refused("lab/mine")
    login("hf_revoked")
    assert "no login at the Hub; `hf auth login`" in refused()
    login("")
    assert "no login at the Hub; `hf auth login`" in refused()
    login("hf_write")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused() == "HF_HUB_OFFLINE is set, and nothing can be pushed; unset it"
    assert not hub.requests("", "POST"), "nothing is made before the run is through"


@pytest.mark.parametrize("how", ["stall", 429, *slowly("drop", 500)])
def test_a_hub_that_does_not_answer_at_the_start_costs_no_compute(hub, how, monkeypatch):
    monkeypatch.setattr(library, "SILENCE", 0.2)
    hub.fail("GET", "whoami", how, times=99)
    assert "no login at the Hub" in refused()


@BOTH
@pytest.mark.parametrize("how", ["drop", *slowly(500, 502, 503, 504, 429)])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_commit_is_tried_again_and_never_made_twice(hub, run, how, after):
    """`after`: it was made, and its answer is lost."""
    hub.fail("POST", "/commit/", how, after=after, times=2)
    push_run(run)
    assert len(commits(hub)) == 2
    assert len(hub.requests("/commit/")) == (1 if after else 3)


AT = ["/paths-info/", "/api/models/me/mine$", "/validate-yaml", "/preupload/", "/lfs/", "xet-write"]


@BOTH
@pytest.mark.parametrize("at", ["/repos/create", *slowly(*AT)])
def test_a_moment_of_trouble_anywhere_is_got_over(hub, protocol, run, at):
    if at in ("/lfs/", "xet-write") and at[:3] not in (f"/{protocol}", protocol):
        pytest.skip("a request of the other protocol")
    check_login("mine")
    fault = hub.fail("*", at, 503)
    publish(run)
    assert fault.times < 1
    assert len(commits(hub)) == 2


def test_somebody_else_commits_at_the_same_time(hub, run, monkeypatch):
    hub.add("me/mine")
    create_commit = HfApi.create_commit

    def late(self, repo_id, operations, **kwargs):
        monkeypatch.setattr(HfApi, "create_commit", create_commit)
        self.create_commit(repo_id, [CommitOperationAdd("theirs.txt", b"1")], commit_message="theirs")
        return create_commit(self, repo_id, operations, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", late)
    push_run(run)
    assert commits(hub)[1] == "theirs"
    assert len(commits(hub)) == 3
    assert {"theirs.txt", "model.safetensors"} <= {*hub.repository("me/mine").head().files}
    assert 412 in [seen.status for seen in hub.requests("/commit/")]


def test_what_arrives_otherwise_than_sent_is_no_success(hub, run):
    commit = hub.commit

    def careless(request, **groups):
        answer = commit(request, **groups)
        files = hub.repository("me/mine").head().files
        files["config.json"] = type(files["config.json"]).regular(b"{}")
        return answer

    hub.commit = careless
    with pytest.raises(PushError, match=r"config.json arrived otherwise than sent"):
        push_run(run)


FAULTS = [(how, at) for at in ("/repos/create", "/api/models/me/mine$") for how in (500, "stall", "drop")]
FAULTS += [("drip", "/preupload/"), ("drip", "/repos/create"), ("drop", "/commit/"), (403, "/repos/create"),
           ("stall", "validate-yaml"), (500, "/preupload/"), ("stall", "/paths-info/"), (500, "/lfs/"),
           ("stall", "/lfs/"), (401, "/commit/"), (404, "/commit/"), (400, "/commit/"), (413, "/commit/")]  # fmt: skip


@pytest.mark.parametrize(
    ("how", "at"),
    [(403, "/commit/"), ("stall", "/commit/"), (500, "/commit/"), ("drip", "/paths-info/"), *slowly(*FAULTS)],
)
def test_a_push_that_fails_keeps_everything_and_says_how_to_retry(hub, run, how, at, monkeypatch):
    check_login("mine")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "README.md"}
    monkeypatch.setattr(library, "SILENCE", 0.2)
    hub.fail("*", at, how, times=99)
    start = time.perf_counter()
    with pytest.raises(PushError, match=r"the push to .*mine failed .*; everything is in") as caught:
        publish(run)
    assert time.perf_counter() - start < 10
    command = shlex.split(one_line(caught).partition(" Retry: ")[2])
    assert command[:3] == ["ptft", "push", str(run)]
    assert command[3:] in (["--repo_id", "mine"], ["--repo_id", "me/mine"])
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.name in before}
    AutoModelForSequenceClassification.from_pretrained(run)
    hub.faults.clear()
    push_run(run, command[4])
    assert {"model.safetensors", "README.md"} <= {*hub.repository("me/mine").head().files}
    if isinstance(how, int) and how < 500:
        assert len(hub.requests(at)) == 2, "the Hub had said no: once by each push"


@pytest.mark.parametrize("protocol", ["xet"])
@pytest.mark.parametrize("how", ["drop", *slowly(500, "stall")])
def test_a_push_by_xet_that_fails_is_told_in_time(hub, run, how, monkeypatch):
    check_login("mine")
    monkeypatch.setattr(library, "SILENCE", 0.2)
    hub.fail("GET", "xet-write-token", how, times=99)
    start = time.perf_counter()
    with pytest.raises(PushError, match=r"the push to me/mine failed .* Retry: ptft push"):
        publish(run)
    assert time.perf_counter() - start < 10


def test_a_public_push_is_retried_as_a_public_one(hub, run):
    hub.fail("POST", "/commit/", 403)
    with pytest.raises(PushError, match=r"Retry: ptft push \S+ --repo_id me/mine --public$"):
        push_run(run, private=False)


def test_a_page_of_a_proxy_in_place_of_an_answer_is_one_line(hub, run):
    hub.fail("POST", "/commit/", 502, times=99, body="<html>\n<h1>Bad Gateway</h1>\n</html>")
    with pytest.raises(PushError) as caught:
        push_run(run)
    assert "502" in one_line(caught)


def test_weights_of_an_earlier_run_go_and_all_else_stays(hub, run):
    hub.add("me/mine")
    files = {"model-00001-of-00002.safetensors": b"1", "adapter_config.json": b"{}", "notes.md": b"mine"}
    push_files("me/mine", {**files, "checkpoint-3/model.safetensors": b"2"}, "an earlier run")
    push_run(run)
    there = {*hub.repository("me/mine").head().files}
    assert {"model.safetensors", "notes.md", "checkpoint-3/model.safetensors"} <= there
    assert not there & {"model-00001-of-00002.safetensors", "adapter_config.json"}
    push_files("me/mine", {"tokenizer.json": b"{}"}, "a tokenizer alone")
    assert "model.safetensors" in hub.repository("me/mine").head().files


@pytest.mark.parametrize(("name", "message"), [("results.json", "no results.json"), ("LOADED", "nothing to push")])
def test_what_is_no_finished_run_is_not_pushed(hub, run, name, message):
    for path in [run / name] if name != "LOADED" else [run / file for file in pushed_files(run, library.LOADED)]:
        path.unlink()
    with pytest.raises(InputError, match=message):
        push_run(run)
    assert hub.log == []


def test_a_disk_without_room_for_a_cache_is_no_obstacle(hub, run, monkeypatch):
    monkeypatch.setenv("HF_XET_CACHE", "/dev/full/xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/dev/full/cache")
    push_run(run)
    assert len(commits(hub)) == 2
