"""Publishing tables: all files under one digest, a numbered generation that names it, and the page's redirect to the newest.

`publications/<release>/000042.json` in the open store names a dataset of plain files: `index.html`, each table as CSV, Parquet, JSON
and Markdown, `table.schema.json`, `changes.json`, and `explain/` with one record for each row. `publications/<release>/index.html` is the
one object that is ever overwritten: it sends a browser to the newest page.
"""

import html
import json
import re
from collections.abc import Sequence
from datetime import datetime

from pydantic import AwareDatetime

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.rankings.changes import TableChanges, changes_between
from sensorium_pipeline.rankings.explain import explain
from sensorium_pipeline.rankings.formats import as_csv, as_json, as_markdown, as_parquet, json_schema
from sensorium_pipeline.rankings.page import explanation_path, render_page, table_name
from sensorium_pipeline.rankings.records import TIER_LABELS, TRACK_LABELS, RankingTable, _Record
from sensorium_pipeline.scoring import Tier, Track
from sensorium_pipeline.storage import Series, Store, dataset_url, digest_of, read_file, write_files

PAGE = "index.html"


class PublicationRecord(_Record):
    """One generation.

    Attributes:
        content_digest: of the tables without their column of changes: the same content is not published twice.
        files_digest: the dataset of plain files.
        tables: names of the tables in it, such as "sensorium-live".
        final_open: whether the final tier was open.
        time: when it was published.
    """

    release: str
    content_digest: str
    files_digest: str
    tables: tuple[str, ...]
    final_open: bool
    time: AwareDatetime


class Publication(_Record):
    """A generation with its tables, read back."""

    number: int
    record: PublicationRecord
    tables: tuple[RankingTable, ...]

    def table(self, track: Track, tier: Tier) -> RankingTable | None:
        """The table of a track and a tier, where it was published: what `rank_submissions` takes as `previous`."""
        return next((table for table in self.tables if (table.track, table.tier) == (track, tier)), None)


class Published(_Record):
    """What `publish` did: `new` is false where the newest generation holds the same tables already. `page` and `latest` are URLs."""

    number: int
    record: PublicationRecord
    new: bool
    page: str
    latest: str
    changes: tuple[TableChanges, ...]


def latest_publication(store: Store, release: str) -> Publication | None:
    """The newest publication of a release in the open store, or None."""
    found = Series(store, _series(release)).latest(PublicationRecord)
    if found is None:
        return None
    number, record = found
    names = [f"{name}.json" for name in record.tables]
    tables = tuple(RankingTable.model_validate_json(read_file(store, record.files_digest, name)) for name in names)
    return Publication(number=number, record=record, tables=tables)


def latest_page(store: Store, release: str) -> str:
    """URL that always leads to the newest page of a release."""
    return f"{store.url}/{_series(release)}/{PAGE}"


def publish(store: Store, release: str, tables: Sequence[RankingTable], *, final_open: bool, time: datetime) -> Published:
    """Publish the tables of a release in the open store; the same tables again make no new generation.

    Args:
        store: the open store.
        release: its name; part of a path.
        tables: at most one for each track and tier, ranked with the newest publication as `previous`.
        final_open: whether the release says that the final tier is open.
        time: now, with its time zone.

    Raises:
        OrganiserError: a table of the final tier while that is not open, of a hidden tier that is never published, of another
            release, or a track and tier twice. Nothing is published then.
        InputError: the release's name cannot be part of a path.
    """
    series = Series(store, _series(release))
    _refuse_unpublishable(release, tables, final_open)
    ordered = sorted(tables, key=lambda table: (table.track, table.tier != "final_test"))
    content = content_digest(ordered, final_open=final_open)
    before = latest_publication(store, release)
    if before is not None and before.record.content_digest == content:
        _redirect(store, release, before.record)
        return _published(store, release, before.number, before.record, new=False, changes=())
    changes = tuple(changes_between(before.table(table.track, table.tier) if before else None, table) for table in ordered)
    files = render_files(release, ordered, changes)
    record = PublicationRecord(
        release=release,
        content_digest=content,
        files_digest=write_files(store, files).digest,
        tables=tuple(table_name(table) for table in ordered),
        final_open=final_open,
        time=time,
    )
    number = series.append(record)
    newest = series.latest(PublicationRecord)
    _redirect(store, release, newest[1] if newest else record)
    return _published(store, release, number, record, new=True, changes=changes)


def content_digest(tables: Sequence[RankingTable], *, final_open: bool) -> str:
    """Digest of tables without their column of changes: the same content is not published twice."""
    ordered = sorted(tables, key=lambda table: (table.track, table.tier != "final_test"))
    return digest_of([table.without_changes() for table in ordered] + [final_open])


def render_files(release: str, tables: Sequence[RankingTable], changes: Sequence[TableChanges]) -> dict[str, bytes]:
    """All files of a publication, path -> bytes."""
    files = {PAGE: render_page(release, tables).encode(), "table.schema.json": json_schema()}
    files["changes.json"] = (json.dumps([change.model_dump(mode="json") for change in changes], indent=1) + "\n").encode()
    for table in tables:
        name = table_name(table)
        files |= {
            f"{name}.csv": as_csv(table),
            f"{name}.parquet": as_parquet(table),
            f"{name}.json": as_json(table),
            f"{name}.md": as_markdown(table),
        }
        for row in table.rows:
            record = explain(table, row.submission_digest, row.team)
            files[explanation_path(table, row)] = (record.model_dump_json(indent=1) + "\n").encode()
    return files


def _series(release: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", release):
        raise InputError("the name of a release is not usable in a path", where=release, advice="Use letters, digits, dots, - and _.")
    return f"publications/{release}"


def _refuse_unpublishable(release: str, tables: Sequence[RankingTable], final_open: bool) -> None:
    seen = set()
    for table in tables:
        where = f"{TRACK_LABELS[table.track]}, {TIER_LABELS[table.tier]}"
        if table.tier == "final_test" and not final_open:
            raise OrganiserError("the final tier is not open", where=where, advice="Open it in the release, or publish live only.")
        if table.tier not in ("test", "final_test"):
            raise OrganiserError(f"tables of tier {table.tier} are not published", where=where, advice="Publish test and final_test.")
        if table.release != release:
            raise OrganiserError(f"the table is of release {table.release}", where=where, advice=f"Rank release {release}.")
        if (table.track, table.tier) in seen:
            raise OrganiserError("there are two such tables", where=where, advice="Publish one a track and tier.")
        seen.add((table.track, table.tier))


def _published(
    store: Store, release: str, number: int, record: PublicationRecord, *, new: bool, changes: tuple[TableChanges, ...]
) -> Published:
    return Published(
        number=number,
        record=record,
        new=new,
        page=f"{dataset_url(store, record.files_digest)}/{PAGE}",
        latest=latest_page(store, release),
        changes=changes,
    )


def _redirect(store: Store, release: str, record: PublicationRecord) -> None:
    """Point the release's page at a generation; relative, so that it works wherever the store is served from."""
    path = f"{_series(release)}/{PAGE}"
    inside = dataset_url(store, record.files_digest).removeprefix(f"{store.url}/")
    target = html.escape(f"../../{inside}/{PAGE}", quote=True)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(release)}: ranking</title>'
        f'<meta http-equiv="refresh" content="0; url={target}"><p><a href="{target}">The newest ranking</a></p></html>\n'
    ).encode()
    if not store.exists(path) or store.read(path) != page:
        store.replace(path, page)
