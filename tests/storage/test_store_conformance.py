"""What every kind of storage has to hold: reading, listing, and the exclusive create on which everything else rests."""

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import BaseModel

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import MissingObjectError, Series, Store, read_result, record_result
from sensorium_pipeline.storage.local_s3 import LocalS3Server

WRITERS = 16


class Note(BaseModel):
    writer: int
    text: str = ""


# Sixteen writers in two processes: each tries every generation and prints those that it was told it won.
RACING_PROCESS = """
import sys, threading
from pydantic import BaseModel
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import Series, Store

class Note(BaseModel):
    writer: int
    text: str = ""

url, endpoint, key, secret, first, rounds = sys.argv[1:]
root = RootSettings(url=url, endpoint_url=endpoint or None, access_key=key or None, secret_key=secret or None)
print("ready", flush=True)
sys.stdin.readline()

won = []

def race(writer):
    series = Series(Store("lab", root), "current")
    for number in range(1, int(rounds) + 1):
        if series.create(number, Note(writer=writer)):
            won.append((number, writer))

threads = [threading.Thread(target=race, args=(int(first) + k,)) for k in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
# Threads that print side by side mix up their lines.
for number, writer in won:
    print(number, writer)
"""


class TestConformance:
    def test_reads_lists_and_finds_what_was_created(self, store: Store) -> None:
        assert store.list("") == []
        assert store.list("a") == []
        assert store.walk("a") == []
        assert not store.exists("a/b")
        assert store.create("a/b.json", b"one")
        assert store.create("a/c/d.json", b"three")
        assert store.create("a0", b"beside")
        store.replace("empty", b"")
        assert store.read("a/b.json") == b"one"
        assert store.read_range("a/c/d.json", 1, 3) == b"hr"
        assert store.read("empty") == b""
        # Ranges end where the object does, also those of an empty one.
        assert store.read_range("a/b.json", 1, 9) == b"ne"
        assert store.read_range("a/b.json", 3, 9) == store.read_range("empty", 0, 9) == b""
        assert store.list("") == ["a", "a0", "empty"]
        assert store.list("a") == ["b.json", "c"]
        assert store.list("a/b.json") == []
        assert [(entry.path, entry.size) for entry in store.walk("a")] == [("a/b.json", 3), ("a/c/d.json", 5)]
        assert store.exists("a/b.json")
        assert not store.exists("a")
        assert not store.exists("a/b")

    def test_listings_see_what_another_writer_just_made(self, store: Store, root: RootSettings) -> None:
        other = Store("lab", root)
        for number in range(5):
            assert store.list("seen") == [f"{k}" for k in range(number)]
            assert other.create(f"seen/{number}", b"x")

    def test_second_create_is_refused_and_changes_nothing(self, store: Store) -> None:
        assert store.create("once", b"first")
        assert not store.create("once", b"second")
        assert store.read("once") == b"first"

    def test_missing_object_says_where(self, store: Store) -> None:
        with pytest.raises(MissingObjectError) as caught:
            store.read("no/such/object")
        assert caught.value.where == f"{store.url}/no/such/object"
        assert caught.value.exit_code == 1

    @pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "../a", "a/../b", "a\\b", "a\0b"])
    def test_only_plain_relative_paths(self, store: Store, path: str) -> None:
        with pytest.raises(InputError):
            store.create(path, b"x")

    def test_nothing_cannot_be_created(self, store: Store) -> None:
        # Some servers take an empty conditional PUT for an unconditional one.
        with pytest.raises(InputError):
            store.create("empty", b"")

    def test_replace_overwrites_and_remove_removes(self, store: Store) -> None:
        store.replace("latest", b"one")
        store.replace("latest", b"two")
        assert store.read("latest") == b"two"
        assert store.create("gone/a/b", b"x")
        assert store.create("gone/c", b"x")
        store.remove("gone")
        store.remove("gone")
        assert [entry.path for entry in store.walk("")] == ["latest"]

    def test_store_crosses_process_borders_and_keeps_its_secret(self, store: Store) -> None:
        store.create("a", b"x")
        assert pickle.loads(pickle.dumps(store)).read("a") == b"x"
        assert "secret" not in repr(store)

    def test_sixteen_writers_race_and_exactly_one_wins(self, root: RootSettings) -> None:
        # SeaweedFS settles sixteen writers of one key in seconds, the others in fractions of one.
        rounds = 150 if root.endpoint_url is None else 6
        barrier = threading.Barrier(WRITERS)

        def race(writer: int) -> list[bool]:
            # A store of its own has connections of its own.
            series = Series(Store("lab", root), "current")
            outcomes = []
            for number in range(1, rounds + 1):
                barrier.wait(60)
                outcomes.append(series.create(number, Note(writer=writer)))
            return outcomes

        with ThreadPoolExecutor(WRITERS) as writers:
            outcomes = list(writers.map(race, range(WRITERS)))
        stored = Series(Store("lab", root), "current").all(Note)
        assert [number for number, _ in stored] == list(range(1, rounds + 1))
        for number, note in stored:
            assert [writer for writer in range(WRITERS) if outcomes[writer][number - 1]] == [note.writer]
        # Else nobody was ever late, and this was no race.
        assert len({note.writer for _, note in stored}) > 1

    def test_writers_of_several_processes_race(self, root: RootSettings) -> None:
        rounds = 40 if root.endpoint_url is None else 5
        secret = root.secret_key.get_secret_value() if root.secret_key else ""
        arguments = [str(root.url), root.endpoint_url or "", root.access_key or "", secret]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", RACING_PROCESS, *arguments, str(8 * k), str(rounds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for k in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        won: list[tuple[int, int]] = []
        with ThreadPoolExecutor(2) as waiting:
            for output, _ in waiting.map(lambda process: process.communicate("go\n", timeout=120), processes):
                won += [(int(line.split()[0]), int(line.split()[1])) for line in output.splitlines()]
        assert [process.returncode for process in processes] == [0] * 2
        stored = Series(Store("lab", root), "current").all(Note)
        assert sorted(won) == [(number, note.writer) for number, note in stored]
        assert len(stored) == rounds

    def test_appending_writers_lose_no_record(self, root: RootSettings) -> None:
        def append(writer: int) -> list[int]:
            series = Series(Store("lab", root), "events")
            return [series.append(Note(writer=writer, text=str(k))) for k in range(3)]

        with ThreadPoolExecutor(8) as writers:
            numbers = list(writers.map(append, range(8)))
        assert sorted(number for own in numbers for number in own) == list(range(1, 25))
        assert all(own == sorted(own) for own in numbers)
        stored = dict(Series(Store("lab", root), "events").all(Note))
        assert all(stored[own[k]] == Note(writer=writer, text=str(k)) for writer, own in enumerate(numbers) for k in range(3))

    def test_equal_records_still_have_one_winner(self, root: RootSettings) -> None:
        # The bytes of equal records differ by a nonce: without it every writer would believe that it had won.
        with ThreadPoolExecutor(WRITERS) as writers:
            won = list(writers.map(lambda _: Series(Store("lab", root), "equal").create(1, Note(writer=0)), range(WRITERS)))
        assert sum(won) == 1

    def test_first_result_wins_and_everybody_gets_it(self, root: RootSettings) -> None:
        assert read_result(Store("lab", root), "scores/abc", Note) is None
        with ThreadPoolExecutor(8) as writers:
            got = list(writers.map(lambda k: record_result(Store("lab", root), "scores/abc", Note(writer=k)), range(8)))
        assert len({note.writer for note in got}) == 1
        assert read_result(Store("lab", root), "scores/abc", Note) == got[0]
        assert record_result(Store("lab", root), "scores/abc", Note(writer=99)) == got[0]


