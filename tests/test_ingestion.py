"""What the recording itself says about how it is ingested."""

from pathlib import Path

from small_world import OPEN, World

from sensorium_pipeline.ingestion import plane_key, session_parameters
from sensorium_pipeline.sessions.records import SessionParameters


def test_session_toml_changes_thresholds_and_parameters(world: World, tmp_path: Path) -> None:
    description = (world.raw(OPEN) / "session.toml").read_text()
    (tmp_path / "session.toml").write_text(description)
    assert session_parameters(tmp_path) == SessionParameters()
    changes = (
        "[parameters.gates]\nneurons = 40\n[parameters.gates.plane]\nmedian_snr = 2.5\n[parameters.imaging.motion]\nnon_rigid = false\n"
    )
    (tmp_path / "session.toml").write_text(f"{description}\n{changes}")
    parameters = session_parameters(tmp_path)
    assert parameters.gates.neurons == 40
    assert parameters.gates.plane.median_snr == 2.5
    assert parameters.gates.plane.bleaching == SessionParameters().gates.plane.bleaching
    assert parameters.imaging.motion.non_rigid is False
    # Another motion is another result; other thresholds alone are not.
    assert plane_key("recording", 0, parameters.imaging) != plane_key("recording", 0, SessionParameters().imaging)
