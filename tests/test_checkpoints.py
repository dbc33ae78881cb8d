"""Which checkpoint counts as complete, and when an output folder is taken."""

import pytest
from transformers import TrainingArguments

from ptft_recipes.checkpoints import check_output_dir, find_checkpoint, saved_checkpoints
from ptft_recipes.errors import InputError


@pytest.fixture
def run_folder(tmp_path):
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-9", "checkpoint-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()  # cut off in mid-save: the state, written last, is missing
    return tmp_path


def arguments(folder, resume=None):
    return TrainingArguments(str(folder), use_cpu=True, resume_from_checkpoint=resume)


def test_complete_checkpoints_count_in_the_order_of_their_steps(run_folder):
    assert [path.name for path in saved_checkpoints(run_folder)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]


def test_last_is_the_newest_complete_one(run_folder):
    assert find_checkpoint(arguments(run_folder, "last")) == str(run_folder / "checkpoint-10")
    assert find_checkpoint(arguments(run_folder)) is None


def test_a_path_is_taken_as_it_is(run_folder):
    path = str(run_folder / "checkpoint-2")
    assert find_checkpoint(arguments(run_folder, path)) == path
    with pytest.raises(InputError, match="no complete checkpoint"):
        find_checkpoint(arguments(run_folder, str(run_folder / "checkpoint-11")))


def test_a_used_folder_is_refused_unless_the_run_goes_on(run_folder):
    with pytest.raises(InputError, match="unfinished run; go on with --resume_from_checkpoint last"):
        check_output_dir(arguments(run_folder))
    check_output_dir(arguments(run_folder, "last"))
    (run_folder / "results.json").write_text("{}")
    with pytest.raises(InputError, match="holds a finished run"):
        check_output_dir(arguments(run_folder, "last"))


def test_an_empty_folder_is_free(tmp_path):
    check_output_dir(arguments(tmp_path))
    check_output_dir(arguments(tmp_path / "new"))
    with pytest.raises(InputError, match="has no complete checkpoint"):
        check_output_dir(arguments(tmp_path, "last"))


def test_a_save_that_was_cut_off_is_no_checkpoint_to_go_on_from(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    check_output_dir(arguments(tmp_path))


def test_an_output_dir_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is no folder that can be written to"):
        check_output_dir(arguments(tmp_path / "file" / "run"))
