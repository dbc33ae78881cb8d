"""The estimate of memory: what it counts, that it leaves no trace, and what is refused before any compute."""

import json

import psutil
import pytest
import torch
from numerics.optimizer_step import build_trainer
from transformers import AutoModelForSequenceClassification

from ptft_recipes import memory
from ptft_recipes.errors import InputError
from ptft_recipes.generators import generator_states
from ptft_recipes.live_tensors import LiveTensors, extrapolate
from ptft_recipes.memory import GIB, Estimate, estimate_memory, free_memory

pytestmark = pytest.mark.usefixtures("estimates_memory")
SHORT = ["--max_steps", "2", "--do_predict", "false", "--save_strategy", "no", "--eval_strategy", "no"]
SHORT += ["--load_best_model_at_end", "false"]


def test_tensors_count_while_they_live():
    known = torch.ones(1000)
    with LiveTensors([known]) as live:
        known.add_(1)
        assert live.live == 0
        first = torch.ones(100)
        view = first[10:].view(-1)
        del first
        assert live.live == 400, "a view keeps its storage, which counts once"
        second = view * 2
        assert live.live == 400 + 360
        del view
        assert live.live == 360
        del second
    assert live.live == 0
    assert max(live.after) == 760


def test_tensors_that_are_kept_for_the_backward_pass_count():
    weight = torch.ones(100, requires_grad=True)
    with LiveTensors([weight]) as live:
        y = weight.exp()  # kept
        loss = y.sum()
        before = live.live
        assert before >= 400
        loss.backward()
        del y, loss
    assert live.live == 400, "the gradient"


def test_a_peak_is_found_where_it_will_be():
    assert extrapolate([100, 10], [100, 20], (1, 2), 5) == 100
    assert extrapolate([100, 10], [100, 20], (1, 2), 20) == 200
    assert extrapolate([4, 8, 6], [8, 16], (2, 4), 8) == 32, "of passes that differ only the peaks"


@pytest.fixture
def trainer(checkpoint, tmp_path):
    def build(batch_size=8, accumulation=1, **options):
        trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), batch_size, accumulation)
        for name, value in options.items():
            setattr(trainer.args, name, value)
        return trainer

    return build


def test_it_counts_weights_gradients_and_optimizer_to_the_byte(trainer):
    found = estimate_memory(trainer())
    count = sum(weight.numel() for weight in trainer().model.parameters())
    assert found.gradients == 4 * count
    assert found.optimizer == 8 * count
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in trainer().model.buffers())
    assert found.weights == 4 * count + buffers
    assert found.total == found.program + found.weights + found.gradients + found.optimizer + found.activations


@pytest.mark.parametrize(("optim", "per_weight"), [("sgd", 0), ("adamw_torch", 8), ("adafactor", 0.5)])
def test_the_optimizer_is_asked_and_not_assumed(trainer, optim, per_weight):
    from transformers.training_args import OptimizerNames

    found = estimate_memory(trainer(optim=OptimizerNames(optim)))
    count = found.gradients / 4
    assert found.optimizer == pytest.approx(per_weight * count, abs=0.3 * count)


def test_few_rows_tell_what_many_need(trainer):
    whole = trainer(batch_size=16)
    direct = {}
    for rows in (2, 4, 16):
        batch = whole.longest_rows(rows)
        model = whole.model
        with memory._as_in_training(whole), LiveTensors([*model.parameters(), *model.buffers()]) as live:
            whole.training_step(model, batch, torch.tensor(rows))
        direct[rows] = max(live.after)
    assert direct[16] > 2.5 * direct[4] > 3 * direct[2]
    assert memory._peak_of_a_pass(whole) == pytest.approx(direct[16], rel=0.02)


