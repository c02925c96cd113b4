"""What a submission's folder must hold, and that each mistake gets one message naming the file and field."""

import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from submission_samples import write_submission

from sensorium_pipeline.errors import InputError, SubmissionError
from sensorium_pipeline.submissions import package
from sensorium_pipeline.submissions.package import copy_submission, load_submission, new_submission, submission_files

BUILD = "def build(context):\n    pass\n"


def test_everything_that_it_may_say(tmp_path: Path) -> None:
    description = """
name = "CNN, wide"
track = "sensorium+"
entry_point = "models.wide:build"
seeds = [3, 4]
[parameters]
channels = 128
[parameters.training]
epochs = 5
[resources]
device = "gpu"
minutes = 30
"""
    folder = write_submission(tmp_path, "", description)
    (folder / "models").mkdir()
    (folder / "models" / "wide.py").write_text(BUILD)
    submission = load_submission(folder)
    assert submission.track == "sensorium+"
    assert submission.seeds == [3, 4]
    assert submission.parameters == {"channels": 128, "training": {"epochs": 5}}
    assert submission.resources.minutes == 30


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ('name = "x"', "give either entry_point"),
        ('name = "x"\nentry_point = "model:build"\npredictions = "p"', "give either entry_point"),
        ('name = "x"\nentry_point = "model"', 'submission.toml, entry_point: write it as "module:function"'),
        ('name = "x"\nentry_point = "../model:build"', 'write it as "module:function"'),
        ('name = "x"\nentry_point = "modle:build"', "no module 'modle' in the folder. It names the file modle.py; the folder has model.py"),
        ('name = "x"\nentry_point = "model:built"', "no function 'built' in model.py. Define `def built\\(context\\)` there"),
        ('name = "x"\nentry_point = "model:build"\ntrack = "sensorium2"', "track: unknown track 'sensorium2'. Choose one of sensorium, "),
        ('name = "x"\nentrypoint = "model:build"', "submission.toml, entrypoint: unknown key. Did you mean entry_point?"),
        ('name = "x"\nentry_point = "model:build"\n[resources]\nminute = 3', "resources.minute: unknown key. Did you mean minutes?"),
        ('name = "x"\nentry_point = "model:build"\nseeds = [1, 1]', "seeds: name each seed once"),
        ('name = "x"\nentry_point = "model:build"\nseeds = [-1]', "seeds.0: Input should be greater"),
        ('name = "x\\u0007"\nentry_point = "model:build"', "name: use printable characters"),
        ('entry_point = "model:build"', "submission.toml, name: it is missing. Add the line name = ..."),
        ('name = "x"\npredictions = "p"', "the folder 'p' is missing or empty"),
        ('name = "x"\npredictions = "../p"', "name a folder inside"),
        ("name = x", "not readable as TOML: .*line 1"),
        ('name = "x"\nentry_point = "model:build"\nseeds = [' + "9" * 5000 + "]", "not readable as TOML: .* has 5000 digits"),
        ('name = "x"\nentry_point = "model:build"\nparameters.a = 0x' + "f" * 5000, "parameters: Exceeds the limit"),
        ('name = "x"\nentry_point = "model:build"\nparameters' + ".a" * 2000 + " = 1", "parameters: nest tables and lists 32 deep at most"),
        ('name = "x"\nentry_point = "model:build"\nparameters.a = ' + "[" * 5000 + "]" * 5000, "not readable as TOML"),
    ],
)
def test_mistakes_in_the_description(tmp_path: Path, description: str, message: str) -> None:
    folder = write_submission(tmp_path, BUILD, description)
    with pytest.raises(SubmissionError, match=message) as raised:
        load_submission(folder)
    assert "submission.toml" in raised.value.where
    assert raised.value.exit_code == 1


def test_broken_python_is_named(tmp_path: Path) -> None:
    folder = write_submission(tmp_path, "def build(context:\n    pass\n")
    with pytest.raises(SubmissionError, match=r"model.py, line 1: not valid Python"):
        load_submission(folder)


def test_checking_runs_no_code(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    folder = write_submission(tmp_path / "submission", f"open({str(touched)!r}, 'w')\n{BUILD}")
    load_submission(folder)
    assert not touched.exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "model.py"])
