"""An extended checkpoint: new rows are means, old weights stay, and under LoRA only the new rows move."""

import copy
import json

import pytest
import torch
from conftest import SIZES, tiny_config
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForPreTraining,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
)

from ptft_recipes.embeddings import (
    check_extended,
    extend_checkpoint,
    find_weights,
    new_token_indices,
    restore_output_bias,
    trainable_tokens,
    write_config,
)
from ptft_recipes.errors import InputError
from ptft_recipes.merging import fold_adapter
from ptft_recipes.modeling import ModelArguments, load_model
from ptft_recipes.pretraining import prepare_masked_lm
from ptft_recipes.tuning import TuningArguments, apply_tuning

OLD = 100
PIECES = {100: [5, 6], 101: [7, 8, 9], 102: [50, 51]}
OLD_TEXT = torch.arange(5, 25)[None]
NEW_TEXT = torch.tensor([[2, 5, 100, 101, 7, 102, 3]])
CONFIGS = {
    **{family: tiny_config(family, OLD) for family in ("bert", "roberta", "distilbert", "modernbert")},
    "albert": AlbertConfig(vocab_size=OLD, embedding_size=16, **SIZES),
    "electra": ElectraConfig(vocab_size=OLD, embedding_size=16, **SIZES),
    "mpnet": MPNetConfig(vocab_size=OLD, **SIZES),
    "untied": DistilBertConfig(
        vocab_size=OLD, dim=32, n_layers=2, n_heads=2, hidden_dim=64, tie_word_embeddings=False
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def folders(request, tmp_path_factory):
    """Folders of a masked language model of each family, with biases that are not 0, and of its extension."""
    folder, extended = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("extended")
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(CONFIGS[request.param])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_()
    model.save_pretrained(folder)
    model_args = ModelArguments(str(folder))
    extend_checkpoint(model_args, find_weights(model_args), PIECES, extended)
    return folder, extended


def logits(model, input_ids: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=input_ids).logits


class TestMaskedLanguageModels:
    def test_new_rows_are_the_means_of_their_pieces(self, folders):
        before, after = (AutoModelForMaskedLM.from_pretrained(folder) for folder in folders)
        assert after.config.vocab_size == 103
        assert new_token_indices(after.config) == [100, 101, 102]
        assert trainable_tokens(before) is None
        for module in ("get_input_embeddings", "get_output_embeddings"):
            old, new = (getattr(model, module)() for model in (before, after))
            assert new.weight.shape[0] == 103
            assert torch.equal(new.weight[:OLD], old.weight)
            for row, pieces in PIECES.items():
                torch.testing.assert_close(new.weight[row], old.weight[pieces].mean(dim=0))
        old, new = before.get_output_embeddings().bias, after.get_output_embeddings().bias
        assert torch.equal(new[:OLD], old)
        assert old.abs().min() > 0
        torch.testing.assert_close(new[OLD:], torch.stack([old[pieces].mean() for pieces in PIECES.values()]))

    def test_old_texts_give_the_old_logits_to_the_bit(self, folders):
        before, after = (logits(AutoModelForMaskedLM.from_pretrained(folder), OLD_TEXT) for folder in folders)
        assert torch.equal(after[..., :OLD], before)

    def test_every_other_weight_is_copied(self, folders):
        before, after = (load_file(folder / "model.safetensors") for folder in folders)
        assert before.keys() == after.keys()
        grown = {name for name, weight in before.items() if weight.shape != after[name].shape}
        assert 2 <= len(grown) <= 3
        assert all(torch.equal(before[name], after[name]) for name in before.keys() - grown)

    @pytest.mark.parametrize(
        ("auto_class", "with_head", "method"),
        [
            (AutoModelForMaskedLM, True, "lora"),
            (AutoModelForMaskedLM, False, "lora"),
            (AutoModelForMaskedLM, False, "adalora"),
            (AutoModelForSequenceClassification, False, "lora"),
        ],
    )
    def test_under_lora_only_the_new_rows_move(self, folders, auto_class, with_head, method, tmp_path):
        folder = str(folders[1])
        if not with_head:
            AutoModel.from_pretrained(folder).save_pretrained(folder := str(tmp_path / "body"))
        arguments = ModelArguments(folder)

        def load(seed):
            torch.manual_seed(seed)
            return load_model(auto_class, arguments, tokenizer=())

        model, new_modules = load(seed=0)
        before = load(seed=0)[0]
        if auto_class is AutoModelForMaskedLM:
            model = prepare_masked_lm(model, arguments, TuningArguments(method), new_modules)
        else:
            model = apply_tuning(model, TuningArguments(method), "SEQ_CLS", new_modules)
        assert torch.equal(logits(model, OLD_TEXT), logits(before, OLD_TEXT)), "before the first step"
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
        model.train()
        for _ in range(2):
            (model(input_ids=NEW_TEXT).logits ** 2).mean().backward()
            optimizer.step()
        trained = logits(model, NEW_TEXT)
        model.save_pretrained(tmp_path / "adapter")
        reloaded = PeftModel.from_pretrained(load(seed=1)[0], tmp_path / "adapter")  # another new head
        restore_output_bias(reloaded)
        torch.testing.assert_close(logits(reloaded, NEW_TEXT), trained)
        merged = fold_adapter(model)
        torch.testing.assert_close(logits(merged, NEW_TEXT), trained, atol=1e-4, rtol=1e-4)
        embeddings = [each.get_input_embeddings().weight for each in (before, merged)]
        assert torch.equal(*(weight[:OLD] for weight in embeddings))
        assert (embeddings[0][OLD:] != embeddings[1][OLD:]).any(dim=1).all()
        if auto_class is AutoModelForMaskedLM and (with_head or merged.config.tie_word_embeddings):
            output = [each.get_output_embeddings().weight for each in (before, merged)]
            assert torch.equal(*(weight[:OLD] for weight in output))
            assert (output[0][OLD:] != output[1][OLD:]).any(dim=1).all()


def test_methods_that_cannot_train_single_tokens_leave_them_alone(checkpoint, tmp_path):
    args = ModelArguments(checkpoint)
    extend_checkpoint(args, find_weights(args), {33: [5, 6]}, tmp_path)
    model, new_modules = load_model(AutoModelForSequenceClassification, ModelArguments(str(tmp_path)), tokenizer=())
    for method in ("bottleneck", "ia3"):
        wrapped = apply_tuning(copy.deepcopy(model), TuningArguments(method), "SEQ_CLS", new_modules)
        assert not [name for name, p in wrapped.named_parameters() if "embeddings" in name and p.requires_grad]


def test_why_the_bias_must_be_restored(tmp_path):
    """PEFT computes an output layer with trainable tokens without its bias."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(CONFIGS["bert"])
    torch.nn.init.ones_(model.get_output_embeddings().bias)
    before = logits(model, OLD_TEXT)
    model = get_peft_model(model, LoraConfig(trainable_token_indices=[1]))
    torch.testing.assert_close(logits(model, OLD_TEXT), before - 1)
    restore_output_bias(model)
    torch.testing.assert_close(logits(model, OLD_TEXT), before)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, OLD_TEXT), before)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, OLD_TEXT), before)


def test_pooler_and_heads_survive_that_no_single_class_would_keep(tmp_path):
    torch.manual_seed(0)
    model = BertForPreTraining(CONFIGS["bert"])
    model.config.architectures = ["BertForMaskedLM"]  # as bert-base-uncased says of itself
    model.save_pretrained(tmp_path / "base")
    args = ModelArguments(str(tmp_path / "base"))
    extend_checkpoint(args, find_weights(args), PIECES, tmp_path / "out")
    after, report = BertForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(after.bert.pooler.dense.weight, model.bert.pooler.dense.weight)
    assert torch.equal(after.cls.seq_relationship.weight, model.cls.seq_relationship.weight)


def test_spare_rows_are_used_first_and_never_shrink(tmp_path):
    """ModernBERT has more rows than tokens."""
    model = AutoModelForMaskedLM.from_config(CONFIGS["modernbert"])
    model.save_pretrained(tmp_path / "base")
    args = ModelArguments(str(tmp_path / "base"))
    extend_checkpoint(args, find_weights(args), {90: [5, 6], 91: [7]}, tmp_path / "out")
    after = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    old, new = model.get_input_embeddings().weight, after.get_input_embeddings().weight
    assert new.shape == old.shape
    assert torch.equal(new[91], old[7])
    assert torch.equal(new[92:], old[92:])
    assert new_token_indices(after.config) == [90, 91]


def test_shards_and_half_precision(tmp_path):
    model = AutoModelForMaskedLM.from_config(CONFIGS["bert"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    args = ModelArguments(str(tmp_path / "base"))
    extend_checkpoint(args, find_weights(args), PIECES, tmp_path / "out")
    after = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert after.dtype == torch.bfloat16
    assert torch.equal(logits(after, OLD_TEXT)[..., :OLD], logits(model, OLD_TEXT))


class TestCheckOfWhatWasWritten:
    @pytest.fixture
    def written(self, checkpoint, tmp_path):
        args = ModelArguments(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        pieces = {len(tokenizer): [5, 6]}
        extend_checkpoint(args, find_weights(args), pieces, tmp_path)
        return args, tokenizer, pieces, tmp_path

    def test_it_passes_what_is_right(self, written):
        check_extended(*written, "the team of a coach")

    def test_it_refuses_other_rows(self, written):
        args, tokenizer, pieces, folder = written
        with pytest.raises(RuntimeError, match="the new rows are not the means of their pieces"):
            check_extended(args, tokenizer, {new: [7, 8] for new in pieces}, folder, "the team")

    def test_it_refuses_other_weights(self, written):
        folder = written[-1]
        weights = load_file(folder / "model.safetensors")
        weights["encoder.layer.0.output.dense.weight"] += 0.1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RuntimeError, match="computes something else for the old tokens"):
            check_extended(*written, "the team")


def test_a_config_for_a_new_tokenizer(checkpoints, tokenizer, tmp_path):
    write_config(ModelArguments(checkpoints["modernbert"]), tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer)
    assert (config["pad_token_id"], config["cls_token_id"], config["sep_token_id"]) == (0, 2, 3)


def test_what_cannot_be_extended(checkpoint, tmp_path):
    with pytest.raises(InputError, match="--from_scratch: to extend keeps the weights"):
        find_weights(ModelArguments(checkpoint, from_scratch=True))
    CONFIGS["bert"].save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has no model\.safetensors; save it as safetensors first"):
        find_weights(ModelArguments(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    args = ModelArguments(str(tmp_path))
    with pytest.raises(InputError, match=r"model\.safetensors: "):
        extend_checkpoint(args, find_weights(args), PIECES, tmp_path / "out")
