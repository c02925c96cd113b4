"""A submission as a folder: submission.toml beside Python and weights, or beside a folder of predictions."""

import difflib
import json
import os
import re
import shutil
import stat
import symtable
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sensorium_pipeline.errors import InputError, SubmissionError

Track = Literal["sensorium", "sensorium+"]
TRACKS: tuple[Track, ...] = ("sensorium", "sensorium+")
DESCRIPTION = "submission.toml"
TEMPLATES = Path(__file__).parent / "templates"
MOST_FILES = 1000
MOST_BYTES = 1024**3
MOST_DESCRIPTION_BYTES = 16 * 1024
"""The parser of TOML takes half a minute for one dotted key of four times as many."""
MOST_SOURCE_BYTES = 1_000_000
LONGEST_NAME = 200
DEEPEST = 32
ENTRY_POINT = re.compile(r"([A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
STAR_IMPORT = re.compile(rb"\bimport\s*\*")
OWN_MODELS = ("sensorium_pipeline.submissions.baseline", "sensorium_pipeline.submissions.checkpoint_2022")


class Resources(BaseModel):
    """The `[resources]` table: which class of machine a submission asks for, and how many minutes it needs at most."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["any", "cpu", "gpu"] = "any"
    minutes: Annotated[float, Field(gt=0, le=24 * 60)] | None = None


class Submission(BaseModel):
    """What submission.toml says.

    Attributes:
        name: shown in the tables.
        team: the only team that may submit it; left out, the token alone says whose it is.
        track: the only track that it is for; left out, it may be submitted to each.
        entry_point: "module:function", see `submissions.interface`; either this or `predictions`.
        predictions: folder with one .npz file a session, see `submissions.predictions`.
        seeds: one run each.
        parameters: handed to the entry point as they are.
        resources: see `Resources`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=80)]
    team: str | None = None
    track: Track | None = None
    entry_point: str | None = None
    predictions: str | None = None
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=10)] = [0]
    parameters: dict[str, Any] = {}
    resources: Resources = Resources()

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise ValueError("use printable characters, without spaces at the ends")
        return name

    @field_validator("entry_point")
    @classmethod
    def _module_and_function(cls, entry_point: str | None) -> str | None:
        if entry_point is not None and not ENTRY_POINT.fullmatch(entry_point):
            raise ValueError('write it as "module:function"')
        return entry_point

    @field_validator("predictions")
    @classmethod
    def _plain_folder(cls, folder: str | None) -> str | None:
        if folder is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", folder):
            raise ValueError("name a folder inside the submission's own")
        return folder

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("name each seed once")
        return seeds

    @field_validator("parameters")
    @classmethod
    def _can_be_handed_over(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        _check_depth(parameters, DEEPEST)
        # Numbers of thousands of digits cannot be written.
        json.dumps(parameters, default=str)
        return parameters

    @model_validator(mode="after")
    def _one_kind(self) -> "Submission":
        if (self.entry_point is None) == (self.predictions is None):
            raise ValueError('give either entry_point = "module:function" or predictions = "folder"')
        return self


def load_submission(folder: Path) -> Submission:
    """Read and check a submission's folder; none of its code runs.

    Raises:
        SubmissionError: naming the file and field, and what to change.
    """
    files = submission_files(folder)
    path = folder / DESCRIPTION
    if DESCRIPTION not in files:
        raise SubmissionError("it is missing", where=path, advice="`sensorium new-submission DIR` writes a folder to start from")
    if files[DESCRIPTION].st_size > MOST_DESCRIPTION_BYTES:
        raise SubmissionError("it is too large", where=path, advice=f"{MOST_DESCRIPTION_BYTES} bytes are the limit; keep weights beside it")
    submission = parse_description(path.read_bytes(), path)
    if submission.entry_point is not None:
        _check_entry_point(submission.entry_point, folder, files)
    elif not any(name.startswith(f"{submission.predictions}/") for name in files):
        advice = "Put one <session>.npz for each session into it"
        raise SubmissionError(f"the folder {submission.predictions!r} is missing or empty", where=f"{path}, predictions", advice=advice)
    return submission


def parse_description(content: bytes, where: Path) -> Submission:
    """What a submission.toml says.

    Raises:
        SubmissionError: naming `where` and the field, and what to change.
    """
    try:
        return Submission.model_validate(tomllib.loads(content.decode("utf-8")))
    except ValidationError as error:
        raise _explained(error, where) from error
    except (ValueError, RecursionError) as error:
        # Also for a number of too many digits, which is no TOMLDecodeError.
        raise SubmissionError(f"not readable as TOML: {error}", where=where, advice="See https://toml.io") from error


def submission_files(folder: Path) -> dict[str, os.stat_result]:
    """The files of a submission: relative path -> status; hidden files and `__pycache__` are left out.

    Raises:
        SubmissionError: no such folder, a link or special file in it, something unreadable, a name that not every system can hold or show,
            too many files, or too many bytes.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise SubmissionError("no such folder", where=folder, advice="Give the folder that holds submission.toml")
    files: dict[str, os.stat_result] = {}
    size = 0
    for path in _walk(folder, folder):
        status = path.lstat()
        name = path.relative_to(folder).as_posix()
        if not stat.S_ISREG(status.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a plain file"
            raise SubmissionError(f"it is {kind}", where=path, advice="Put the file itself into the folder")
        if not os.access(path, os.R_OK):
            raise SubmissionError("it cannot be read", where=path, advice="Change its permissions, or leave it out")
        files[name] = status
        size += status.st_size
        if len(files) > MOST_FILES:
            raise SubmissionError(f"more than {MOST_FILES} files", where=folder, advice="Leave out data and environments")
        if size > MOST_BYTES:
            raise SubmissionError(f"more than {MOST_BYTES // 1024**2} MB", where=folder, advice=f"The largest so far is {_largest(files)}")
    return files


def is_plain_name(name: str) -> bool:
    """Whether a relative path can be written and shown everywhere: printable, not too long, and not leading out of its folder."""
    parts = name.split("/")
    return name.isprintable() and len(os.fsencode(name)) <= LONGEST_NAME and "\\" not in name and not {"", ".", ".."} & set(parts)


def copy_submission(folder: Path, target: Path) -> None:
    """Copy a submission's plain files to a fresh folder, readable by every user; links that appear meanwhile are not followed.

    Raises:
        SubmissionError: as `submission_files`.
    """
    for name in submission_files(folder):
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as source, copy.open("xb") as file:
            shutil.copyfileobj(source, file, 1024 * 1024)
        copy.chmod(0o644)
    for path in (target, *target.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def template_names() -> list[str]:
    """The submissions to start from that there are, sorted."""
    return sorted(path.name for path in TEMPLATES.iterdir() if (path / DESCRIPTION).is_file())


def new_submission(folder: Path, template: str) -> None:
    """Write a submission that runs as it is, to start from.

    Args:
        folder: must not exist yet, or be empty.
        template: name of a folder in `templates`: a baseline of the zoo, "mean" or "features".

    Raises:
        InputError: an unknown template, or something lies in the folder.
    """
    if template not in template_names():
        raise InputError(f"no template {template!r}", where="template", advice=f"Choose one of {', '.join(template_names())}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("something lies there already", where=folder, advice="Name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((TEMPLATES / template).iterdir()):
        if path.is_file():
            (folder / path.name.removesuffix(".template")).write_bytes(path.read_bytes())


def _walk(folder: Path, whole: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SubmissionError(f"it cannot be read ({error.strerror})", where=folder, advice="Change its permissions") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        path = Path(entry.path)
        # Looked at before going deeper, so it also ends folders in folders without end.
        if not is_plain_name(path.relative_to(whole).as_posix()):
            advice = f"Use printable characters, and {LONGEST_NAME} bytes at most with the folders above"
            raise SubmissionError(f"{entry.name[:80]!a} is no name of a file", where=folder, advice=advice)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, whole)
        else:
            yield path


def _largest(files: dict[str, os.stat_result]) -> str:
    return max(files, key=lambda name: files[name].st_size)


def _check_entry_point(entry_point: str, folder: Path, files: dict[str, os.stat_result]) -> None:
    module, function = entry_point.split(":")
    if module in OWN_MODELS:
        return
    where = f"{folder / DESCRIPTION}, entry_point"
    base = module.replace(".", "/")
    found = next((name for name in (f"{base}.py", f"{base}/__init__.py") if name in files), None)
    if found is None:
        python = [name for name in files if name.endswith(".py")][:5]
        advice = f"It names the file {base}.py; the folder has {', '.join(python) or 'no Python file'}"
        raise SubmissionError(f"no module {module!r} in the folder", where=where, advice=advice)
    if files[found].st_size > MOST_SOURCE_BYTES:
        raise SubmissionError("more than 1 MB of Python", where=folder / found, advice="Bring weights and tables as files of their own")
    source = (folder / found).read_bytes()
    try:
        # Not ast.parse: in CPython 3.11 it raises SystemError where several threads parse at once (gh-106905).
        names = symtable.symtable(source, found, "exec").get_identifiers()  # type: ignore[arg-type]  # bytes may say their encoding
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        raise SubmissionError(f"not valid Python: {error}", where=f"{folder / found}{f', line {line}' if line else ''}") from error
    if function not in names and not STAR_IMPORT.search(source):
        raise SubmissionError(f"no function {function!r} in {found}", where=where, advice=f"Define `def {function}(context)` there")


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise ValueError(f"nest tables and lists {DEEPEST} deep at most")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_depth(each, left - 1)


def _explained(error: ValidationError, path: Path) -> SubmissionError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    where = f"{path}, {field}" if field else str(path)
    if first["type"] == "extra_forbidden":
        known = list(Submission.model_fields) if len(first["loc"]) == 1 else list(Resources.model_fields)
        close = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        advice = f"Did you mean {close[0]}?" if close else f"Known are {', '.join(known)}; free parameters belong into [parameters]"
        return SubmissionError("unknown key", where=where, advice=advice)
    if field == "track":
        return SubmissionError(f"unknown track {str(first['input'])[:40]!r}", where=where, advice=f"Choose one of {', '.join(TRACKS)}")
    if first["type"] == "missing":
        return SubmissionError("it is missing", where=where, advice=f"Add the line {field} = ...")
    return SubmissionError(first["msg"].removeprefix("Value error, "), where=where)
