"""Datasets: named by content, kept once, plain zarr for everyone, whole or invisible."""

import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import (
    MissingObjectError,
    Series,
    Store,
    collect_garbage,
    dataset_url,
    digest_of,
    download_files,
    list_files,
    open_dataset,
    read_file,
    stage,
    verify_dataset,
    write_dataset,
    write_files,
)


def session(seed: int = 0) -> xr.DataTree:
    random = np.random.default_rng(seed)
    response = random.gamma(1.0, size=(600, 1500)).astype(np.float32)
    response[100:200] = np.nan
    trials = xr.Dataset(
        {
            "response": (("trial", "neuron"), response, {"units": "a.u.", "long_name": "activity summed over the response window"}),
            "tier": ("trial", np.array(["train", "test", "validation"] * 200)),
            "rejected": ("trial", random.random(600) < 0.1),
        },
        coords={"trial_id": ("trial", np.arange(600))},
    )
    frames = random.poisson(5, (300, 64, 72)).astype(np.int16)
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"session": "static1-1-1", "schema_version": 1, "planes": np.int64(3)}),
            "/trials": trials,
            "/recording": xr.Dataset({"movie": (("time", "y", "x"), frames), "line_period": ((), 6.25e-05, {"units": "s"})}),
            "/images": xr.Dataset({"image": (("image_id", "y", "x"), np.zeros((0, 144, 256), np.uint8))}),
        }
    )


class TestConformance:
    def test_opens_with_plain_xarray_and_storage_options_only(self, store: Store) -> None:
        tree = session()
        url = dataset_url(store, write_dataset(store, tree).digest)
        assert url.startswith(store.url)
        options = store.storage_options or None
        xr.testing.assert_identical(xr.open_datatree(url, engine="zarr", storage_options=options).load(), tree)
        trials = xr.open_zarr(url, group="trials", storage_options=options, consolidated=True)
        assert trials.response.dims == ("trial", "neuron")
        assert trials.response.dtype == np.float32
        assert trials.response.attrs["units"] == "a.u."
        assert list(trials.coords) == ["trial_id"]

    def test_same_content_has_one_digest_in_every_store_and_is_kept_once(self, store: Store, local_store: Store) -> None:
        first, second = write_dataset(store, session()), write_dataset(store, session())
        assert first == second == write_dataset(local_store, session())
        assert first != write_dataset(local_store, session(seed=1))
        assert len({entry.path.split("/")[1] for entry in store.walk("data")}) == 1
        assert store.list("manifests") == [f"{first.digest}.json"]

    def test_files_round_trip(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 1000)
        files: dict[str, bytes | Path] = {"model.py": b"print()", "weights/best.bin": tmp_path / "weights.bin", "empty": b""}
        reference = write_files(store, files)
        assert write_files(store, files) == reference
        assert [(entry.path, entry.size) for entry in list_files(store, reference.digest)] == [
            ("empty", 0),
            ("model.py", 7),
            ("weights/best.bin", 256000),
        ]
        assert read_file(store, reference.digest, "model.py") == b"print()"
        verify_dataset(store, reference.digest)
        download_files(store, reference.digest, tmp_path / "out")
        assert (tmp_path / "out/weights/best.bin").read_bytes() == (tmp_path / "weights.bin").read_bytes()
        assert (tmp_path / "out/empty").read_bytes() == b""
        assert len(store.list("manifests")) == 1

    def test_one_flipped_byte_is_found(self, store: Store) -> None:
        reference = write_dataset(store, session())
        verify_dataset(store, reference.digest)
        prefix = dataset_url(store, reference.digest).removeprefix(store.url + "/")
        largest = max(list_files(store, reference.digest), key=lambda entry: entry.size)
        payload = bytearray(store.read(f"{prefix}/{largest.path}"))
        payload[len(payload) // 2] ^= 1
        store.replace(f"{prefix}/{largest.path}", bytes(payload))
        with pytest.raises(PlatformError, match="not those that were written") as caught:
            verify_dataset(store, reference.digest)
        assert caught.value.where == f"{store.url}/{prefix}/{largest.path}"
        with pytest.raises(PlatformError):
            read_file(store, reference.digest, largest.path)

    def test_missing_and_foreign_objects_are_found(self, store: Store) -> None:
        reference = write_files(store, {"a": b"1", "b": b"2"})
        prefix = dataset_url(store, reference.digest).removeprefix(store.url + "/")
        store.replace(f"{prefix}/c", b"3")
        with pytest.raises(PlatformError, match="belongs to no dataset"):
            verify_dataset(store, reference.digest)
        store.remove(f"{prefix}/c")
        store.remove(f"{prefix}/b")
        with pytest.raises(PlatformError, match="missing") as caught:
            verify_dataset(store, reference.digest)
        assert caught.value.where.endswith("/b")

    def test_writer_killed_half_way_leaves_nothing_reachable(self, root: RootSettings, store: Store) -> None:
        kept = write_files(store, {"a": b"kept"})
        secret = root.secret_key.get_secret_value() if root.secret_key else ""
        arguments = [str(root.url), root.endpoint_url or "", root.access_key or "", secret]
        writer = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, *arguments], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half way\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        half = {entry.path.split("/")[1] for entry in store.walk("data") if ".zarr" in entry.path}
        assert len(half) == 1
        assert store.list("manifests") == [f"{kept.digest}.json"]

        week = datetime.now(UTC) + timedelta(days=8)
        assert [garbage.path for garbage in collect_garbage(store, dry_run=False).too_young] == [f"data/{name}" for name in half]
        dry = collect_garbage(store, dry_run=True, now=week)
        assert [garbage.path for garbage in dry.removed] == [f"data/{name}" for name in half]
        assert dry.freed_bytes > 100_000
        assert len(store.walk("data")) > 1
        assert collect_garbage(store, dry_run=False, now=week).removed == dry.removed
        assert [entry.path for entry in store.walk("data")] == [dataset_url(store, kept.digest).removeprefix(store.url + "/") + "/a"]
        verify_dataset(store, kept.digest)

    def test_failed_or_unsealed_staging_leaves_nothing(self, store: Store) -> None:
        def fail() -> None:
            with stage(store) as staged:
                staged.add("a", b"x")
                raise RuntimeError("half way")

        with pytest.raises(RuntimeError):
            fail()
        with stage(store, "files") as staged:
            staged.add("a", b"x")
        assert store.walk("") == []


