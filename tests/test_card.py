"""The card says what was measured, passes the Hub's checks, and names nothing of this machine."""

import doctest
import json
import re

import pytest
from conftest import run_card, topic_rows, write_csv
from finished import results, write_classifier
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt

from ptft_recipes import card as card_module
from ptft_recipes import card_metadata, limitations, redaction
from ptft_recipes.card import write_model_card
from ptft_recipes.card_metadata import hub_ancestor
from ptft_recipes.data import DatasetArguments, dataset_hub_id

# huggingface/hub-docs, modelcard.md and docs/hub/model-cards.md: what may stand there, and of which type.
TOP = {"base_model": str, "base_model_relation": str, "datasets": list, "library_name": str, "pipeline_tag": str,
       "tags": list, "model-index": list}  # fmt: skip
RESULT = {"task": {"type": str, "name": str}, "dataset": {"type": str, "name": str, "config": str, "split": str,
          "revision": str}}  # fmt: skip
METRIC = {"type": str, "value": float, "name": str}
HUB_ID = r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}"  # what its check takes for one; it refuses a card with anything else


def card(folder, task="text-classification", model_id="me/x", found=None, **run) -> ModelCard:
    write_model_card(folder, found or results(**run), task, model_id)
    return ModelCard.load(folder / "README.md")


def check_front_matter(found: ModelCard) -> dict:
    """Fail unless the front matter is as the Hub documents it; return it."""
    data = found.data.to_dict()
    assert data.keys() <= TOP.keys()
    assert all(isinstance(value, TOP[name]) for name, value in data.items())
    for name in [data.get("base_model", "x"), *data.get("datasets", [])]:
        assert re.fullmatch(HUB_ID, name, re.ASCII), name
    assert data.get("base_model_relation") in ("adapter", "finetune", "merge", "quantized", None)
    assert ("base_model_relation" in data) <= ("base_model" in data)
    for model in data.get("model-index", []):
        assert model.keys() == {"name", "results"}
        assert model["name"]
        for result in model["results"]:
            assert result.keys() == {"task", "dataset", "metrics"}
            for part, kinds in RESULT.items():
                assert {"type"} <= result[part].keys() <= kinds.keys()
                assert all(isinstance(value, str) and value for value in result[part].values())
            assert result["dataset"]["name"]
            assert result["metrics"]
            for metric in result["metrics"]:
                assert {"type", "value"} <= metric.keys() <= METRIC.keys()
                assert all(isinstance(metric[name], METRIC[name]) for name in metric)
                assert abs(metric["value"]) < float("inf")
        model_index_to_eval_results([model])
    return data


def html(found: ModelCard) -> str:
    return MarkdownIt("commonmark").enable("table").render(found.text)


class TestFrontMatter:
    def test_it_is_what_the_hub_documents(self, tmp_path):
        data = check_front_matter(card(tmp_path))
        assert data["base_model"] == "org/base"
        assert data["base_model_relation"] == "finetune"
        assert data["pipeline_tag"] == "text-classification"
        (result,) = data["model-index"][0]["results"]
        assert result["dataset"] == {"type": "unknown", "name": "demo/aclsum_roles", "split": "test"}
        name = "accuracy, 95 % interval 0.7071 to 0.7355"
        assert result["metrics"] == [{"type": "accuracy", "value": 0.7213, "name": name}]
        assert data["model-index"][0]["name"] == "x"

    def test_a_data_set_of_the_hub_is_linked_with_its_revision(self, tmp_path):
        found = results()
        found["run"]["data"] |= {"name": "org/data", "hub_id": "org/data"}
        found["run"]["config"] |= {"dataset_config": "de", "dataset_revision": "v2", "test_split": "test_matched"}
        written = card(tmp_path, found=found)
        data = check_front_matter(written)
        assert data["datasets"] == ["org/data"]
        expected = {"type": "org/data", "name": "org/data", "config": "de", "revision": "v2", "split": "test_matched"}
        assert data["model-index"][0]["results"][0]["dataset"] == expected
        assert "[`org/data`](https://huggingface.co/datasets/org/data) of the Hub, configuration `de`" in written.text

    def test_a_test_split_that_was_cut_from_train_is_no_split_of_the_data_set(self, tmp_path):
        found = results()
        found["run"]["data"] |= {"name": "org/data", "hub_id": "org/data", "cut": {"test": 40}}
        assert (
            "split" not in check_front_matter(card(tmp_path, found=found))["model-index"][0]["results"][0]["dataset"]
        )

    def test_the_scores_of_the_base_model_are_not_this_models(self, tmp_path):
        score = {"value": 42.5, "ci95": [40.0, 45.0], "n": 12}
        found = results() | {"metrics": {"perplexity": score, "perplexity_before": score | {"value": 99.0}}}
        written = card(tmp_path, "fill-mask", found=found)
        (metric,) = check_front_matter(written)["model-index"][0]["results"][0]["metrics"]
        assert metric["type"] == "perplexity"
        assert "| perplexity | 99.0 [40.0, 45.0] | 42.5 [40.0, 45.0] |" in written.text

    @pytest.mark.parametrize(
        ("files", "merged", "relation"),
        [
            (["adapter_config.json"], [], "adapter"),
            ([], ["a", "mean"], "finetune"),
            ([], ["a", "b", "mean"], "merge"),
            (["adapter_config.json"], ["a", "b", "mean"], "adapter"),
        ],
    )
    def test_what_the_model_is_of_its_base(self, tmp_path, files, merged, relation):
        for name in files:
            (tmp_path / name).write_text(json.dumps({"peft_type": "LORA"}))
        scores = {"accuracy": {"value": 0.5, "ci95": [None, None], "n": 9}}
        run = {"merged": dict.fromkeys(merged, scores)} if merged else {}
        data = check_front_matter(card(tmp_path, **run))
        assert data["base_model_relation"] == relation
        assert data["library_name"] == ("peft" if files else "transformers")

    def test_new_weights_have_no_base_model(self, tmp_path):
        lineage = [stage | {"from_scratch": True} for stage in results()["run"]["lineage"][1:]]
        assert "base_model" not in check_front_matter(card(tmp_path, lineage=lineage))


