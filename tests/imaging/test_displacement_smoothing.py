import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from sensorium_pipeline.imaging.displacement_smoothing import DisplacementSmoother, EvidenceModes

NODES = (4, 4)


_PLACES = np.stack(np.meshgrid(*[np.arange(4)] * 2, indexing="ij"), -1).reshape(-1, 2)
APART = np.sqrt(((_PLACES[:, None] - _PLACES[None]) ** 2).sum(-1))
# The pixels tell the displacement of a node to about a third of a pixel, and neighbours are told together.
INFORMATION = 9 * np.kron(np.array([[1.0, 0.2], [0.2, 1.0]]), np.exp(-APART))


def modes() -> EvidenceModes:
    return EvidenceModes(INFORMATION, np.exp(-0.5 * (APART / 1.5) ** 2))


def evidence_of(fields: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What frames say of fields (frames, rows, columns, 2), with the noise that the information stands for."""
    flat = fields.transpose(0, 3, 1, 2).reshape(len(fields), -1)
    noise = rng.standard_normal(flat.shape) @ np.linalg.cholesky(INFORMATION).T
    return flat @ INFORMATION + noise


def moving(frames: int, size: float, smoothness: float, rng: np.random.Generator) -> np.ndarray:
    """Jumping shifts and a deviation of this size (px) that stays for about so many frames."""
    corners = rng.standard_normal((frames, 2, 2, 2))
    if smoothness:
        corners = gaussian_filter1d(corners, smoothness, axis=0)
    corners *= size / corners.std()
    weights = np.stack([1 - np.linspace(0, 1, 4), np.linspace(0, 1, 4)], 1)
    deviation = np.einsum("ia,jb,nabk->nijk", weights, weights, corners)
    return deviation + rng.normal(0, 2, (frames, 1, 1, 2))


def smoothed(evidence: np.ndarray, known: np.ndarray | None = None, chunk: int = 50, *, rigid: bool = False) -> np.ndarray:
    smoother = DisplacementSmoother(modes(), NODES, len(evidence), rigid=rigid)
    known = np.ones(len(evidence), bool) if known is None else known
    for start in range(0, len(evidence), chunk):
        smoother.add(evidence[start : start + chunk], known[start : start + chunk])
    return smoother.fields(0, len(evidence))


def each_alone(evidence: np.ndarray) -> np.ndarray:
    """Every frame by itself, under the variance that all of them together make most likely."""
    own = modes()
    share = own.variance(evidence) * own.strength
    deviation = (evidence @ own.directions * (share / (1 + share))) @ own.patterns.T
    shifts = evidence @ own.rigid.T - deviation @ own.mixing.T
    return (deviation.reshape(len(evidence), 2, *NODES) + shifts[:, :, None, None]).transpose(0, 2, 3, 1)


def rms(error: np.ndarray) -> float:
    return float(np.sqrt((error**2).mean()))


@pytest.mark.parametrize(("smoothness", "gain"), [(20.0, 0.65), (0.0, 1.05)], ids=["slow", "quick"])
def test_smooths_over_time_what_is_smooth_and_nothing_else(smoothness: float, gain: float) -> None:
    rng = np.random.default_rng(0)
    fields = moving(600, 0.8, smoothness, rng)
    evidence = evidence_of(fields, rng)
    assert rms(smoothed(evidence) - fields) < gain * rms(each_alone(evidence) - fields)


def test_rigid_motion_is_not_bent() -> None:
    rng = np.random.default_rng(1)
    fields = moving(600, 1e-6, 0.0, rng)
    evidence = evidence_of(fields, rng)
    found, rigid = smoothed(evidence), smoothed(evidence, rigid=True)
    assert np.ptp(rigid, axis=(1, 2)).max() < 1e-5
    assert rms(found - fields) < 1.1 * rms(rigid - fields)


def test_lasting_noise_that_all_modes_share_is_no_motion() -> None:
    rng = np.random.default_rng(2)
    at_rest = np.zeros((800, *NODES, 2))
    lasting = gaussian_filter1d(evidence_of(at_rest, rng), 8, axis=0) * np.sqrt(8 * 2 * np.sqrt(np.pi))
    found = smoothed(np.sqrt(0.85) * evidence_of(at_rest, rng) + np.sqrt(0.15) * lasting)
    assert rms(found - found.mean((1, 2), keepdims=True)) < 0.01


def test_frames_that_were_not_measured_get_their_neighbours_field() -> None:
    rng = np.random.default_rng(3)
    fields = moving(300, 0.8, 20.0, rng)
    fields += gaussian_filter1d(fields.mean((1, 2)), 10, axis=0)[:, None, None] - fields.mean((1, 2), keepdims=True)
    evidence = evidence_of(fields, rng)
    known = np.ones(300, bool)
    known[[0, 100, 101, 102, 299]] = False
    evidence[~known] = 1e6
    found = smoothed(evidence, known)
    assert rms(found[~known] - fields[~known]) < 0.4
    assert (smoothed(evidence, np.zeros(300, bool)) == 0).all()


def test_does_not_depend_on_how_the_recording_was_divided() -> None:
    rng = np.random.default_rng(4)
    evidence = evidence_of(moving(200, 0.8, 10.0, rng), rng)
    np.testing.assert_allclose(smoothed(evidence, chunk=7), smoothed(evidence, chunk=200), atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_few_frames(frames: int) -> None:
    rng = np.random.default_rng(5)
    fields = moving(frames, 1e-6, 0.0, rng)
    assert rms(smoothed(evidence_of(fields, rng)) - fields) < 1.0


def test_a_burst_of_motion_is_kept() -> None:
    rng = np.random.default_rng(6)
    fields = moving(600, 0.1, 20.0, rng)
    burst = moving(4, 6.0, 0.0, rng)
    fields[300:304] += burst - burst.mean((1, 2), keepdims=True)
    found = smoothed(evidence_of(fields, rng))
    assert rms(found[300:304] - fields[300:304]) < 0.35 * rms(fields[300:304] - fields[300:304].mean((1, 2), keepdims=True))
