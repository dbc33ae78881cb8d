"""The losses equal torch's mean, and do not depend on how a step is cut into micro-batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset
from sklearn.utils.class_weight import compute_class_weight

from ptft_recipes.errors import InputError
from ptft_recipes.labels import MULTI, REGRESSION, SINGLE
from ptft_recipes.objectives import balanced_class_weights, classification_loss

ROWS, LABELS = 12, 3
WEIGHTS = torch.tensor([0.5, 2.0, 1.25])
every_type = pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
every_setting = pytest.mark.parametrize(
    ("problem_type", "options"),
    [
        (SINGLE, {}),
        (SINGLE, {"class_weights": WEIGHTS}),
        (SINGLE, {"label_smoothing": 0.1}),
        (SINGLE, {"class_weights": WEIGHTS, "label_smoothing": 0.1}),
        (MULTI, {}),
        (MULTI, {"class_weights": WEIGHTS}),
        (MULTI, {"label_smoothing": 0.1}),
        (MULTI, {"class_weights": WEIGHTS, "label_smoothing": 0.1}),
        (REGRESSION, {}),
    ],
)


def batch(problem_type, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, 1 if problem_type == REGRESSION else LABELS, generator=generator).to(dtype)
    labels = {
        SINGLE: torch.randint(LABELS, (ROWS,), generator=generator),
        MULTI: torch.randint(2, (ROWS, LABELS), generator=generator).float(),
        REGRESSION: torch.randn(ROWS, generator=generator),
    }[problem_type]
    return logits.requires_grad_(), labels


def loss_and_gradient(logits, labels, **kwargs):
    logits = logits.detach().requires_grad_()
    loss = classification_loss(SimpleNamespace(logits=logits), labels, **kwargs)
    loss.backward()
    return loss.detach(), logits.grad


def torch_mean(problem_type, logits, labels, class_weights=None, label_smoothing=0.0):
    """Torch's own mean; with class weights the mean of what torch gives per item."""
    if problem_type == REGRESSION:
        return F.mse_loss(logits[:, 0], labels)
    if problem_type == MULTI:
        labels = torch.where(labels == 1, 1 - label_smoothing / 2, label_smoothing / 2)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=class_weights)
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    per_row = F.cross_entropy(logits, labels, weight=class_weights, label_smoothing=label_smoothing, reduction="none")
    return per_row[labels != -100].mean()


@every_setting
@pytest.mark.parametrize("count", [None, "int", "tensor"])
def test_the_loss_of_a_whole_batch_is_torchs_mean(problem_type, options, count):
    logits, labels = batch(problem_type)
    items = {None: None, "int": labels.numel(), "tensor": torch.tensor(labels.numel())}[count]
    loss = classification_loss(SimpleNamespace(logits=logits), labels, items, problem_type=problem_type, **options)
    assert loss.shape == ()
    torch.testing.assert_close(loss, torch_mean(problem_type, logits, labels, **options))


@every_setting
@pytest.mark.parametrize("sizes", [[6, 6], [5, 5, 2], [1] * ROWS, [11, 1]], ids=str)
def test_micro_batches_add_up_to_the_full_batch(problem_type, options, sizes):
    logits, labels = batch(problem_type)
    settings = {"problem_type": problem_type, "num_items_in_batch": labels.numel()} | options
    full, full_gradient = loss_and_gradient(logits, labels, **settings)
    parts = [
        loss_and_gradient(*part, **settings) for part in zip(logits.split(sizes), labels.split(sizes), strict=True)
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), full)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), full_gradient)
    assert full_gradient.abs().min() > 0