HUB = {"from": "org/base", "hub_id": "org/base", "from_scratch": False}
LOCAL = {"from": "runs/mlm", "hub_id": None, "from_scratch": False}
OLD = {"from": "runs/mlm", "from_scratch": False}  # of a run that did not tell


class TestHubAncestor:
    @pytest.mark.parametrize(
        ("lineage", "expected"),
        [
            ([HUB], "org/base"),
            ([HUB, LOCAL, LOCAL], "org/base"),
            ([HUB, LOCAL, HUB | {"from": "org/next", "hub_id": "org/next"}], "org/next"),
            ([LOCAL], None),
            ([HUB | {"from_scratch": True}, LOCAL], None),
            ([HUB, OLD], "org/base"),
            ([OLD], None),
            ([HUB | {"hub_id": "/models/mine"}], None),
            ([HUB | {"hub_id": "a/b/c"}], None),
            ([], None),
        ],
    )
    def test_folders_are_walked_through(self, lineage, expected):
        assert hub_ancestor(lineage) == expected

    def test_a_chain_of_real_runs_ends_at_the_hub(self, run_mlm, run_cls, checkpoint, tmp_path, monkeypatch):
        snapshot = tmp_path / "cache" / "models--org--tiny" / "snapshots" / ("0" * 40)
        snapshot.parent.mkdir(parents=True)
        snapshot.symlink_to(checkpoint)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        run_mlm(model_name_or_path="org/tiny", max_steps=1)
        run_cls(model_name_or_path=tmp_path / "mlm", tuning="lora", max_steps=1)
        for name, relation in (("mlm", "finetune"), ("run", "adapter")):
            data = check_front_matter(ModelCard.load(tmp_path / name / "README.md"))
            assert (data["base_model"], data["base_model_relation"]) == ("org/tiny", relation)
        text = (tmp_path / "run" / "README.md").read_text()
        assert "The base model `mlm` is not on the Hub" in text
        assert "Lineage: `org/tiny` → `train.txt, validation.txt, test.txt` (pretrain_mlm, 1 steps" in text
        assert str(tmp_path) not in text + (tmp_path / "run" / "config.json").read_text()
        assert run_card(tmp_path / "run")["config"].lineage[0]["hub_id"] == "org/tiny"

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({"dataset_name": "org/data"}, "org/data"),
            ({"dataset_name": "demo/aclsum_roles"}, None),
            ({"dataset_name": "demo/aclsum_roles", "train_file": "a.csv"}, None),
            ({"dataset_name": "."}, None),
            ({}, None),
        ],
    )
    def test_a_data_set_is_of_the_hub_or_of_this_machine(self, arguments, expected):
        assert dataset_hub_id(DatasetArguments(**arguments)) == expected