class TestStoredBytes:
    """What lies on the disk, read as plain JSON and files."""

    def test_metadata_say_sharded_byte_shuffled_zstd_consolidated_with_dimension_names(self, local_store: Store) -> None:
        reference = write_dataset(local_store, session())
        root = json.loads(read_file(local_store, reference.digest, "zarr.json"))
        assert root["zarr_format"] == 3
        consolidated = root["consolidated_metadata"]["metadata"]
        assert {"trials", "trials/response", "recording/movie"} <= set(consolidated)

        response = json.loads(read_file(local_store, reference.digest, "trials/response/zarr.json"))
        assert consolidated["trials/response"] == response
        assert response["dimension_names"] == ["trial", "neuron"]
        assert response["attributes"]["units"] == "a.u."
        assert response["chunk_grid"]["configuration"]["chunk_shape"] == [768, 2048]
        (sharding,) = response["codecs"]
        assert sharding["name"] == "sharding_indexed"
        assert sharding["configuration"]["chunk_shape"] == [256, 1024]
        blosc = sharding["configuration"]["codecs"][-1]
        assert blosc["name"] == "blosc"
        expected = {"cname": "zstd", "clevel": 3, "shuffle": "shuffle", "typesize": 4}
        assert {key: blosc["configuration"][key] for key in expected} == expected

        movie = json.loads(read_file(local_store, reference.digest, "recording/movie/zarr.json"))
        assert movie["dimension_names"] == ["time", "y", "x"]
        assert movie["codecs"][0]["configuration"]["chunk_shape"] == [32, 64, 72]
        assert movie["chunk_grid"]["configuration"]["chunk_shape"] == [256, 64, 72]
        assert movie["codecs"][0]["configuration"]["codecs"][-1]["configuration"]["typesize"] == 2
        assert [entry.path for entry in list_files(local_store, reference.digest) if "movie/c" in entry.path] == [
            "recording/movie/c/0/0/0",
            "recording/movie/c/1/0/0",
        ]

    def test_manifest_holds_paths_sizes_and_digests_and_nothing_of_time_or_place(self, local_store: Store) -> None:
        reference = write_files(local_store, {"a": b"x"})
        stored = json.loads(local_store.read(f"manifests/{reference.digest}.json"))
        assert set(stored) == {"prefix", "manifest"}
        assert stored["manifest"] == {
            "schema_version": 1,
            "kind": "files",
            "files": [{"path": "a", "size": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}],
        }
        assert digest_of(stored["manifest"]) == reference.digest

    def test_order_of_variables_and_attributes_does_not_matter(self, local_store: Store) -> None:
        one = xr.Dataset({"a": ("t", [1.0]), "b": ("t", [2])}, attrs={"p": 1, "q": 2})
        other = xr.Dataset({"b": ("t", [2]), "a": ("t", [1.0])}, attrs={"q": 2, "p": 1})
        assert write_dataset(local_store, xr.DataTree(one)) == write_dataset(local_store, xr.DataTree(other))

    def test_damaged_manifest_is_not_believed(self, local_store: Store) -> None:
        reference = write_files(local_store, {"a": b"x"})
        path = f"manifests/{reference.digest}.json"
        local_store.replace(path, local_store.read(path).replace(b'"size":1', b'"size":2'))
        with pytest.raises(PlatformError, match="damaged"):
            list_files(local_store, reference.digest)
        # It may name anything now, so nothing is garbage.
        with pytest.raises(PlatformError):
            collect_garbage(local_store, dry_run=False, now=datetime.now(UTC) + timedelta(days=8))