@every_setting
def test_rows_labelled_minus_100_do_not_count(problem_type, options):
    logits, labels = batch(problem_type)
    options = {"problem_type": problem_type} | options
    ignored = torch.tensor([0, 4, 5, 11])
    labels[ignored] = -100
    kept = (labels != -100).view(ROWS, -1)[:, 0]
    loss, gradient = loss_and_gradient(logits, labels, **options)
    expected, expected_gradient = loss_and_gradient(logits[kept], labels[kept], **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss, torch_mean(logits=logits.detach()[kept], labels=labels[kept], **options))
    torch.testing.assert_close(gradient[kept], expected_gradient)
    assert gradient[ignored].abs().max() == 0
    # Cut unevenly, and divided by what Trainer counts over the whole step:
    parts = [
        loss_and_gradient(*part, num_items_in_batch=(labels != -100).sum(), **options)
        for part in zip(logits.split([6, 1, 5]), labels.split([6, 1, 5]), strict=True)
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), expected)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts])[kept], expected_gradient)


@pytest.mark.parametrize("options", [{}, {"class_weights": WEIGHTS, "label_smoothing": 0.1}], ids=["plain", "both"])
def test_a_label_per_token_is_scored_like_as_many_rows(options):
    logits, labels = batch(SINGLE)
    labels[torch.tensor([3, 7])] = -100
    loss, gradient = loss_and_gradient(logits, labels, **options)
    tokens, token_gradient = loss_and_gradient(logits.reshape(3, 4, LABELS), labels.reshape(3, 4), **options)
    torch.testing.assert_close(tokens, loss)
    torch.testing.assert_close(token_gradient.reshape(ROWS, LABELS), gradient)


@every_setting
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_scored_in_float32(problem_type, options, dtype):
    logits, labels = batch(problem_type, dtype)
    loss, gradient = loss_and_gradient(logits, labels, problem_type=problem_type, **options)
    exact, exact_gradient = loss_and_gradient(logits.float(), labels, problem_type=problem_type, **options)
    assert loss.dtype == torch.float32
    assert loss == exact
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, exact_gradient.to(dtype))
    assert loss != exact.to(dtype).float()  # the rounding would show


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_class_weights_of_any_precision_fit(problem_type):
    logits, labels = batch(problem_type)
    outputs = SimpleNamespace(logits=logits)
    loss = classification_loss(outputs, labels, problem_type=problem_type, class_weights=WEIGHTS)
    double = classification_loss(outputs, labels, problem_type=problem_type, class_weights=WEIGHTS.double())
    assert loss == double


def test_multi_label_smoothing_spreads_over_presence_and_absence():
    logits, labels = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    _, gradient = loss_and_gradient(logits, labels, problem_type=MULTI, label_smoothing=0.2, num_items_in_batch=1)
    torch.testing.assert_close(gradient, torch.tensor([[0.5 - 0.9, 0.5 - 0.1]]))


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"class_weights": torch.ones(1)}], ids=["smoothing", "weights"]
)
def test_a_regression_refuses_what_it_would_ignore(options):
    logits, labels = batch(REGRESSION)
    with pytest.raises(InputError, match="regression has no classes"):
        classification_loss(SimpleNamespace(logits=logits), labels, problem_type=REGRESSION, **options)


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)], ids=str)
def test_a_regression_compares_row_with_row(shape):
    logits, labels = batch(REGRESSION)
    loss = classification_loss(SimpleNamespace(logits=logits), labels.reshape(shape), problem_type=REGRESSION)
    torch.testing.assert_close(loss, ((logits[:, 0] - labels) ** 2).mean())  # no [rows, rows] by broadcasting


# --- class weights ---


def names(count):
    return [f"label {i}" for i in range(count)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [2, 5])
def test_balanced_weights_equal_scikit_learn_and_their_mean_over_the_rows_is_1(size, seed):
    labels = np.random.default_rng(seed).choice(size, p=np.arange(1, size + 1) / sum(range(size + 1)), size=200)
    weights = balanced_class_weights(labels, label_names=names(size))
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(size), y=labels), rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_a_power_lies_between_rows_and_labels(power):
    labels = np.repeat([0, 1, 2], [100, 10, 1])
    weights = balanced_class_weights(labels, power, label_names=names(3)).double()
    assert weights[labels].mean() == pytest.approx(1, rel=1e-6)
    ratios = (weights / weights[0]).tolist()
    assert ratios == pytest.approx([1, 10**power, 100**power], rel=1e-5)


