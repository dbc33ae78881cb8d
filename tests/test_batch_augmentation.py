"""Spans are hidden and hidden states are mixed in training, as the papers say, and nowhere else."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from numerics.optimizer_step import build_trainer, rows
from transformers import AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from ptft_recipes.batch_augmentation import Mixup, augment_batches, hide_spans, mixup_loss
from ptft_recipes.errors import InputError
from ptft_recipes.objectives import classification_loss
from ptft_recipes.tuning import TuningArguments

IDS = torch.tensor([[2, 7, 8, 9, 10, 11, 12, 3], [2, 11, 12, 13, 14, 3, 0, 0], [2, 5, 3, 0, 0, 0, 0, 0]])


def classifier(path, **config):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(path, num_labels=3, **config)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_span_of_the_asked_length_is_hidden_between_the_first_and_the_last_token(side):
    torch.manual_seed(0)
    lengths = [2, 3, 4, 12, 22, 42]
    mask = torch.tensor([[1] * n + [0] * (42 - n) for n in lengths])
    mask = mask.flip(1) if side == "left" else mask
    begins = set()
    for _ in range(200):
        found = hide_spans(mask, 0.25)
        assert found.dtype == mask.dtype
        for row, kept, length in zip(mask, found, lengths, strict=True):
            hidden = (row != kept).nonzero()[:, 0].tolist()
            assert len(hidden) == {2: 0, 3: 1, 4: 1, 12: 2, 22: 5, 42: 10}[length]
            assert hidden == list(range(hidden[0], hidden[0] + len(hidden))) if hidden else length == 2
            ends = row.nonzero()[[0, -1], 0].tolist()
            assert not {*hidden} & {*ends}
            begins |= {hidden[0]} if length == 22 else set()
    assert len(begins) == 16  # anywhere


def test_what_is_hidden_has_no_part_in_what_the_head_reads(checkpoints):
    for family in ("bert", "roberta", "modernbert", "distilbert"):
        model = classifier(checkpoints[family]).eval()
        mask = (IDS > 0).long()
        hidden = hide_spans(mask, 0.4)
        other = torch.where(mask == hidden, IDS, 20)
        assert (other != IDS).any()
        with torch.no_grad():
            logits = [model(input_ids=ids, attention_mask=hidden).logits for ids in (IDS, other)]
            plain = model(input_ids=IDS, attention_mask=mask).logits
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6, msg=family)
        assert not torch.allclose(plain, logits[0]), family


@pytest.mark.parametrize("augment", ["span_cutoff=0.3", "mixup=0.4"])
def test_evaluation_reads_what_there_is(checkpoint, augment):
    model = classifier(checkpoint, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).eval()
    model.config.problem_type = "single_label_classification"
    inputs = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
    before = model(**inputs).logits
    augment_batches(model, [augment], TuningArguments(), classification_loss, ["input_ids"])
    assert torch.equal(model(**inputs).logits, before)
    torch.manual_seed(1)
    assert not torch.allclose(model.train()(**inputs).logits, before)
    assert torch.equal(model.eval()(**inputs).logits, before)


def test_with_r_drop_the_first_pass_reads_the_whole_rows(checkpoint, tmp_path):
    options = {"tuning_args": TuningArguments(r_drop=1.0), "augment": ["span_cutoff=0.3"]}
    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 1, **options)
    seen = []
    trainer.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]) if module.training else None,
        with_kwargs=True,
    )
    trainer.train()
    (mask,) = seen
    assert mask.shape == (16, 10)
    assert mask[:8].all()
    assert (mask[8:].sum(1) == 8).all()


@torch.no_grad()
def reference(model, share, layer, partners):
    """Compute the logits of mixed rows from the modules of the tiny BERT, one after the other, without hooks."""
    body = model.eval().bert
    attention = torch.zeros(len(IDS), 1, 1, IDS.shape[1]).masked_fill((IDS == 0)[:, None, None], float("-inf"))
    hidden = body.embeddings(IDS)
    for number, module in enumerate(body.encoder.layer):
        hidden = module(hidden, attention)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if number == layer:
            hidden = share * hidden + (1 - share) * hidden[partners]
    return model.classifier(body.pooler(hidden))


def test_hidden_states_of_two_rows_are_mixed_behind_an_upper_layer(checkpoint):
    model = classifier(checkpoint, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_hidden_layers=4)
    for parameter in model.parameters():
        parameter.data *= 5  # so that rows and layers differ
    mixup, shares, layers = Mixup(model, 2.0), set(), set()
    for seed in range(12):
        torch.manual_seed(seed)
        with torch.no_grad():
            logits = model.train()(input_ids=IDS, attention_mask=(IDS > 0).long()).logits
        assert sorted(mixup.partners.tolist()) == [0, 1, 2]
        mixed = [reference(model, mixup.share, 2 + number, mixup.partners) for number in range(2)]
        torch.testing.assert_close(logits, mixed[mixup.layer], rtol=1e-4, atol=1e-4)
        if mixup.partners.tolist() != [0, 1, 2]:
            assert not torch.allclose(logits, mixed[1 - mixup.layer], rtol=1e-2, atol=1e-2)
            layers.add(mixup.layer)
        assert 0.5 <= mixup.share <= 1
        shares.add(mixup.share)
    assert len(shares) == 12
    assert layers == {0, 1}


def test_the_shares_follow_the_beta_distribution(checkpoint):
    torch.manual_seed(0)
    model = classifier(checkpoint).train()
    means = []
    for alpha in (0.1, 20.0):
        mixup = Mixup(model, alpha)
        draws = []
        for _ in range(300):
            mixup._draw(model, (), {"input_ids": IDS})
            draws.append(mixup.share)
        means.append(sum(draws) / 300)
    assert means[0] > 0.9  # E[max(x, 1 - x)] is 0.955 for 0.1, and 0.563 for 20
    assert 0.54 < means[1] < 0.59


def test_what_a_hook_cannot_do_is_said(checkpoint):
    model = classifier(checkpoint).train()
    model.config.problem_type = "single_label_classification"
    augment_batches(model, ["span_cutoff=0.2"], TuningArguments(), classification_loss, ["input_ids"])
    with pytest.raises(InputError, match="span_cutoff: this model reads no attention mask"):
        model(input_ids=IDS)
    mixup = Mixup(model, 0.4)
    mixup._draw(model, (), {"input_ids": IDS})
    with pytest.raises(InputError, match="mixup: this model packs its rows"):
        mixup._mix(mixup.layer, model.bert.encoder.layer[1], (), torch.zeros(17, 32))  # tokens of all rows


class Drawn:
    share, partners = 0.7, torch.tensor([2, 0, 3, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_rows_is_that_of_mixed_labels(smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    outputs = SequenceClassifierOutput(logits=logits)
    targets = F.one_hot(labels, 3).float()
    targets = 0.7 * targets + 0.3 * targets[Drawn.partners]
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum") / 8
    loss = partial(classification_loss, label_smoothing=smoothing)
    torch.testing.assert_close(mixup_loss(outputs, labels, 8, loss=loss, mixup=Drawn), expected)


def test_the_loss_of_several_labels_and_of_numbers():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.randint(0, 2, (4, 3)).float()
    mixed = 0.7 * labels + 0.3 * labels[Drawn.partners]
    loss = partial(classification_loss, problem_type="multi_label_classification")
    found = mixup_loss(SequenceClassifierOutput(logits=logits), labels, 12, loss=loss, mixup=Drawn)
    expected = F.binary_cross_entropy_with_logits(logits, mixed, reduction="sum") / 12
    torch.testing.assert_close(found, expected)
    logits, labels = torch.randn(4, 1, requires_grad=True), torch.randn(4)
    mixed = 0.7 * labels + 0.3 * labels[Drawn.partners]
    loss = partial(classification_loss, problem_type="regression")
    found = mixup_loss(SequenceClassifierOutput(logits=logits), labels, 4, loss=loss, mixup=Drawn)
    gradients = [torch.autograd.grad(of, logits)[0] for of in (found, F.mse_loss(logits[:, 0], mixed))]
    torch.testing.assert_close(*gradients)


def test_a_resumed_run_draws_what_it_would_have_drawn(checkpoint, tmp_path):
    path = str(tmp_path / "checkpoint")
    classifier(checkpoint, problem_type="single_label_classification").save_pretrained(path)
    ends = []
    for name in ("whole", "resumed", "plain"):
        augment = [] if name == "plain" else ["span_cutoff=0.3", "mixup=0.4"]
        folder = str(tmp_path / name)
        options = {"augment": augment, "train_dataset": rows("sequence", 32)}
        trainer, _ = build_trainer(path, "sequence", folder, 4, 1, **options)
        trainer.args.max_steps, trainer.args.save_steps, trainer.args.save_strategy = 6, 3, "steps"
        trainer.args.lr_scheduler_type = "constant"
        if name == "resumed":
            trainer.args.max_steps = 3
            trainer.train()
            trainer, _ = build_trainer(path, "sequence", folder, 4, 1, **options)
            trainer.args.max_steps, trainer.args.lr_scheduler_type = 6, "constant"
            trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-3")
        else:
            trainer.train()
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())
    assert any(not torch.equal(ends[0][name], value) for name, value in ends[2].items())


@pytest.mark.parametrize(
    ("augment", "options", "message"),
    [
        ("mixup=0.2", {"r_drop": 1.0}, "mixup: --r_drop compares two passes"),
        ("mixup=0.2", {"fgm": 1.0}, "mixup: --fgm reads a batch twice"),
        ("span_cutoff=0.2", {"fgm": 1.0}, "span_cutoff: --fgm reads a batch twice"),
        ("mixup=0.2", {"columns": ["inputs_embeds"]}, "mixup: no weight of the body moves"),
        ("span_cutoff=0.2", {"columns": ["inputs_embeds"]}, "span_cutoff: no weight of the body moves"),
        ("mixup=0.2", {"problem_type": None}, "mixup: it mixes labels of whole rows"),
        ("mixup=0.2", {"family": "albert"}, "mixup: the layers of this model share their weights"),
    ],
)
def test_what_does_not_go_together_is_refused(checkpoints, augment, options, message):
    model = classifier(checkpoints[options.pop("family", "bert")])
    model.config.problem_type = options.pop("problem_type", "single_label_classification")
    columns = options.pop("columns", ["input_ids", "labels"])
    with pytest.raises(InputError, match=message):
        augment_batches(model, [augment], TuningArguments(**options), classification_loss, columns)