class TestOutOfCore:
    FRAMES, SIDE = 2560, 128

    def blocks(self) -> Iterator[NDArray[np.int16]]:
        random = np.random.default_rng(0)
        for start in range(0, self.FRAMES, 100):
            yield random.integers(0, 4000, (min(100, self.FRAMES - start), self.SIDE, self.SIDE), dtype=np.int16)

    def test_blocks_and_memory_maps_are_written_within_the_memory_of_a_shard(self, local_store: Store, tmp_path: Path) -> None:
        dims, shape = ("time", "y", "x"), (self.FRAMES, self.SIDE, self.SIDE)
        raw = np.memmap(tmp_path / "movie.raw", np.int16, "w+", shape=shape)
        np.concatenate(list(self.blocks()), out=raw)
        raw.flush()
        seen: list[Progress] = []
        tracemalloc.start()
        try:
            with stage(local_store) as staged:
                staged.write_array("movie", self.blocks(), dims=dims, shape=shape, dtype="i2", progress=seen.append)
                first = staged.seal()
            second = write_dataset(local_store, xr.DataTree(xr.Dataset({"movie": (dims, raw)})))
            # A lazily opened dataset is copied the same way, chunk by chunk.
            third = write_dataset(local_store, open_dataset(local_store, first.digest))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert first == second == third
        assert (seen[-1].done, seen[-1].total) == (self.FRAMES, self.FRAMES)
        shard = 256 * self.SIDE * self.SIDE * 2
        assert raw.nbytes == 10 * shard
        assert peak < 6 * shard, f"{peak / 2**20:.0f} MiB"
        np.testing.assert_array_equal(open_dataset(local_store, first.digest)["movie"][700:710].values, raw[700:710])

    @pytest.mark.parametrize("length", [9, 11])
    def test_blocks_have_to_fill_the_shape(self, local_store: Store, length: int) -> None:
        with stage(local_store) as staged, pytest.raises(InputError, match="announced") as caught:
            staged.write_array("a", [np.zeros((length, 2))], dims=("t", "y"), shape=(10, 2), dtype="f4")
        assert caught.value.where == "a"
        assert local_store.walk("data") == []