def test_power_0_weighs_nothing_also_in_a_regression():
    assert balanced_class_weights([0, 1], 0, label_names=names(2)) is None
    assert balanced_class_weights([0.1, 0.2], 0.0, problem_type=REGRESSION, label_names=names(1)) is None


@pytest.mark.parametrize("power", [-0.1, 1.1, float("nan")])
def test_a_power_outside_0_and_1_is_refused(power):
    with pytest.raises(InputError, match="must be between 0"):
        balanced_class_weights([0, 1], power, label_names=names(2))


@pytest.mark.parametrize("unused", [0, 1, 3], ids=["first", "middle", "last"])
def test_a_label_in_no_row_keeps_its_place(unused):
    used = [k for k in range(4) if k != unused]
    labels = np.repeat(used, [10, 20, 30])
    weights = balanced_class_weights(labels, label_names=names(4))
    assert weights.shape == (4,)
    assert weights[unused] == 1
    np.testing.assert_allclose(weights[used], compute_class_weight("balanced", classes=np.array(used), y=labels))
    assert weights[labels].mean() == pytest.approx(1)
    logits = torch.zeros(2, 4)
    assert torch.isfinite(classification_loss(SimpleNamespace(logits=logits), torch.tensor([unused, used[0]]),
                                              class_weights=weights))  # fmt: skip


def test_a_column_of_a_data_set_has_the_weights_of_its_numbers():
    numbers = [0, 0, 0, 1, 1, 2]
    dataset = Dataset.from_dict({"labels": numbers}).cast_column("labels", ClassLabel(names=["a", "b", "c", "d"]))
    weights = balanced_class_weights(dataset["labels"], label_names=dataset.features["labels"].names)
    assert weights.tolist() == pytest.approx([2 / 3, 1, 2, 1])
    assert torch.equal(weights, balanced_class_weights(numbers, label_names=names(4)))
    assert torch.equal(weights, balanced_class_weights(torch.tensor(numbers), label_names=names(4)))


def test_weights_of_several_labels_are_absent_by_present():
    labels = [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1]]
    # The second is in no row, the fourth in every row: a weight 0 would hide every example of it.
    assert balanced_class_weights(labels, problem_type=MULTI, label_names=names(4)).tolist() == pytest.approx(
        [1 / 3, 1, 3, 1]
    )
    dataset = Dataset.from_dict({"labels": np.array(labels, dtype=np.float32)})
    assert balanced_class_weights(
        dataset["labels"], problem_type=MULTI, label_names=names(4)
    ).tolist() == pytest.approx([1 / 3, 1, 3, 1])


def test_weights_of_several_labels_balance_presence_and_absence():
    labels = (np.random.default_rng(0).random((300, LABELS)) < [0.1, 0.5, 0.8]).astype(np.float32)
    weights = balanced_class_weights(labels, problem_type=MULTI, label_names=names(LABELS))
    _, gradient = loss_and_gradient(
        torch.zeros(300, LABELS), torch.tensor(labels), problem_type=MULTI, class_weights=weights
    )
    torch.testing.assert_close(gradient.sum(dim=0), torch.zeros(LABELS), atol=1e-5, rtol=0)


def test_a_regression_has_no_class_weights():
    with pytest.raises(InputError, match="regression has no classes to weigh"):
        balanced_class_weights([0.1, 0.2], problem_type=REGRESSION, label_names=names(1))


def test_a_step_without_a_labelled_token_has_loss_zero():
    outputs = SimpleNamespace(logits=torch.randn(2, 3, 4, requires_grad=True))
    for items in (None, 0, torch.tensor(0)):
        loss = classification_loss(outputs, torch.full((2, 3), -100), items)
        loss.backward()
        assert loss.item() == 0
    assert not outputs.logits.grad.any()
