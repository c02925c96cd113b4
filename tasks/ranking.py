"""Tables of a release: computed from stored scores, shown as artifacts, published."""

from datetime import UTC, datetime

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact

from sensorium_pipeline.rankings.publication import Published, publish
from sensorium_pipeline.rankings.records import METRIC_LABELS, TIER_LABELS, TRACK_LABELS, RankingTable
from sensorium_pipeline.sessions.release import read_release
from sensorium_pipeline.tables import rank_all
from tasks.common import RETRIES, RETRY_DELAY, worth_a_retry
from tasks.workspaces import workspace_at


@task(
    name="publish tables",
    task_run_name="publish tables of {release}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=worth_a_retry,
)
def publish_tables(release: str, root: str | None) -> Published:
    """Rank both tracks on the tiers that the release has opened, and publish; the same tables again make no new generation.

    Each table becomes an artifact.
    """
    workspace = workspace_at(root)
    chosen = read_release(workspace.open, release)
    tables = rank_all(workspace, chosen)
    final_open = "final_test" in chosen.opened_tiers
    published = publish(workspace.open, chosen.name, tables, final_open=final_open, time=datetime.now(UTC))
    for table in tables:
        create_table_artifact(
            key=f"ranking-{table.track.replace('+', '-plus')}-{TIER_LABELS[table.tier]}",
            table=[_cells(row, table) for row in range(len(table.rows))],
            description=f"{TRACK_LABELS[table.track]}, {TIER_LABELS[table.tier]} tier, release {chosen.name}",
        )
    title = f"Ranking page of release {chosen.name}"
    # Browsers follow no link to a file from a page of a server, so the address is to be read as well.
    create_link_artifact(key="ranking-page", link=published.page, link_text=title, description=f"{title}: {published.page}")
    return published


def _cells(index: int, table: RankingTable) -> dict[str, str]:
    row = table.rows[index]
    return {
        "rank": str(row.rank or ""),
        "team": row.team,
        "model": row.model,
        METRIC_LABELS[table.metric]: f"{row.score.value:.4f} ({row.score.low:.4f} to {row.score.high:.4f})" if row.score else "",
        "improvement": f"{row.improvement_percent:+.1f} %" if row.improvement_percent is not None else "",
        "status": row.status,
        "reason": row.reason,
    }