def test_what_changes_the_need_changes_the_estimate(trainer):
    activations = {size: estimate_memory(trainer(batch_size=size)).activations for size in (8, 16, 32)}
    assert activations[32] - activations[16] == pytest.approx(2 * (activations[16] - activations[8]), rel=0.1)
    less = estimate_memory(trainer(batch_size=32, activation_checkpointing=True)).activations
    assert less < 0.8 * activations[32]
    assert estimate_memory(trainer(batch_size=4, accumulation=8)).activations < activations[8]
    frozen = trainer(batch_size=8)
    for name, weight in frozen.model.named_parameters():
        weight.requires_grad = name.startswith("classifier")
    found = estimate_memory(frozen)
    assert found.optimizer == 2 * found.gradients < found.weights / 20
    assert found.activations < activations[8]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_leaves_no_trace(checkpoint, tmp_path, checkpointing):
    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 2)
    trainer.args.activation_checkpointing = checkpointing
    config = trainer.model.config
    config.hidden_dropout_prob = 0.1
    torch.manual_seed(0)
    trainer.model = AutoModelForSequenceClassification.from_pretrained(checkpoint, config=config).eval()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    states = generator_states()
    assert estimate_memory(trainer).activations > 0
    after = generator_states()
    assert torch.equal(after["cpu"], states["cpu"])
    assert after["python"] == states["python"]
    assert (after["numpy"][1] == states["numpy"][1]).all()
    assert after["numpy"][2:] == states["numpy"][2:]
    assert all(torch.equal(trainer.model.state_dict()[name], tensor) for name, tensor in before.items())
    assert [name for name, weight in trainer.model.named_parameters() if weight.grad is not None] == []
    assert not trainer.model.training
    assert not trainer.model.is_activation_checkpointing
    assert "forward" not in vars(trainer.model)
    assert trainer.model.get_input_embeddings()._forward_hooks == {}


def test_a_run_says_what_it_needs_and_what_it_used(run_cls, tmp_path, library_log):
    results = run_cls(*SHORT, output_dir=tmp_path / "run")
    told = [record.getMessage() for record in library_log.records if record.getMessage().startswith("memory: ")]
    assert len(told) == 2
    assert " GiB = program " in told[0]
    assert told[0].endswith(" GiB free")
    assert told[1].startswith("memory: used ")
    for kept in (
        results["run"]["memory"],
        json.loads((tmp_path / "run" / "results.json").read_text())["run"]["memory"],
    ):
        assert kept.keys() == {"estimated_gib", "free_gib", "used_gib"}
        estimated = kept["estimated_gib"]
        assert estimated.keys() == {"total", "program", "weights", "gradients", "optimizer", "activations"}
        assert estimated["total"] == pytest.approx(sum(estimated.values()) - estimated["total"], abs=0.01)
        assert estimated["total"] < kept["free_gib"]
        assert kept["used_gib"] >= estimated["program"]


@pytest.mark.parametrize("fixture", ["run_mlm", "run_rtd", "run_sentences", "run_span", "run_seq2seq", "run_qa"])
def test_every_kind_of_batch_can_be_estimated(fixture, request, library_log):
    request.getfixturevalue(fixture)(*SHORT)
    told = [record.getMessage() for record in library_log.records if record.getMessage().startswith("memory: ")]
    assert [line.split()[1] for line in told] == ["about", "used"]
    assert "activations 0.00" in told[0], "tiny, and measured"


def test_a_stream_is_estimated_too(run_mlm, library_log):
    run_mlm(*SHORT, "--streaming", "true")
    assert "memory: about " in library_log.text