def test_links_are_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = write_submission(tmp_path / "a" / "submission", BUILD)
    (folder / "weights.npz").symlink_to(target)
    with pytest.raises(SubmissionError, match=r"weights.npz: it is a symbolic link"):
        load_submission(folder)
    with pytest.raises(SubmissionError, match="symbolic link"):
        copy_submission(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    (folder / "weights.npz").unlink()
    (folder / "inside").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(SubmissionError, match="symbolic link"):
        load_submission(folder)


def test_pipes_are_refused(tmp_path: Path) -> None:
    folder = write_submission(tmp_path, BUILD)
    os.mkfifo(folder / "pipe")
    with pytest.raises(SubmissionError, match="not a plain file"):
        load_submission(folder)


@pytest.mark.parametrize(
    "code", [b"# coding: latin-1\n# \xe9\ndef build(c): ...", b"from models import *", b"if 1:\n    from models import make as build"]
)
def test_entry_points_of_other_shapes(tmp_path: Path, code: bytes) -> None:
    folder = write_submission(tmp_path, BUILD)
    (folder / "model.py").write_bytes(code)
    load_submission(folder)


@pytest.mark.parametrize("code", [b"x" + b".a" * 400_000, b"-" * 900_000 + b"1", b"x = 0\0"])
def test_code_that_overburdens_the_parser(tmp_path: Path, code: bytes) -> None:
    folder = write_submission(tmp_path, BUILD)
    (folder / "model.py").write_bytes(code)
    with pytest.raises(SubmissionError, match=r"model.py.*not valid Python"):
        load_submission(folder)
    (folder / "model.py").write_bytes(b"#" * 1_000_001)
    with pytest.raises(SubmissionError, match="more than 1 MB of Python"):
        load_submission(folder)


def test_many_submissions_are_looked_at_side_by_side(tmp_path: Path) -> None:
    folder = write_submission(tmp_path, BUILD)
    (folder / "model.py").write_text(BUILD + "x = [" + "(1, 2), " * 500 + "]")
    # A collection of garbage lets another thread go on, also in the middle of a parser's work.
    before, let_others_run = gc.get_threshold(), lambda *_: time.sleep(0)
    gc.callbacks.append(let_others_run)
    gc.set_threshold(10)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert len(list(threads.map(load_submission, [folder] * 300))) == 300
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(let_others_run)


def test_size_and_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_submission(tmp_path, BUILD)
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(package.MOST_BYTES + 1)
    with pytest.raises(SubmissionError, match=r"more than 1024 MB. The largest so far is weights.bin"):
        load_submission(folder)
    (folder / "weights.bin").unlink()
    (folder / "many").mkdir()
    for number in range(package.MOST_FILES):
        (folder / "many" / str(number)).touch()
    with pytest.raises(SubmissionError, match="more than 1000 files"):
        load_submission(folder)


@pytest.mark.parametrize("name", ["a\nb.py", "\x1b]0;owned\x07.py", "\u202eyp.exe", "x" * 201, os.fsdecode(b"\xff.npy")], ids=ascii)
def test_names_that_no_terminal_should_show(tmp_path: Path, name: str) -> None:
    folder = write_submission(tmp_path / "submission", BUILD)
    (folder / name).touch()
    with pytest.raises(SubmissionError, match="is no name of a file") as raised:
        load_submission(folder)
    assert str(raised.value).isprintable()


def test_folders_in_folders_without_end(tmp_path: Path) -> None:
    folder = write_submission(tmp_path / "submission", BUILD)
    (folder / Path(*"a" * 300)).mkdir(parents=True)
    with pytest.raises(SubmissionError, match="is no name of a file"):
        load_submission(folder)


def test_hidden_files_stay_at_home(tmp_path: Path) -> None:
    folder = write_submission(tmp_path / "submission", BUILD)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("token")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "model.pyc").write_text("")
    assert sorted(submission_files(folder)) == ["model.py", "submission.toml"]
    (tmp_path / "copy").mkdir()
    copy_submission(folder, tmp_path / "copy")
    assert sorted(os.listdir(tmp_path / "copy")) == ["model.py", "submission.toml"]


@pytest.mark.parametrize("template", ["ln", "cnn"])
def test_templates_are_valid(tmp_path: Path, template: str) -> None:
    new_submission(tmp_path / "mine", template)
    submission = load_submission(tmp_path / "mine")
    assert submission.parameters == {"architecture": template}
    assert submission.track is None
    with pytest.raises(InputError, match="something lies there already"):
        new_submission(tmp_path / "mine", template)
    with pytest.raises(InputError, match=r"no template 'best'. Choose one of cnn, energy, "):
        new_submission(tmp_path / "other", "best")
    assert not (tmp_path / "other").exists()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match="no such folder"):
        load_submission(tmp_path / "absent")
    with pytest.raises(SubmissionError, match=r"submission.toml: it is missing"):
        load_submission(tmp_path)
