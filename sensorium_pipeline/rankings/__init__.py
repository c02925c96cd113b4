"""From score records to a published ranking: resampling, the ranking function, changes, explanation, files and the page."""

from sensorium_pipeline.rankings.changes import RowChange, TableChanges, changes_between
from sensorium_pipeline.rankings.explain import Explanation, Origin, explain
from sensorium_pipeline.rankings.publication import Publication, PublicationRecord, Published, latest_publication, publish
from sensorium_pipeline.rankings.records import Entry, Estimate, RankingTable, Row, SessionResult
from sensorium_pipeline.rankings.resampling import RESAMPLING_VERSION, Draws, ResampledScore, Resamples, draw, resample_score
from sensorium_pipeline.rankings.selection import which_counts
from sensorium_pipeline.rankings.table import rank_submissions

__all__ = [
    "RESAMPLING_VERSION",
    "Draws",
    "Entry",
    "Estimate",
    "Explanation",
    "Origin",
    "Publication",
    "PublicationRecord",
    "Published",
    "RankingTable",
    "ResampledScore",
    "Resamples",
    "Row",
    "RowChange",
    "SessionResult",
    "TableChanges",
    "changes_between",
    "draw",
    "explain",
    "latest_publication",
    "publish",
    "rank_submissions",
    "resample_score",
    "which_counts",
]