class TestNothingOfThisMachine:
    def test_no_absolute_path_and_no_secret_gets_into_the_card(self, tmp_path):
        score = {"accuracy": {"value": 0.5, "ci95": [None, None], "n": 9}}
        found = results(
            base_model="/home/ann/models/tiny",
            base_model_hub_id=None,
            merged={"/home/ann/runs/a": score, "/home/ann/runs/b": score, "mean": score},
            lineage=[{"recipe": "finetune_cls", "from": "/home/ann/models/tiny", "hub_id": None, "from_scratch": False,
                      "data": "/home/ann/data", "fingerprint": "aa", "steps": 10}],
        )  # fmt: skip
        found["run"]["data"]["name"] = "/home/ann/data"
        found["run"]["config"] = {
            "output_dir": "/home/ann/out", "train_file": "/home/ann/data/train.csv", "tuning": "/home/ann/runs/a",
            "mix": ["/home/ann/general.txt=0.2"], "tuning_kwargs": ["path=/home/ann/x.bin", "r=4"],
            "deepspeed": '{"nvme_path": "/home/ann/nvme"}', "hub_model_id": "me/secret-plan",
            "model_name_or_path": "~/models/tiny", "dataset_name": r"C:\Users\ann\data", "run_name": "hf_" + "a" * 34,
            "label_column": "hf_" + "b" * 34, "dataset_config": "https://ann:pw@host/data",
        }  # fmt: skip
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/home/ann"}')
        for task in ("text-classification", "fill-mask", None):
            text = str(card(tmp_path, task, str(tmp_path), found=found))
            for secret in ("/home", "ann", "hf_", ":pw", "secret-plan", "~/", str(tmp_path)):
                assert secret not in text, (task, secret)
        assert "train_file: train.csv\n" in text
        assert "- general.txt=0.2\n" in text
        assert "| a | 0.500 |" in text


