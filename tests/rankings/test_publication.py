"""Publications: formats that agree, a page that is safe and self-contained, generations, and a final tier that stays closed."""

import csv
import io
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import jsonschema
import pyarrow.parquet as pq
import pytest
from fake_entries import SESSIONS, make_entries, make_entry, make_score

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.rankings import RankingTable, latest_publication, publish, rank_submissions
from sensorium_pipeline.rankings.publication import render_files
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import list_files, open_workspace, read_file

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


def make_table(track="sensorium", tier="test", entries=None, previous=None):
    entries = make_entries(track, tier) if entries is None else entries
    return rank_submissions(entries, release="demo", track=track, tier=tier, sessions=SESSIONS[track], previous=previous)


@pytest.fixture
def store(tmp_path):
    workspace = open_workspace(Settings(root=str(tmp_path)))
    workspace.open.prepare()
    return workspace.open


@pytest.fixture(scope="module")
def files():
    return render_files("demo", [make_table(), make_table("sensorium+")], [])


class Page(HTMLParser):
    """Collects tags, and checks that they close in order."""

    VOID = frozenset({"meta", "link", "line", "rect", "circle", "path", "br", "img"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


class TestFormats:
    def test_csv_and_parquet_hold_the_same_and_undefined_is_empty(self, files):
        lines = list(csv.DictReader(io.StringIO(files["sensorium-live.csv"].decode())))
        parquet = pq.read_table(io.BytesIO(files["sensorium-live.parquet"])).to_pylist()
        table = make_table()
        assert len(lines) == len(parquet) == len(table.rows)
        assert list(lines[0]) == list(parquet[0])
        for line, record, row in zip(lines, parquet, table.rows, strict=True):
            assert line["team"] == record["team"] == row.team
            if row.rank is None:
                assert line["score"] == line["rank"] == line["p_best"] == ""
                assert record["score"] is record["rank"] is None
            else:
                assert float(line["score"]) == record["score"] == row.score.value
                assert float(line["static26872-17-20 feve"]) == row.sessions[0].metrics.feve

    def test_json_follows_its_schema_and_holds_no_nan(self, files):
        schema = json.loads(files["table.schema.json"])
        jsonschema.Draft202012Validator.check_schema(schema)
        for name in ("sensorium-live.json", "sensorium-plus-live.json"):
            text = files[name].decode()
            jsonschema.validate(json.loads(text, parse_constant=lambda _: pytest.fail("NaN in JSON")), schema)

    def test_a_table_of_an_older_version_is_read_without_the_fields_that_went(self, files):
        content = json.loads(files["sensorium-live.json"])
        content["rows"][0]["links"] = []
        assert RankingTable.model_validate_json(json.dumps(content)) == RankingTable.model_validate_json(files["sensorium-live.json"])

    def test_markdown_lists_everybody(self, files):
        text = files["sensorium-live.md"].decode()
        assert all(team in text for team in ("Cortex Cartographers", "Late Night Commits"))
        assert "KeyError" in text
        assert "| < 1 % |".replace("<", "\\<") in text
        assert "| 0 % |" not in text

    def test_the_same_table_is_the_same_bytes(self, files):
        assert render_files("demo", [make_table(), make_table("sensorium+")], []) == files

    def test_every_link_of_the_page_is_a_file_beside_it(self, files):
        page = Page(files["index.html"].decode())
        inside = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
        assert {address for address in inside if not address.startswith("#")} <= set(files)
        assert {address[1:] for address in inside if address.startswith("#")} == {
            attrs["id"] for tag, attrs in page.tags if tag == "section"
        }

    def test_names_of_strangers_stay_names(self):
        evil = "<script>alert(1)</script>|=x"
        entries = [
            make_entry(evil, '=HYPERLINK("http://evil")', [make_score("aa")]),
            make_entry("b\u202e\n\x1b[2J", "x" * 500, failure="<img src=x onerror=alert(1)>", submission_digest="bb"),
        ]
        files = render_files("demo", [make_table(entries=entries)], [])
        page = Page(files["index.html"].decode())
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert not [tag for tag, _ in page.tags if tag == "img"]
        assert evil in "".join(page.text)
        assert "'=HYPERLINK" in files["sensorium-live.csv"].decode()
        assert "<script>" not in files["sensorium-live.md"].decode().replace("\\<", "")
        assert "\x1b" not in files["sensorium-live.json"].decode()


class TestPage:
    def test_it_asks_no_server_for_anything(self, files):
        page = Page(files["index.html"].decode())
        assert page.open == []
        for tag, attributes in page.tags:
            assert "src" not in attributes
            assert tag not in {"iframe", "object", "embed", "img"}
            if tag == "link":
                assert attributes["href"] == "data:,"
        assert not re.search(r"url\(|@import", files["index.html"].decode())

    def test_the_content_policy_lets_its_own_script_run(self, files):
        import base64
        import hashlib

        text = files["index.html"].decode()
        script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
        wanted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{wanted}'" in text

    def test_intervals_are_drawn_and_spoken(self, files):
        page = Page(files["index.html"].decode())
        spoken = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
        assert len(spoken) == 2 * 2 * 8
        row = make_table().ranked[0]
        assert f"{row.score.value:.3f}, 95 % interval {row.score.low:.3f} to {row.score.high:.3f}" in spoken
        last = make_table().ranked[-1].difference_to_leader
        assert f"−{-last.value:.3f}, 95 % interval −{-last.low:.3f} to −{-last.high:.3f}" in spoken
        inside = [attrs for tag, attrs in page.tags if tag == "rect"]
        assert all(float(attrs["x"]) >= 0 and float(attrs["x"]) + float(attrs["width"]) <= 190 for attrs in inside)

    def test_tables_without_a_ranked_model_or_with_one_are_pages_too(self):
        for entries in ([], [make_entry("a", "m", [make_score("aa")])], [make_entry("a", "m", failure="It crashed.")]):
            assert Page(render_files("demo", [make_table(entries=entries)], [])["index.html"].decode()).open == []


class TestPublish:
    def test_generations_changes_and_the_redirect(self, store):
        entries = make_entries()
        first = publish(store, "demo", [make_table(entries=entries[:5])], final_open=False, time=NOW)
        assert (first.number, first.new) == (1, True)
        before = latest_publication(store, "demo")
        assert before.table("sensorium", "test") == make_table(entries=entries[:5])
        assert before.table("sensorium+", "test") is None
        table = make_table(entries=entries, previous=before.table("sensorium", "test"))
        second = publish(store, "demo", [table], final_open=False, time=NOW)
        assert (second.number, second.new) == (2, True)
        assert {row.reason for row in second.changes[0].rows} >= {"new submission"}
        redirect = store.read("publications/demo/index.html").decode()
        target = re.search(r'url=([^"]+)"', redirect)[1]
        assert target.startswith("../../")
        assert store.read(target.removeprefix("../../")) == read_file(store, second.record.files_digest, "index.html")
        assert second.page.endswith(target.removeprefix("../../"))
        changes = json.loads(read_file(store, second.record.files_digest, "changes.json"))
        assert len(changes[0]["rows"]) == len(second.changes[0].rows)

    def test_the_same_tables_again_make_no_new_generation(self, store):
        publish(store, "demo", [make_table(entries=make_entries()[:5])], final_open=False, time=NOW)
        for _ in range(2):
            before = latest_publication(store, "demo").table("sensorium", "test")
            done = publish(store, "demo", [make_table(previous=before)], final_open=False, time=NOW)
        assert (done.number, done.new) == (2, False)

    def test_the_final_tier_appears_only_when_it_is_open(self, store):
        tables = [make_table(), make_table(tier="final_test")]
        with pytest.raises(OrganiserError, match="final tier is not open"):
            publish(store, "demo", tables, final_open=False, time=NOW)
        assert latest_publication(store, "demo") is None
        assert store.list("") == []
        done = publish(store, "demo", tables, final_open=True, time=NOW)
        assert done.record.tables == ("sensorium-final", "sensorium-live")
        names = {entry.path for entry in list_files(store, done.record.files_digest)}
        assert {"sensorium-final.csv", "sensorium-live.parquet", "index.html", "table.schema.json"} <= names

    def test_what_is_not_published(self, store):
        with pytest.raises(OrganiserError, match="two such tables"):
            publish(store, "demo", [make_table(), make_table()], final_open=False, time=NOW)
        with pytest.raises(OrganiserError, match="release demo"):
            publish(store, "other", [make_table()], final_open=False, time=NOW)
        with pytest.raises(OrganiserError, match="tier validation"):
            publish(store, "demo", [make_table(tier="validation", entries=[])], final_open=False, time=NOW)
        with pytest.raises(InputError, match="name of a release"):
            publish(store, "../demo", [make_table()], final_open=False, time=NOW)
        assert store.list("") == []
