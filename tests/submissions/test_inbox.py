"""What teams send, and what the organisers take in: signatures, dates, quotas, duplicates, requests."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from small_inbox import BUILD, NOON, Post, reasons
from small_world import write_code
from submission_samples import write_submission

from sensorium_pipeline.errors import InputError, SubmissionError
from sensorium_pipeline.intake import take_in
from sensorium_pipeline.sessions.release import Release, change_phases
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import (
    FileEntry,
    Manifest,
    Series,
    Workspace,
    canonical_json,
    digest_of,
    digest_of_bytes,
    open_workspace,
    write_files,
)
from sensorium_pipeline.submissions.inbox import (
    Request,
    SignedRequest,
    Statement,
    choices,
    fetch_submission,
    list_submissions,
)
from sensorium_pipeline.submissions.package import submission_files
from sensorium_pipeline.submissions.sending import Sent, list_sent, request, submit
from sensorium_pipeline.submissions.teams import Token, add_team, list_teams, parse_token, revoke_team, token_of


def test_in_and_out_again(workspace: Workspace, release: Release, token: Token, tmp_path: Path) -> None:
    folder = write_submission(tmp_path / "mine", BUILD)
    (folder / "weights").mkdir()
    (folder / "weights" / "core.npz").write_bytes(b"weights")
    sent = submit(workspace, release, folder, token, "sensorium", NOON)
    assert (sent.identifier, sent.name, sent.phase, sent.duplicate) == ("lobe-lab/sensorium/1", "test", "competition", False)
    assert list_submissions(workspace) == []  # nothing counts before it is taken in
    Post(workspace, release, tmp_path).received("submissions/lobe-lab/sensorium/1", NOON)
    assert [decision.reason for decision in take_in(workspace)] == [""]
    (record,) = list_submissions(workspace)
    assert (record.identifier, record.name, record.seeds, record.has_code) == ("lobe-lab/sensorium/1", "test", [0], True)
    assert (record.submitted_at, record.release, record.phase, record.digest) == (NOON, "2027", "competition", sent.digest)
    fetch_submission(workspace, record, tmp_path / "fetched")
    assert submission_files(tmp_path / "fetched").keys() == submission_files(folder).keys()
    assert (tmp_path / "fetched" / "weights" / "core.npz").read_bytes() == b"weights"
    assert take_in(workspace) == []


def test_wrong_track(workspace: Workspace, release: Release, token: Token, tmp_path: Path) -> None:
    folder = write_submission(tmp_path / "mine", BUILD, 'name = "x"\ntrack = "sensorium+"\nentry_point = "model:build"\n')
    with pytest.raises(SubmissionError, match=r"submission.toml, track: it is for sensorium\+, not for sensorium"):
        submit(workspace, release, folder, token, "sensorium", NOON)
    with pytest.raises(InputError, match=r"unknown track 'retina'. Choose one of sensorium, sensorium"):
        submit(workspace, release, folder, token, "retina", NOON)
    write_submission(tmp_path / "mine", BUILD, 'name = "x"\nteam = "other-lab"\nentry_point = "model:build"\n')
    with pytest.raises(SubmissionError, match=r"submission.toml, team: it is team other-lab's, not lobe-lab's"):
        submit(workspace, release, folder, token, "sensorium", NOON)
    assert workspace.inbox.walk("") == []


class TestTokens:
    @pytest.mark.parametrize("team", ["", "../sealed", "a/b", "Lobe Lab", "x" * 41, "-x", "a\n", "é", "a.b"])
    def test_team_names(self, workspace: Workspace, team: str) -> None:
        with pytest.raises(InputError, match="is no name for a team"):
            add_team(workspace.sealed, team, NOON)
        assert list_teams(workspace.sealed) == []

    def test_a_token_is_shown_once_and_nowhere_kept(self, workspace: Workspace, post: Post, token: Token) -> None:
        key = token.key.hex()
        assert key not in repr(token)
        post.send(token)
        take_in(workspace)
        everything = b"".join(path.read_bytes() for path in post.folder.parent.joinpath("workspace").rglob("*") if path.is_file())
        assert key.encode() not in everything
        with pytest.raises(InputError, match="the team has a token") as caught:
            add_team(workspace.sealed, "lobe-lab", NOON)
        assert key not in str(caught.value)

    @pytest.mark.parametrize("text", ["", "secret", "sensorium-team.x.1.abc", "sensorium-team.lobe-lab.1." + "G" * 64])
    def test_a_text_that_is_no_token(self, text: str) -> None:
        with pytest.raises(InputError, match="SENSORIUM_TEAM_TOKEN") as caught:
            parse_token(SecretStr(text))
        assert not text or text not in str(caught.value)

    def test_only_the_team_itself_can_send(self, workspace: Workspace, post: Post, token: Token) -> None:
        other = parse_token(add_team(workspace.sealed, "other-lab", NOON))
        sent = post.send(token)
        mine = Statement(release="2027", team="lobe-lab", track="sensorium", digest=sent.digest, at=NOON)
        changed = mine.model_copy(update={"digest": "0" * 64})
        post.forge("lobe-lab", changed, other.sign(changed))  # signed by somebody else
        post.forge("lobe-lab", changed, token.sign(mine))  # the signature of another submission
        post.forge("lobe-lab", changed, "é" * 64)
        post.forge("other-lab", mine, token.sign(mine))  # copied to another team
        post.forge("nobody", mine.model_copy(update={"team": "nobody"}), "0" * 64)
        post.forge("lobe-lab", mine, token.sign(mine))  # sent again, word by word
        take_in(workspace)
        assert reasons(workspace) == {
            "lobe-lab/sensorium/1": "",
            "lobe-lab/sensorium/2": "the signature is not the team's",
            "lobe-lab/sensorium/3": "the signature is not the team's",
            "lobe-lab/sensorium/4": "the signature is not the team's",
            "lobe-lab/sensorium/5": "it was submitted before as lobe-lab/sensorium/1",
            "other-lab/sensorium/1": "it stands among those of other-lab/sensorium, and is of lobe-lab/sensorium",
            "nobody/sensorium/1": "there is no such team",
        }
        # What others put there cost the team nothing: neither here nor where it looks before it sends.
        assert post.send(token, NOON + timedelta(days=1)).number == 6
        take_in(workspace)
        assert reasons(workspace)["lobe-lab/sensorium/6"] == ""

    def test_forged_records_take_no_place_of_the_same_day(self, workspace: Workspace, post: Post, token: Token) -> None:
        statement = Statement(release="2027", team="lobe-lab", track="sensorium", digest="0" * 64, at=NOON)
        post.forge("lobe-lab", statement, "0" * 64)
        post.forge("lobe-lab", statement, "0" * 64, number=7)
        assert post.send(token).number == 3
        take_in(workspace)
        assert reasons(workspace)["lobe-lab/sensorium/3"] == ""

    def test_a_copy_of_a_refused_one_takes_no_place_of_another_day(self, workspace: Workspace, post: Post, token: Token) -> None:
        post.send(token)
        late = NOON + timedelta(minutes=1)
        refused = write_submission(post.folder / "late", f"{BUILD}# late\n")
        digest = write_files(workspace.inbox, {name: refused / name for name in ("model.py", "submission.toml")}).digest
        statement = Statement(release="2027", team="lobe-lab", track="sensorium", digest=digest, at=late)
        post.forge("lobe-lab", statement, token.sign(statement))
        take_in(workspace)
        copied = workspace.inbox.read("submissions/lobe-lab/sensorium/000002.json")
        workspace.inbox.create("submissions/lobe-lab/sensorium/000003.json", copied)
        post.received("submissions/lobe-lab/sensorium/3", NOON + timedelta(days=1))
        take_in(workspace)
        again = submit(workspace, post.release, refused, token, "sensorium", NOON + timedelta(days=1))
        post.received(f"submissions/{again.identifier}", NOON + timedelta(days=1))
        take_in(workspace)
        found = reasons(workspace)
        assert "the quota of 1 a day was used" in found["lobe-lab/sensorium/2"]
        assert found["lobe-lab/sensorium/3"] == "it is a copy of lobe-lab/sensorium/2, which was refused"
        assert found[again.identifier] == ""

    def test_rubbish_in_the_inbox_is_refused_and_stops_nothing(self, workspace: Workspace, post: Post, token: Token) -> None:
        workspace.inbox.create("submissions/lobe-lab/sensorium/000001.json", b"{not json")
        workspace.inbox.create("submissions/lobe-lab/sensorium/000002.json", b"[" * 200_000)
        workspace.inbox.create("submissions/lobe-lab/retina/000001.json", b"{}")
        workspace.inbox.create("requests/lobe-lab/sensorium/000001.json", b"\xff")
        for name in ("0000007", "000000", "seven"):
            workspace.inbox.create(f"submissions/lobe-lab/sensorium/{name}.json", b"{}")
        root = Path(workspace.inbox.url.removeprefix("file://"))
        (root / "submissions" / "a\\b" / "sensorium").mkdir(parents=True)
        (root / "submissions" / "a\\b" / "sensorium" / "000001.json").write_bytes(b"{}")
        assert post.send(token).number == 8
        take_in(workspace)
        found = reasons(workspace)
        assert found["lobe-lab/sensorium/8"] == ""
        assert {found[f"lobe-lab/sensorium/{number}"] for number in (1, 2)} == {"it is not a readable record"}
        assert take_in(workspace) == []

    def test_what_is_no_plain_file_stops_nothing(self, workspace: Workspace, post: Post, token: Token) -> None:
        root = Path(workspace.inbox.url.removeprefix("file://"))
        digest = "0" * 64
        (root / "manifests").mkdir(parents=True)
        os.mkfifo(root / "manifests" / f"{digest}.json")
        statement = Statement(release="2027", team="lobe-lab", track="sensorium", digest=digest, at=NOON)
        post.forge("lobe-lab", statement, token.sign(statement))
        folder = root / "submissions" / "lobe-lab" / "sensorium"
        os.mkfifo(folder / "000002.json")
        (folder / "000003.json").symlink_to("000003.json")
        (folder / "000004.json").symlink_to("/dev/zero")
        (folder / "000005.json").mkdir()
        (folder / "000006.json").touch()
        assert post.send(token, NOON + timedelta(days=1)).number == 7
        take_in(workspace)
        assert reasons(workspace) == {
            "lobe-lab/sensorium/1": "its files are not in the inbox; submit it again",
            "lobe-lab/sensorium/6": "it is not a readable record",
            "lobe-lab/sensorium/7": "",
        }

    def test_lists_and_files_that_are_larger_than_they_can_be_are_not_read(self, workspace: Workspace, post: Post, token: Token) -> None:
        root = Path(workspace.inbox.url.removeprefix("file://"))
        sent = [post.send(token, NOON + timedelta(days=day)) for day in range(3)]
        (list_of_files, description, _) = (root / "manifests" / f"{one.digest}.json" for one in sent)
        os.truncate(list_of_files, 2**40)
        prefix = json.loads(description.read_bytes())["prefix"]
        os.truncate(root / prefix / "submission.toml", 2**40)
        assert {decision.number: decision.reason for decision in take_in(workspace)} == {
            1: f"{sent[0].digest[:12]}: the list of its files is too long. 1000 files are the limit.",
            2: "it could not be read, and is tried again: the stored bytes are not those that were written",
            3: "",
        }

    def test_a_release_that_is_none(self, workspace: Workspace, post: Post, token: Token) -> None:
        for number, name in enumerate(("../../sealed", "", "2028", "x" * 300)):
            statement = Statement(release=name, team="lobe-lab", track="sensorium", digest=str(number) * 64, at=NOON)
            post.forge("lobe-lab", statement, token.sign(statement))
        post.send(token)
        take_in(workspace)
        assert [reason[:24] for reason in reasons(workspace).values()] == ["there is no release '../", "there is no release ''",
            "there is no release '202", "there is no release 'xxx", ""]  # fmt: skip
        assert [path.path for path in workspace.open.walk("standings")] == ["standings/2027/lobe-lab/sensorium/000001.json"]

    def test_digests_that_are_none(self, workspace: Workspace, post: Post, token: Token) -> None:
        digests = ("", "..", "../../sealed/secrets", "\0", "0" * 63, "0" * 64 + "\n", "x" * 50_000)
        for digest in digests:
            statement = Statement(release="2027", team="lobe-lab", track="sensorium", digest=digest, at=NOON)
            post.forge("lobe-lab", statement, token.sign(statement))
        take_in(workspace)
        assert len(reasons(workspace)) == len(digests)
        assert all("this is not a digest" in reason or len(reason) == 400 for reason in reasons(workspace).values())

    def test_lists_of_files_that_lead_elsewhere(self, workspace: Workspace, post: Post, token: Token, tmp_path: Path) -> None:
        long = ("a" * 300, "a/" * 300 + "b")
        paths = ("../../../escaped", "/tmp/escaped", "a/../../b", "", *long, "\x1b[2J", "a\nb", "submission.toml/b")
        for path in paths:
            entry = FileEntry(path=path, size=0, sha256=digest_of_bytes(b""))
            description = FileEntry(path="submission.toml", size=1, sha256="0" * 64)
            manifest = Manifest(kind="files", files=(entry, description))
            stored = {"prefix": "data/x", "manifest": manifest.model_dump(mode="json")}
            workspace.inbox.create(f"manifests/{digest_of(manifest)}.json", canonical_json(stored))
            statement = Statement(release="2027", team="lobe-lab", track="sensorium", digest=digest_of(manifest), at=NOON)
            post.forge("lobe-lab", statement, token.sign(statement))
        take_in(workspace)
        assert all("is no name of a file" in reason for reason in reasons(workspace).values())
        assert len(reasons(workspace)) == len(paths)

    def test_damaged_files_stop_nobody_else(self, workspace: Workspace, post: Post, token: Token) -> None:
        other = parse_token(add_team(workspace.sealed, "other-lab", NOON))
        sent = post.send(token)
        workspace.inbox.replace(f"manifests/{sent.digest}.json", b"{}")
        post.send(other)
        for _ in range(2):
            assert {decision.identifier for decision in take_in(workspace) if "tried again" in decision.reason} == {sent.identifier}
            assert reasons(workspace) == {"other-lab/sensorium/1": ""}

    def test_a_revoked_token(self, workspace: Workspace, post: Post, token: Token) -> None:
        post.send(token)
        take_in(workspace)
        post.send(token, NOON + timedelta(days=1))
        revoke_team(workspace.sealed, "lobe-lab", NOON)
        take_in(workspace)
        assert reasons(workspace) == {"lobe-lab/sensorium/1": "", "lobe-lab/sensorium/2": "the team's token was revoked"}
        with pytest.raises(InputError, match="revoked before"):
            revoke_team(workspace.sealed, "lobe-lab", NOON)
        with pytest.raises(InputError, match="no such team has a token"):
            token_of(workspace.sealed, "lobe-lab")
        fresh = parse_token(add_team(workspace.sealed, "lobe-lab", NOON))
        assert (fresh.number, fresh.key != token.key) == (3, True)
        post.send(token, NOON + timedelta(days=2))
        post.send(fresh, NOON + timedelta(days=3))
        take_in(workspace)
        assert reasons(workspace)["lobe-lab/sensorium/3"] == "it is signed with a token that was replaced"
        assert reasons(workspace)["lobe-lab/sensorium/4"] == ""

    def test_two_workspaces_have_two_secrets(self, workspace: Workspace, token: Token, tmp_path: Path) -> None:
        other = open_workspace(Settings(root=str(tmp_path / "other")))
        assert parse_token(add_team(other.sealed, "lobe-lab", NOON)).key != token.key


class TestRequests:
    @pytest.fixture
    def two(self, workspace: Workspace, post: Post, token: Token) -> list[Sent]:
        sent = [post.send(token, NOON + timedelta(days=day)) for day in range(2)]
        take_in(workspace)
        return sent

    def test_withdrawn_is_gone_and_stays_in_the_record(self, workspace: Workspace, release: Release, token: Token, two: list[Sent]) -> None:
        request(workspace, release, "lobe-lab/sensorium/1", "withdraw", token)
        take_in(workspace)
        assert [record.number for record in list_submissions(workspace)] == [2]
        assert [record.number for record in list_submissions(workspace, withdrawn=True)] == [1, 2]
        assert [(one.number, one.state) for one in list_sent(workspace, release, token)] == [(1, "withdrawn"), (2, "accepted")]
        with pytest.raises(InputError, match="it was withdrawn before"):
            request(workspace, release, "lobe-lab/sensorium/1", "choose", token)

    def test_the_last_choice_holds_and_an_old_one_sent_again_does_not(
        self, workspace: Workspace, release: Release, token: Token, two: list[Sent]
    ) -> None:
        for number, day in ((1, 3), (2, 4)):
            request(workspace, release, f"lobe-lab/sensorium/{number}", "choose", token, NOON + timedelta(days=day))
        copied = workspace.inbox.read("requests/lobe-lab/sensorium/000001.json")
        workspace.inbox.create("requests/lobe-lab/sensorium/000003.json", copied)
        assert {decision.reason for decision in take_in(workspace)} == {""}
        assert choices(workspace, "2027", "sensorium") == {"lobe-lab": two[1].digest}
        assert choices(workspace, "2027", "sensorium+") == {}

    def test_only_by_its_own_team(self, workspace: Workspace, release: Release, token: Token, two: list[Sent]) -> None:
        other = parse_token(add_team(workspace.sealed, "other", NOON))
        with pytest.raises(InputError, match="the token is team other's"):
            request(workspace, release, "lobe-lab/sensorium/1", "withdraw", other)
        with pytest.raises(InputError, match="the team sent no such submission"):
            request(workspace, release, "lobe-lab/sensorium/9", "withdraw", token)
        statement = Request(release="2027", team="lobe-lab", track="sensorium", digest=two[0].digest, at=NOON, action="withdraw")
        signed = SignedRequest(statement=statement, token=1, signature=other.sign(statement))
        Series(workspace.inbox, "requests/lobe-lab/sensorium").append(signed)
        assert [decision.reason for decision in take_in(workspace)] == ["the signature is not the team's"]
        assert len(list_submissions(workspace)) == 2

    def test_one_that_cannot_be_decided_stops_no_other(self, workspace: Workspace, release: Release, token: Token, two: list[Sent]) -> None:
        workspace.open.create("releases/2028/000001.json", b"{}")
        statement = Request(release="2028", team="lobe-lab", track="sensorium", digest="0" * 64, at=NOON, action="withdraw")
        Series(workspace.inbox, "requests/lobe-lab/sensorium").append(
            SignedRequest(statement=statement, token=1, signature=token.sign(statement))
        )
        request(workspace, release, "lobe-lab/sensorium/1", "withdraw", token)
        assert [decision.reason[:23] for decision in take_in(workspace)] == ["it could not be read, a", ""]
        assert [record.number for record in list_submissions(workspace)] == [2]

    def test_nobody_chooses_after_seeing_final_scores(
        self, workspace: Workspace, release: Release, post: Post, token: Token, two: list[Sent]
    ) -> None:
        request(workspace, release, "lobe-lab/sensorium/1", "choose", token)
        post.received("requests/lobe-lab/sensorium/1", NOON + timedelta(days=2))
        request(workspace, release, "lobe-lab/sensorium/2", "choose", token)
        post.received("requests/lobe-lab/sensorium/2", NOON + timedelta(days=4))
        opened = change_phases(workspace, "2027", final="open", at=NOON + timedelta(days=3))
        assert [decision.reason for decision in take_in(workspace)] == ["", "it was chosen after the final scores were shown"]
        assert choices(workspace, "2027", "sensorium") == {"lobe-lab": two[0].digest}
        with pytest.raises(InputError, match="final scores are shown already"):
            request(workspace, opened, "lobe-lab/sensorium/2", "choose", token)


def test_what_was_taken_in_cannot_be_changed_from_the_inbox(workspace: Workspace, post: Post, token: Token) -> None:
    post.send(token)
    take_in(workspace)
    before = list_submissions(workspace)
    workspace.inbox.replace("submissions/lobe-lab/sensorium/000001.json", b"{}")
    assert take_in(workspace) == []
    assert list_submissions(workspace) == before


def test_files_that_are_gone(workspace: Workspace, post: Post, token: Token) -> None:
    post.send(token)
    next(Path(workspace.inbox.url.removeprefix("file://"), "manifests").iterdir()).unlink()
    assert [decision.reason for decision in take_in(workspace)] == ["its files are not in the inbox; submit it again"]


def test_code_for_both_tracks(workspace: Workspace, release: Release, token: Token, tmp_path: Path) -> None:
    folder = write_code(tmp_path / "code", "Code", seeds=(1, 2))
    for track in ("sensorium", "sensorium+"):
        sent = submit(workspace, release, folder, token, track, NOON)
        Post(workspace, release, tmp_path).received(f"submissions/{sent.identifier}", NOON)
    take_in(workspace)
    assert [(record.track, record.seeds) for record in list_submissions(workspace)] == [("sensorium", [1, 2]), ("sensorium+", [1, 2])]
