"""L2-SP, R-Drop and adversarial steps do what their papers' formulas say, inside RecipeTrainer."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import ALL_FAMILIES
from numerics.optimizer_step import build_trainer, rows
from transformers import AutoModelForSequenceClassification, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput

from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, load_model
from ptft_recipes.objectives import classification_loss
from ptft_recipes.regularization import apply_mixout, perturbed_embeddings, r_drop_loss, watched_embeddings
from ptft_recipes.tuning import TuningArguments, apply_tuning

NEW = ["classifier"]


def trained(checkpoint, tmp_path, tuning_args, steps=1, **kwargs):
    """Train for some steps with plain SGD; return the weights before and after, and the gradients of the last step."""
    trainer, keep = build_trainer(
        checkpoint, "sequence", str(tmp_path), 8, 1, tuning_args=tuning_args, new_modules=NEW, **kwargs
    )
    trainer.args.max_steps = steps
    trainer.args.learning_rate, trainer.args.lr_scheduler_type = 0.1, "constant"
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    return before, dict(trainer.model.named_parameters()), keep.gradients


def test_l2_sp_is_the_gradient_of_the_papers_penalty(checkpoint, tmp_path):
    strength = 0.5
    start, one, _ = trained(checkpoint, tmp_path, TuningArguments(l2_sp=strength))
    _, plain, _ = trained(checkpoint, tmp_path, TuningArguments())
    for name, value in plain.items():  # nothing to pull back yet
        torch.testing.assert_close(one[name], value, msg=name)
    _, two, gradients = trained(checkpoint, tmp_path, TuningArguments(l2_sp=strength), steps=2)
    pulled = 0
    for name, value in one.items():
        penalty = 0 if name.startswith(NEW[0]) else strength * (value - start[name])
        torch.testing.assert_close(two[name], value - 0.1 * (gradients[name] + penalty), rtol=1e-4, atol=1e-6)
        pulled += not name.startswith(NEW[0])
    assert pulled > 10


def test_l2_sp_pulls_to_the_checkpoint_also_after_a_resume(checkpoint, tmp_path):
    options = {"tuning_args": TuningArguments(l2_sp=2.0), "new_modules": NEW}
    ends = []
    for interrupted in (False, True):
        folder = tmp_path / str(interrupted)
        trainer, _ = build_trainer(checkpoint, "sequence", str(folder), 8, 1, **options)
        trainer.args.max_steps, trainer.args.save_steps, trainer.args.save_strategy = 4, 2, "steps"
        trainer.args.lr_scheduler_type = "constant"
        if interrupted:
            trainer.args.max_steps = 2
            trainer.train()
            trainer, _ = build_trainer(checkpoint, "sequence", str(folder), 8, 1, **options)
            trainer.args.max_steps, trainer.args.lr_scheduler_type = 4, "constant"
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
        else:
            trainer.train()
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())


def test_l2_sp_needs_weights_to_hold(checkpoint, tokenizer, tmp_path):
    model, new = load_model(AutoModelForSequenceClassification, ModelArguments(checkpoint), tokenizer)
    lora = apply_tuning(model, TuningArguments("lora"), "SEQ_CLS", new)
    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 1)
    with pytest.raises(InputError, match="no pre-trained weight moves"):
        type(trainer)(lora, trainer.args, tuning_args=TuningArguments("lora", l2_sp=0.1), new_modules=new)


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_r_drop_is_half_of_the_papers_equation(problem_type):
    torch.manual_seed(0)
    first, second = torch.randn(5, 4), torch.randn(5, 4)
    if problem_type.startswith("single"):
        labels = torch.tensor([0, 3, 1, -100, 2])
        p, q = (torch.distributions.Categorical(logits=logits) for logits in (first, second))
        kept = labels != -100
    else:
        labels = torch.randint(0, 2, (5, 4)).float()
        p, q = (torch.distributions.Bernoulli(logits=logits) for logits in (first, second))
        kept = labels == labels
    divergence = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    plain = partial(classification_loss, problem_type=problem_type)
    losses = [plain(SequenceClassifierOutput(logits=logits), labels) for logits in (first, second)]
    expected = 0.5 * (losses[0] + losses[1] + 3.0 / 2 * divergence[kept].sum() / kept.sum())
    both = SequenceClassifierOutput(logits=torch.cat([first, second]))
    doubled = torch.cat([labels, labels])
    loss = partial(r_drop_loss, loss=plain, strength=3.0, problem_type=problem_type)
    torch.testing.assert_close(loss(both, doubled), expected)
    torch.testing.assert_close(loss(both, doubled, num_items_in_batch=int(kept.sum())), expected)


def test_r_drop_without_dropout_is_the_plain_loss(checkpoint, tmp_path):
    _, plain, plain_gradients = trained(checkpoint, tmp_path, TuningArguments())
    _, weights, gradients = trained(checkpoint, tmp_path, TuningArguments(r_drop=5.0))
    assert len(weights) == len(plain) > 10
    for name, value in plain_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_r_drop_sees_two_different_passes(checkpoint, tmp_path):
    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 1, tuning_args=TuningArguments(r_drop=1.0))
    seen = []
    plain = trainer.plain_loss_func

    def watch(outputs, labels, num_items_in_batch=None, **kwargs):
        first, second = outputs.logits.detach().chunk(2)
        seen.append((first - second).abs().min(dim=-1).values)
        return plain(outputs, labels, num_items_in_batch)

    trainer.compute_loss_func.keywords["loss"] = watch
    trainer.model.dropout.p = 0.5
    trainer.train()
    assert len(seen) == 1
    assert len(seen[0]) == 8
    assert (seen[0] > 0).all()


def test_r_drop_of_a_regression_is_refused():
    with pytest.raises(InputError, match="a regression predicts no distribution"):
        r_drop_loss(None, None, loss=None, strength=1.0, problem_type="regression")


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_an_adversarial_step_goes_up_the_gradient_by_its_length(checkpoints, tokenizer, family):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints[family]).eval()
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 3, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    labels = torch.tensor([0, 1])

    def losses():
        return F.cross_entropy(model(**inputs).logits, labels, reduction="none")

    with watched_embeddings(model) as embeddings:
        clean = losses()
        clean.sum().backward()
    (first,) = embeddings
    shifts = []
    with perturbed_embeddings(model, first.grad, 0.01), watched_embeddings(model) as embeddings:
        adversarial = losses()
        shifts.append(embeddings[0] - first)
    assert (adversarial > clean).all()
    torch.testing.assert_close(shifts[0].flatten(1).norm(dim=1), torch.full((2,), 0.01), rtol=1e-3, atol=0)
    with perturbed_embeddings(model, -first.grad, 0.01):
        assert (losses() < clean).all()
    torch.testing.assert_close(losses(), clean)  # nothing stays behind


def test_fgm_adds_the_gradient_at_the_perturbed_embeddings(checkpoint, tmp_path):
    _, _, gradients = trained(checkpoint, tmp_path, TuningArguments(fgm=1.0))
    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 1)
    model, data = trainer.model.train(), trainer.train_dataset
    ids, labels = torch.tensor(data["input_ids"]), torch.tensor(data["labels"])
    with watched_embeddings(model) as embeddings:
        F.cross_entropy(model(input_ids=ids).logits, labels).backward()
    gradient = embeddings[0].grad
    norm = gradient.flatten(1).norm(dim=1)[:, None, None]
    # By the definition, through inputs_embeds: the word embeddings of the adversarial pass, shifted row by row.
    shifted = model.get_input_embeddings()(ids) + gradient / norm
    F.cross_entropy(model(inputs_embeds=shifted).logits, labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_fgm_works_above_frozen_embeddings(checkpoint, tokenizer, tmp_path):
    model, new = load_model(
        AutoModelForSequenceClassification, ModelArguments(checkpoint), tokenizer, label_names=["a", "b", "c"]
    )
    lora = apply_tuning(model, TuningArguments("lora", fgm=1.0), "SEQ_CLS", new)
    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 1)
    trainer = type(trainer)(
        lora, trainer.args, train_dataset=trainer.train_dataset, tuning_args=TuningArguments("lora", fgm=1.0),
        new_modules=new, compute_loss_func=classification_loss,
    )  # fmt: skip
    before = {name: p.clone() for name, p in lora.named_parameters() if "lora_B" in name}
    trainer.train()
    after = dict(lora.named_parameters())
    assert before
    assert not any(torch.equal(after[name], value) for name, value in before.items())


def test_mixout_mixes_by_its_formula(checkpoint):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    layer = model.bert.encoder.layer[0].output.dense
    start = layer.weight.detach().clone()
    apply_mixout(model, 0.7, NEW)
    with torch.no_grad():
        layer.weight.add_(1.0)  # as if trained
    identity = torch.eye(start.shape[1])
    model.train()
    seen = torch.stack([layer(identity).T - layer.bias[:, None] for _ in range(400)])
    # (U - p U) / (1 - p) = U where the pre-trained value was taken, (W - p U) / (1 - p) elsewhere.
    is_start = torch.isclose(seen, start, atol=1e-4)
    is_trained = torch.isclose(seen, (layer.weight - 0.7 * start) / 0.3, atol=1e-4)
    assert (is_start ^ is_trained).all()
    assert abs(is_start.float().mean() - 0.7) < 0.01
    torch.testing.assert_close(seen.mean(0).mean(), layer.weight.mean(), rtol=0, atol=0.01)
    torch.testing.assert_close(layer.eval()(identity).T - layer.bias[:, None], layer.weight)


def test_mixout_trains_and_leaves_nothing_in_what_is_saved(checkpoint, tmp_path):
    before, after, _ = trained(checkpoint, tmp_path, TuningArguments(mixout=0.5))
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert "bert.encoder.layer.0.output.dense.weight" in moved
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    names = set(model.state_dict())
    apply_mixout(model, 0.5, NEW)
    assert set(model.state_dict()) == names


def test_mixout_needs_weights_to_mix(checkpoint, tokenizer):
    model, new = load_model(AutoModelForSequenceClassification, ModelArguments(checkpoint), tokenizer)
    with pytest.raises(InputError, match="no pre-trained matrix moves"):
        apply_mixout(apply_tuning(model, TuningArguments("bitfit"), "SEQ_CLS", new), 0.5, new)


def test_neftune_of_trainer_adds_its_noise_in_training_only(checkpoint, tmp_path):
    noise = {True: [], False: []}

    def watch(module, args, output):
        plain = F.embedding(args[0], module.weight)
        noise[module.training].append(((output - plain).abs().max().item(), plain[0].numel()))

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):  # behind NEFTune's own hook
            model.get_input_embeddings().register_forward_hook(watch)

    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 1, eval_dataset=rows("sequence", 8))
    trainer.add_callback(Watch())
    trainer.neftune_noise_alpha = 5.0
    trainer.train()
    trainer.evaluate()
    assert [value for value, _ in noise[False]] == [0.0]
    ((largest, size),) = noise[True]
    assert 0.9 < largest / (5.0 / size**0.5) <= 1.0001, (
        "uniform between -alpha / sqrt(length * hidden) and its opposite"
    )
