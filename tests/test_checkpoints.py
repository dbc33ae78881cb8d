"""A seal proves every byte of a checkpoint, and rotation touches nothing but what it proves to be old."""

import json
import os

import pytest

from ptft_recipes import checkpoints
from ptft_recipes.checkpoints import MANIFEST, checkpoints_in, find_damage, rotate_checkpoints, seal_checkpoint, sweep

FILES = {"model.safetensors": b"w" * 1000, "optimizer.pt": b"o" * 3000, "part/state.json": b'{"step": 3}'}


def make(output_dir, step, run_id="mine", sealed=True):
    folder = output_dir / f"checkpoint-{step}"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if sealed:
        seal_checkpoint(folder, {"id": run_id})
    return folder


def test_a_sealed_checkpoint_is_intact_wherever_it_is_moved(tmp_path):
    folder = make(tmp_path, 3)
    assert find_damage(folder) == ""
    assert find_damage(folder.rename(tmp_path / "elsewhere")) == ""
    manifest = json.loads((tmp_path / "elsewhere" / MANIFEST).read_text())
    assert sorted(manifest["sealed"]["files"]) == sorted(FILES)
    assert not list((tmp_path / "elsewhere").glob("*.part"))


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", ["delete", "truncate", "empty", "grow", "flip the first bit", "flip the last bit"])
def test_every_damage_to_every_file_is_found(tmp_path, name, damage):
    folder = make(tmp_path, 3)
    path = folder / name
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        if "flip" in damage:
            data[0 if "first" in damage else -1] ^= 1
        path.write_bytes({"truncate": data[:-1], "empty": b"", "grow": data + b"\n\0"}.get(damage, bytes(data)))
    assert name in find_damage(folder)


def test_a_save_that_was_cut_off_is_damaged(tmp_path):
    assert "the save was cut off" in find_damage(make(tmp_path, 3, sealed=False))
    assert find_damage(tmp_path / "nowhere") == "it does not exist"


def test_the_manifest_is_written_after_every_file_has_reached_the_disk(tmp_path, monkeypatch):
    folder, events = make(tmp_path, 3, sealed=False), []
    opened = {}

    def fsync(descriptor):
        events.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))

    def replace(source, target):
        events.append("replace")
        opened["order"] = events.copy()
        os.rename(source, target)

    monkeypatch.setattr(checkpoints.os, "fsync", fsync)
    monkeypatch.setattr(checkpoints.os, "replace", replace)
    seal_checkpoint(folder, {"id": "mine"})
    before = opened["order"][:-1]
    assert sorted(before[:3]) == sorted(f"checkpoint-3/{name}" for name in FILES)
    assert before[3] == f"checkpoint-3/{MANIFEST}.part"
    assert sorted(events[5:]) == [".", "checkpoint-3", "checkpoint-3/part"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_name_files_outside(tmp_path, monkeypatch, name):
    folder = make(tmp_path, 3)
    sealed = {"files": {name: {"size": 1, "sha256": "0"}}, "run": {"id": "mine"}}
    (folder / MANIFEST).write_text(json.dumps({"sha256": checkpoints._digest(sealed), "sealed": sealed}))
    assert find_damage(folder) == f"{MANIFEST} names a file outside of it, {name}"


@pytest.mark.parametrize("text", ["", "[]", "null", "1", '{"sealed": {}}', "[" * 100_000, "\xff"])
def test_nonsense_is_no_manifest(tmp_path, text):
    folder = make(tmp_path, 3)
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    assert find_damage(folder) == f"{MANIFEST} is damaged"


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [2, 4, 6, 8, 10]),
        (1, None, [10]),
        (1, "checkpoint-4", [4, 10]),
        (2, "checkpoint-4", [4, 10]),
        (3, "checkpoint-4", [4, 8, 10]),
        (3, "checkpoint-10", [6, 8, 10]),
        (1, "checkpoint-99", [10]),
        (9, "checkpoint-4", [2, 4, 6, 8, 10]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, limit, best, left):
    for step in (10, 2, 8, 4, 6):
        make(tmp_path, step)
    rotate_checkpoints(tmp_path / "checkpoint-10", limit, best, "mine")
    assert [path.name for path in checkpoints_in(tmp_path)] == [f"checkpoint-{step}" for step in left]


def test_rotation_touches_only_what_this_run_has_sealed(tmp_path):
    for step in (2, 4, 6):
        make(tmp_path, step)
    kept = [make(tmp_path, 1, "another"), make(tmp_path, 3, sealed=False), make(tmp_path, 5)]
    (kept[-1] / MANIFEST).write_text("damaged")
    (tmp_path / "checkpoint-best").mkdir()
    rotate_checkpoints(tmp_path / "checkpoint-6", 1, None, "mine")
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        "checkpoint-1",
        "checkpoint-3",
        "checkpoint-5",
        "checkpoint-6",
    ]
    assert (tmp_path / "checkpoint-best").is_dir()


def test_a_damaged_checkpoint_of_a_later_step_does_not_count_as_the_newest(tmp_path):
    for step in (15, 17, 20):
        make(tmp_path, step)
    (tmp_path / "checkpoint-20" / "optimizer.pt").write_bytes(b"o" * 2999 + b"x")
    rotate_checkpoints(tmp_path / "checkpoint-17", 1, None, "mine")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-17", "checkpoint-20"]
    assert find_damage(tmp_path / "checkpoint-17") == ""


def test_what_a_kill_leaves_of_a_deleted_checkpoint_is_swept(tmp_path):
    make(tmp_path, 3).rename(tmp_path / ".deleting-checkpoint-3")
    assert checkpoints_in(tmp_path) == []
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
