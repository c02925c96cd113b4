"""Workspaces from settings, and what a user is told who got a root or a key wrong."""

import os
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.settings import RootSettings, Settings
from sensorium_pipeline.storage import MissingObjectError, Store, open_workspace
from sensorium_pipeline.storage.local_s3 import LocalS3Server


def test_four_roots_below_one(tmp_path: Path) -> None:
    workspace = open_workspace(Settings(root=str(tmp_path / "w")))
    stores = [workspace.lab, workspace.open, workspace.sealed, workspace.inbox]
    assert [store.name for store in stores] == ["lab", "open", "sealed", "inbox"]
    assert [store.url for store in stores] == [f"file://{tmp_path}/w/{store.name}" for store in stores]
    assert not (tmp_path / "w").exists()
    assert workspace.open.create("a", b"x")
    assert open_workspace(Settings(root=f"file://{tmp_path}/w/")).open.read("a") == b"x"


def test_each_root_may_have_a_place_and_keys_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_ROOT", "s3://bucket/benchmark")
    monkeypatch.setenv("SENSORIUM_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SENSORIUM_ACCESS_KEY", "common")
    monkeypatch.setenv("SENSORIUM_SECRET_KEY", "common-secret")
    monkeypatch.setenv("SENSORIUM_SEALED__URL", "s3://vault/sealed")
    monkeypatch.setenv("SENSORIUM_SEALED__ACCESS_KEY", "scorer")
    monkeypatch.setenv("SENSORIUM_SEALED__SECRET_KEY", "scorer-secret")
    monkeypatch.setenv("SENSORIUM_INBOX__URL", str(tmp_path))
    workspace = open_workspace(Settings())
    assert workspace.url == "s3://bucket/benchmark"
    assert workspace.lab.url == "s3://bucket/benchmark/lab"
    assert workspace.lab.storage_options == {"endpoint_url": "http://127.0.0.1:1", "key": "common", "secret": "common-secret"}
    assert workspace.sealed.url == "s3://vault/sealed"
    assert workspace.sealed.storage_options == {"endpoint_url": "http://127.0.0.1:1", "key": "scorer", "secret": "scorer-secret"}
    assert workspace.inbox.url == f"file://{tmp_path}"
    assert "scorer-secret" not in repr(workspace) + repr(workspace.sealed)


@pytest.mark.parametrize("url", ["", "ftp://host/x", "file://host/x", "s3://", "s3:///x"])
def test_unusable_urls(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Store("lab", RootSettings(url=url))
    assert caught.value.advice


def test_unwritable_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store("lab", RootSettings(url=str(tmp_path / "file/below")))
    for write in (lambda: store.create("a", b"x"), lambda: store.replace("a", b"x"), store.prepare):
        with pytest.raises(InputError, match="cannot be used") as caught:
            write()
        assert str(tmp_path / "file") in caught.value.where
        assert "SENSORIUM_ROOT" in caught.value.advice
    assert store.list("a") == []
    with pytest.raises(MissingObjectError):
        store.read("a")


class TestS3Mistakes:
    def test_no_keys(self, seaweedfs: LocalS3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        store = Store("lab", RootSettings(url="s3://sensorium-tests/nokeys", endpoint_url=seaweedfs.endpoint_url))
        for use in (lambda: store.read("a"), lambda: store.create("a", b"x"), lambda: store.list("a"), store.prepare):
            with pytest.raises(InputError, match=r"no keys|refuses access"):
                use()

    def test_wrong_keys(self, seaweedfs: LocalS3Server) -> None:
        right = seaweedfs.root("s3://sensorium-tests/keys")
        store = Store("lab", right.model_copy(update={"secret_key": SecretStr("wrong")}))
        for use in (lambda: store.read("a"), lambda: store.create("a", b"x"), lambda: store.list("a"), lambda: store.replace("a", b"x")):
            with pytest.raises(InputError, match="refuses access") as caught:
                use()
            assert "keys" in caught.value.advice
            assert "wrong" not in str(caught.value)

    def test_bucket_is_made_at_the_first_write(self, moto: RootSettings) -> None:
        for number, write in enumerate((lambda store: store.create("a", b"x"), lambda store: store.replace("a", b"x"), Store.prepare)):
            store = Store("lab", moto.model_copy(update={"url": f"s3://fresh-bucket-{number}/lab"}))
            assert store.list("") == []
            with pytest.raises(MissingObjectError):
                store.read("a")
            write(store)
            Store("lab", moto.model_copy(update={"url": f"s3://fresh-bucket-{number}"})).create("b", b"x")

    def test_bucket_that_cannot_be_made_is_named(self, moto: RootSettings) -> None:
        store = Store("lab", moto.model_copy(update={"url": "s3://ab/lab"}))
        with pytest.raises(InputError, match="cannot be made") as caught:
            store.create("a", b"x")
        assert caught.value.where == store.url


class TestLocalS3Server:
    def test_data_survive_a_kill_and_a_restart_under_the_same_url(self, tmp_path: Path) -> None:
        with LocalS3Server(tmp_path / "s3") as server:
            url, key = server.endpoint_url, server.access_key
            store = Store("lab", server.root("s3://demo/lab"))
            assert store.create("once", b"first")
            with pytest.raises(InputError, match="runs on this folder already"), LocalS3Server(tmp_path / "s3"):
                pass
            assert server._process is not None
            server._process.kill()
        with pytest.raises(PlatformError):
            store.read("once")
        with LocalS3Server(tmp_path / "s3") as server:
            assert (server.endpoint_url, server.access_key) == (url, key)
            again = Store("lab", server.root("s3://demo/lab"))
            assert again.read("once") == b"first"
            assert not again.create("once", b"second")
            assert again.create("twice", b"x")
        assert (tmp_path / "s3/server.json").stat().st_mode & 0o077 == 0
        assert (tmp_path / "s3/s3.json").stat().st_mode & 0o077 == 0

    def test_listens_on_this_machine_alone_and_sends_no_telemetry(self, seaweedfs: LocalS3Server) -> None:
        assert seaweedfs._process is not None
        (process,) = psutil.Process(seaweedfs._process.pid).children()
        listening = {connection.laddr.ip for connection in process.net_connections("inet") if connection.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        assert "-master.telemetry=false" in process.cmdline()

    def test_missing_executable_is_explained(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(InputError, match="not installed") as caught, LocalS3Server(tmp_path / "s3"):
            pass
        assert "dev" in caught.value.advice
        assert not (tmp_path / "s3").exists()
