"""From predictions and hidden responses to numbers: the three metrics of SENSORIUM 2022, the noise ceiling and the score record."""

from sensorium_pipeline.scoring.metrics import FEV_THRESHOLD, METRIC_VERSION, ImageRepeats, NeuronMetrics, neuron_metrics
from sensorium_pipeline.scoring.noise_ceiling import NoiseCeiling, noise_ceiling
from sensorium_pipeline.scoring.records import MetricName, Metrics, RepeatCounts, ScoreRecord, Tier, Track, primary_metric
from sensorium_pipeline.scoring.score import SessionScore, score_predictions

__all__ = [
    "FEV_THRESHOLD",
    "METRIC_VERSION",
    "ImageRepeats",
    "MetricName",
    "Metrics",
    "NeuronMetrics",
    "NoiseCeiling",
    "RepeatCounts",
    "ScoreRecord",
    "SessionScore",
    "Tier",
    "Track",
    "neuron_metrics",
    "noise_ceiling",
    "primary_metric",
    "score_predictions",
]