NAMES = ["a|b", "`x`", "<script>alert(1)</script>", "new\nline", "*bold* _and_ [link](x)", "a&lt;b", "[x]\\|", "---"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_whatever_it_holds(tmp_path, name):
    found = results(base_model=name, base_model_hub_id=None)
    score = {"value": 0.1, "ci95": [0.0, 0.2], "n": 40}
    found["metrics"] |= {f"f1/{name}": score, f"recall/{name}": score, "recall/none": score}
    found["run"]["data"] |= {"name": name, "label_names": ["none", name]}
    found["run"]["config"] |= {"label_column": name, "test_file": "```\n# no"}
    written = card(tmp_path, model_id=f"me/{name}", found=found)
    check_front_matter(written)
    rendered = html(written)
    assert "<script" not in rendered
    shown = " ".join(name.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{shown}</td>" in rendered
    tables = re.findall(r"<table>(.*?)</table>", rendered, re.S)
    assert len(tables) == 4
    for rows in (re.findall(r"<tr>(.*?)</tr>", found, re.S) for found in tables):
        assert len({len(re.findall("</t[dh]>", row)) for row in rows}) == 1
    assert rendered.count("<h1>") == 1
    assert rendered.count("<h2>") == 5


class TestText:
    @pytest.mark.parametrize(
        "line",
        [
            "| accuracy | 0.721 [0.707, 0.736] |",
            "| roc_auc | undefined |",
            "| none | 0.500 [0.400, 0.600] |",
            "| validation (cut from train) | 30 | 0 | 3 | 2 | `bb` |",
            "10 of 20 weights trained (50.0%)",
            "| weights | 10 of 20 trained; 1.5 MiB saved |",
            "| peak memory | 1.25 GiB (resident) |",
            "| step | 250.0 ms (median) |",
            "| energy | about 0.060 Wh, an estimate, not measured: 2 cores at 12 W at full load",
            "Lineage: `org/first` → `notes.txt` (pretrain_mlm, 7 steps, data `dd`) → `demo/aclsum_roles` "
            "(finetune_cls, 10 steps, data `aa`).",
        ],
    )
    def test_it_holds_scores_with_intervals_costs_and_lineage(self, line, tmp_path):
        text = card(tmp_path).text
        assert line in text
        assert "out/x" not in text

    @pytest.mark.parametrize("energy", [{"kilowatt_hours": None, "assumed": "nothing is known"}, None])
    def test_no_number_stands_where_none_is_known(self, tmp_path, energy):
        assert re.search(r"\| energy \| not estimated(: nothing is known)? \|", card(tmp_path, energy=energy).text)

    def test_that_of_a_masked_language_model_counts_blocks_and_fills_a_mask(self, tmp_path):
        found = results()
        found["run"]["data"]["tokens"] = {
            split: {"tokens": 5000, "blocks": 20} for split in ("train", "validation", "test")
        }
        text = card(tmp_path, "fill-mask", found=found).text
        assert "Pre-training continued from [`org/base`](https://huggingface.co/org/base) on" in text
        assert "| train | 300 | 1 | 5,000 | 20 |  | `aa` |" in text
        assert 'fill = pipeline("fill-mask", "me/x")' in text

    def test_plots_are_shown(self, tmp_path):
        (tmp_path / "plots").mkdir()
        (tmp_path / "plots" / "learning_curves.png").write_bytes(b"png")
        assert "![learning curves](plots/learning_curves.png)" in card(tmp_path).text

    def test_labels_have_their_number_of_test_examples(self, tmp_path):
        folder = write_classifier(tmp_path / "run", right=0.8)
        found = json.loads((folder / "results.json").read_text())
        lines = [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]
        run = results()["run"] | {"data": results()["run"]["data"] | {"label_names": ["approach", "none", "outcome"]}}
        text = card(folder, found=found | {"run": run}).text
        assert "| label | precision | recall | f1 | test examples |" in text
        count = sum(line["gold"] == "none" for line in lines)
        assert re.search(rf"\| none \| .* \| {count} \|\n", text)

    def test_a_tokenizer_has_one_too(self, tmp_path):
        scores = {"fertility_before": 1.4, "fertility_after": 1.3, "tokens_saved": 0.02}
        metrics = {name: {"value": value, "ci95": [1.0, 2.0], "n": 9} for name, value in scores.items()}
        run = {k: v for k, v in results()["run"].items() if k not in ("steps", "lineage", "trainable_parameters")}
        written = card(tmp_path, None, found={"metrics": metrics, "run": run | {"seconds": {"total": 3.0}}})
        assert "| fertility | 1.400 [1.000, 2.000] | 1.300 [1.000, 2.000] |" in written.text
        assert 'AutoTokenizer.from_pretrained("me/x")' in written.text
        assert check_front_matter(written) == {"library_name": "transformers", "tags": ["ptft-recipes"]}


class TestUse:
    def test_an_adapter_names_revision_and_method(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "BOTTLENECK"}')
        found = results()
        found["run"]["config"]["model_revision"] = "v1"
        text = card(tmp_path, found=found).text
        assert "import ptft_recipes.bottleneck" in text
        assert 'from_pretrained("org/base", config=config, revision="v1")' in text

    def test_an_adapter_of_new_weights_cannot_be_used(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        found = results()
        found["run"]["config"]["from_scratch"] = True
        assert "The adapter belongs to new weights, which were not saved" in card(tmp_path, found=found).text

    @pytest.mark.parametrize(
        ("columns", "flags", "printed"),
        [
            ({"other": lambda i: "a goal"}, ["--text_pair_column", "other"], r"^\[?\{'label': '[a-z]+', 'score'"),
            ({"label": lambda i: ["a|b", "a", "b"][i % 3]}, ["--label_separator", "|"], r"^\[+\{'label': .*'label': "),
            ({"label": lambda i: i / 10}, ["--problem_type", "regression"], r"'score': -?\d"),
        ],
        ids=["pairs", "multi-label", "regression"],
    )
    def test_the_code_runs_for_every_problem_type(self, run_cls, tmp_path, columns, flags, printed, capsys):
        rows = [
            row | {name: value(i) for name, value in columns.items()} for i, row in enumerate(topic_rows(40, seed=0))
        ]
        path = write_csv(tmp_path / "rows.csv", rows)
        run_cls("--train_file", path, *flags, data=False, max_steps=1)
        capsys.readouterr()
        run_card(tmp_path / "run")
        assert re.search(printed, capsys.readouterr().out)

    def test_the_code_of_a_bottleneck_adapter_runs_and_the_card_names_no_folder(
        self, run_cls, checkpoint, tmp_path, capsys
    ):
        run_cls("--tuning_kwargs", "reduction_factor=4", tuning="bottleneck", max_steps=1)
        capsys.readouterr()
        names = run_card(tmp_path / "run", checkpoint)
        assert "'label': " in capsys.readouterr().out
        assert names["model"].peft_config["default"].peft_type == "BOTTLENECK"
        text = (tmp_path / "run" / "README.md").read_text()
        assert str(tmp_path) not in text
        assert str(checkpoint) not in text
        check_front_matter(ModelCard.load(tmp_path / "run" / "README.md"))
        assert "Wh, an estimate, not measured: 1 core at 12 W at full load" in text


@pytest.mark.parametrize("module", [card_module, card_metadata, limitations, redaction])
def test_the_examples_in_the_docstrings_hold(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