class TestBadInput:
    @pytest.mark.parametrize(
        ("dataset", "where"),
        [
            (xr.Dataset({"onset": ("trial", np.array(["2024-01-01"], "datetime64[ns]"))}), "onset"),
            (xr.Dataset({"mixed": ("trial", np.array(["a", 1], object))}), "mixed"),
            (xr.Dataset({"a b": ("trial", [1])}), "/"),
            (xr.Dataset(attrs={"when": datetime(2024, 1, 1).tzinfo, "bad": object()}), "/"),
            (xr.Dataset({"nan": ("trial", [1], {"limit": float("nan")})}), "nan"),
        ],
    )
    def test_what_cannot_be_stored_is_named(self, local_store: Store, dataset: xr.Dataset, where: str) -> None:
        with pytest.raises(InputError) as caught:
            write_dataset(local_store, xr.DataTree(dataset))
        assert caught.value.where == where
        assert caught.value.advice
        assert local_store.walk("") == []

    def test_unknown_and_malformed_digests(self, local_store: Store) -> None:
        with pytest.raises(MissingObjectError, match="no dataset"):
            open_dataset(local_store, "0" * 64)
        with pytest.raises(InputError, match="not a digest"):
            open_dataset(local_store, "../../etc/passwd")

    def test_files_are_not_opened_as_arrays(self, local_store: Store) -> None:
        with pytest.raises(InputError, match="plain files"):
            open_dataset(local_store, write_files(local_store, {"a": b"x"}).digest)

    def test_bad_files(self, local_store: Store, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="without any file"):
            write_files(local_store, {})
        with pytest.raises(InputError) as caught:
            write_files(local_store, {"a": tmp_path / "absent"})
        assert caught.value.where == str(tmp_path / "absent")
        with pytest.raises(InputError):
            write_files(local_store, {"../a": b"x"})
        assert local_store.walk("") == []

    def test_interrupted_download_is_resumed_and_damage_repaired(self, local_store: Store, tmp_path: Path) -> None:
        reference = write_files(local_store, {"a": b"one", "b/c": b"two"})
        (tmp_path / "out/b").mkdir(parents=True)
        (tmp_path / "out/a").write_bytes(b"one")
        (tmp_path / "out/b/c").write_bytes(b"tw!")
        (tmp_path / "out/b/c.part").write_bytes(b"t")
        kept = (tmp_path / "out/a").stat().st_mtime_ns
        download_files(local_store, reference.digest, tmp_path / "out")
        assert (tmp_path / "out/b/c").read_bytes() == b"two"
        assert (tmp_path / "out/a").stat().st_mtime_ns == kept
        assert sorted(file.name for file in (tmp_path / "out").rglob("*") if file.is_file()) == ["a", "c"]
        (tmp_path / "file").write_bytes(b"")
        other = write_files(local_store, {"a": b"one"})
        with pytest.raises(InputError, match="does not belong") as caught:
            download_files(local_store, other.digest, tmp_path / "out")
        assert caught.value.where == str(tmp_path / "out/b/c")
        with pytest.raises(InputError, match="cannot write"):
            download_files(local_store, reference.digest, tmp_path / "file")

    def test_short_grace_period_is_refused(self, local_store: Store) -> None:
        with pytest.raises(InputError, match="grace period"):
            collect_garbage(local_store, dry_run=False, grace_period=timedelta(0))

    def test_record_that_would_not_come_back_is_refused(self, local_store: Store) -> None:
        class Score(BaseModel):
            value: float

        with pytest.raises(InputError, match="does not survive") as caught:
            Series(local_store, "scores").append(Score(value=float("nan")))
        assert caught.value.where == "Score"
        with pytest.raises(InputError):
            digest_of({"value": float("nan")})
        assert digest_of(Score(value=0.1)) == digest_of({"value": 0.1})
        assert digest_of({"b": 1, "a": [1.5, None]}) == digest_of({"a": [1.5, None], "b": 1})


def test_writer_killed_at_any_moment_leaves_only_whole_generations(local_store: Store) -> None:
    class Long(BaseModel):
        number: int
        text: str

    for delay in (0.0, 0.005):
        writer = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, local_store.url], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(delay)
        writer.kill()
        writer.wait()
        stored = Series(local_store, "long").all(Long)
        assert [number for number, _ in stored] == list(range(1, len(stored) + 1))
        assert all(len(record.text) == 2_000_000 for _, record in stored)
    week = datetime.now(UTC) + timedelta(days=8)
    collect_garbage(local_store, dry_run=False, now=week)
    assert local_store.walk("temporary") == []


ENDLESS_WRITER = """
import sys
from pydantic import BaseModel
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import Series, Store

class Long(BaseModel):
    number: int
    text: str

series = Series(Store("lab", RootSettings(url=sys.argv[1])), "long")
while True:
    print(series.append(Long(number=1, text="x" * 2_000_000)), flush=True)
"""

KILLED_WRITER = """
import sys, time
import numpy as np
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import Store, stage

url, endpoint, key, secret = sys.argv[1:]
store = Store("lab", RootSettings(url=url, endpoint_url=endpoint or None, access_key=key or None, secret_key=secret or None))
random = np.random.default_rng(0)

def blocks():
    for start in range(10):
        yield random.normal(size=(256, 1024)).astype("f4")
        if start == 5:
            print("half way", flush=True)
            time.sleep(600)

with stage(store) as staged:
    staged.add("notes.json", b"{}")
    staged.write_array("trials/first", iter([random.normal(size=(256, 1024))]), dims=("trial", "neuron"), shape=(256, 1024), dtype="f4")
    staged.write_array("trials/response", blocks(), dims=("trial", "neuron"), shape=(2560, 1024), dtype="f4")
    staged.seal()
"""