@pytest.mark.parametrize(
    ("free", "refused"), [(lambda e: e.total + 1, False), (lambda e: e.total - 1, None), (lambda e: e.fixed - 1, True)]
)
def test_what_does_not_fit_is_told_before_training(trainer, monkeypatch, library_log, free, refused):
    tight, steps = trainer(batch_size=8, accumulation=2), []
    estimate = Estimate(program=1 * GIB, weights=2 * GIB, gradients=2 * GIB, optimizer=4 * GIB, activations=3 * GIB)
    monkeypatch.setattr(memory, "estimate_memory", lambda trainer: estimate)
    monkeypatch.setattr(memory, "free_memory", lambda *_: free(estimate))
    monkeypatch.setattr(tight, "training_step", lambda *args: steps.append(1))
    helps = (
        r"What helps: --gradient_checkpointing true; --per_device_train_batch_size 4 --global_batch_size 16; --tuning"
    )
    if refused:
        with pytest.raises(
            InputError, match=rf"needs about 12.00 GiB = program 1.00 .* 9.00 GiB are free. {helps} lora"
        ):
            tight.train()
        assert steps == []
        return
    tight.plan_memory()
    assert ("What helps" in library_log.text) == (refused is None)


def test_rows_at_once_are_fewer_where_the_estimate_does_not_fit(trainer, monkeypatch, library_log):
    def need(trainer):
        return Estimate(100, 100, 100, 100, 50 * trainer.args.per_device_train_batch_size)

    monkeypatch.setattr(memory, "estimate_memory", need)
    monkeypatch.setattr(memory, "free_memory", lambda *_: 400 + 50 * 3)
    tight = trainer(batch_size=8)
    tight.args.auto_find_batch_size = True
    tight.train()
    assert (tight.args.per_device_train_batch_size, tight.args.gradient_accumulation_steps) == (2, 4)
    assert "batch: 8 rows at once would not fit" in library_log.text
    assert "batch: 4 rows at once would not fit" in library_log.text
    assert "batch: 8 rows = 1 process x 2 rows x 4 accumulated" in library_log.text
    monkeypatch.setattr(memory, "free_memory", lambda *_: 1)
    with pytest.raises(InputError, match="are free"):
        tight.plan_memory()


@pytest.mark.parametrize("engine", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_a_model_that_is_cut_or_offloaded_is_neither_estimated_nor_refused(trainer, monkeypatch, library_log, engine):
    monkeypatch.setattr(memory, "free_memory", lambda *_: 1)
    cut = trainer()
    monkeypatch.setattr(cut, engine, True)
    cut.plan_memory()
    assert "memory: not estimated, because the model is cut over the processes" in library_log.text


def test_much_more_than_there_is_is_refused_whatever_it_is_for(trainer, monkeypatch):
    monkeypatch.setattr(memory, "estimate_memory", lambda trainer: Estimate(1, 1, 1, 1, 100))
    monkeypatch.setattr(memory, "free_memory", lambda *_: 60)
    with pytest.raises(InputError, match="are free"):
        trainer().plan_memory()


def test_what_cannot_be_estimated_is_left_to_training(trainer, monkeypatch, library_log):
    def fail(trainer):
        raise ValueError("no such\nthing")

    monkeypatch.setattr(memory, "estimate_memory", fail)
    tight = trainer()
    tight.plan_memory()
    assert "memory: not estimated (ValueError: no such thing)" in library_log.text
    assert tight.memory is None


def test_a_container_may_have_less_than_the_machine(tmp_path):
    resident = psutil.Process().memory_info().rss
    for version, limit, used, cache in (
        (2, "memory.max", "memory.current", "inactive_file"),
        (1, "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        folder = tmp_path / str(version)
        (folder / "memory").mkdir(parents=True)
        (folder / limit).write_text(f"{2**28}\n")
        (folder / used).write_text(f"{2**27}\n")
        (folder / limit).with_name("memory.stat").write_text(f"anon 5\n{cache} {2**20}\n")
        found = free_memory(torch.device("cpu"), 1, folder)
        assert found - resident == pytest.approx(2**27 + 2**20, abs=2**24)
        assert free_memory(torch.device("cpu"), 2, folder) - resident == pytest.approx(2**26 + 2**19, abs=2**24)
        (folder / limit).write_text("max\n")
        assert free_memory(torch.device("cpu"), 1, folder) > 2**28