FORKING_PROCESS = """
import os, sys
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import Store

store = Store("lab", RootSettings(url=sys.argv[1], endpoint_url=sys.argv[2], access_key=sys.argv[3], secret_key=sys.argv[4]))
store.create("a", b"x")
child = os.fork()
if child == 0:
    os._exit(0 if store.read("a") == b"x" and store.create("b", b"y") else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_connections_survive_a_fork(seaweedfs: LocalS3Server) -> None:
    root = seaweedfs.root("s3://sensorium-tests/forked")
    arguments = [str(root.url), str(root.endpoint_url), seaweedfs.access_key, seaweedfs.secret_key.get_secret_value()]
    subprocess.run([sys.executable, "-c", FORKING_PROCESS, *arguments], check=True, timeout=60)
    assert Store("lab", root).read("b") == b"y"


class TestLossyWire:
    """A real server behind a wire that loses answers and requests."""

    @pytest.fixture(params=["moto", "seaweedfs"])
    def direct(self, request: pytest.FixtureRequest) -> RootSettings:
        server = request.getfixturevalue(request.param)
        url = f"s3://sensorium-tests/{id(request)}-lossy"
        return server.model_copy(update={"url": url}) if isinstance(server, RootSettings) else server.root(url)

    @pytest.mark.parametrize("lost", [1, 5])
    def test_winner_whose_answer_was_lost_knows_that_it_won(
        self, direct: RootSettings, lossy_wire: Callable[[str], object], lost: int
    ) -> None:
        store = Store("lab", direct)
        store.prepare()
        wire = lossy_wire(str(direct.endpoint_url))
        lossy = Series(Store("lab", direct.model_copy(update={"endpoint_url": wire.endpoint_url})), f"lost-{lost}")
        wire.answers_to_lose = lost
        assert lossy.append(Note(writer=1)) == 1
        assert 1 <= wire.lost_answers <= lost
        wire.answers_to_lose = 0
        assert Series(store, f"lost-{lost}").all(Note) == [(1, Note(writer=1))]

    def test_loser_whose_answer_was_lost_knows_that_it_lost(self, direct: RootSettings, lossy_wire: Callable[[str], object]) -> None:
        assert Series(Store("lab", direct), "taken").create(1, Note(writer=0))
        wire = lossy_wire(str(direct.endpoint_url))
        lossy = Series(Store("lab", direct.model_copy(update={"endpoint_url": wire.endpoint_url})), "taken")
        wire.answers_to_lose = 1
        assert not lossy.create(1, Note(writer=0))
        assert wire.lost_answers == 1

    def test_lost_request_is_repeated(self, direct: RootSettings, lossy_wire: Callable[[str], object]) -> None:
        Store("lab", direct).prepare()
        wire = lossy_wire(str(direct.endpoint_url))
        lossy = Series(Store("lab", direct.model_copy(update={"endpoint_url": wire.endpoint_url})), "repeated")
        wire.requests_to_lose = 1
        assert lossy.append(Note(writer=1)) == 1
        assert wire.lost_requests == 1
        assert len(Series(Store("lab", direct), "repeated").numbers()) == 1

    def test_server_that_is_gone_is_the_platforms_fault(self, direct: RootSettings, lossy_wire: Callable[[str], object]) -> None:
        wire = lossy_wire(str(direct.endpoint_url))
        wire.close()
        with pytest.raises(PlatformError, match="cannot be reached") as caught:
            Store("lab", direct.model_copy(update={"endpoint_url": wire.endpoint_url})).read("x")
        assert wire.endpoint_url in str(caught.value)
