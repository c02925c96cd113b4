"""Displacement fields of a recording from what each frame says of its own: a smooth deviation in time and space, and a rigid shift.

A frame's evidence is linear in its field (see `alignment`). Without its rigid part, which may jump from frame to frame, it is divided into
modes, patterns over the nodes that noise disturbs independently and alike: what a mode holds is the deviation from rigid motion, as strong
as the prior says, and noise of variance one. Over time both are stationary. The covariance of the deviation from frame to frame is
measured on the recording itself: it grows with the strength of a mode, and what all modes share, such as the slow errors that active cells
leave, is none of it. Given that covariance the deviation follows as the mean of a Gaussian process (Wiener filter over a window), and the
shift of each frame from what is left. Where deviations are as quick as the frames this comes out as weighing every frame alone, and where
a recording moves rigidly as no deviation at all.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import toeplitz

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

REACH = 64
"""Frames before and after one that have a say in its deviation."""

_FEWEST_PAIRS = 3  # times the lag: fewer frames say nothing of the covariance at it
_GROWTH = 1.1  # the covariance is measured anew when so many times as many frames are known
_FARTHEST = 4.0  # standard deviations of the noise
_LEAST_STRENGTH = 1e-6  # of the largest
_LEAST_INFORMATION = 1e-7  # of the largest


class EvidenceModes:
    """How evidence divides into modes.

    Args:
        information: (2 nodes, 2 nodes) inverse covariance of the field that the pixels alone give; y of all nodes before x.
        correlations: (nodes, nodes) of the deviation from rigid motion, as the prior has it.

    Attributes:
        directions: (2 nodes, modes); evidence times these is the modes, which have variance 1 + variance of the deviation x strength.
        strength: (modes,).
        patterns: (2 nodes, modes), deviation at the nodes for the part of each mode that is no noise.
        rigid: (2, 2 nodes), the rigid shift y, x that evidence alone asks for.
        mixing: (2, 2 nodes), what a deviation takes away from it.
    """

    def __init__(self, information: Float64, correlations: Float64) -> None:
        values, vectors = np.linalg.eigh(information)
        # Patterns of which the pixels say nothing are left to the prior.
        seen = values > _LEAST_INFORMATION * values[-1]
        values, vectors = values[seen], vectors[:, seen]
        whitening, root = (vectors / np.sqrt(values)) @ vectors.T, (vectors * np.sqrt(values)) @ vectors.T
        count = correlations.shape[0]
        alike, prior = np.kron(np.eye(2), np.ones((count, 1))), np.kron(np.eye(2), correlations)
        # Project off the two directions in which all nodes move alike.
        along, _ = np.linalg.qr(root @ alike)
        others = np.eye(2 * count) - along @ along.T
        strength, directions = np.linalg.eigh(others @ root @ prior @ root @ others)
        use = strength > _LEAST_STRENGTH * strength[-1]
        self.directions, self.strength = whitening @ directions[:, use], strength[use]
        self.patterns = prior @ information @ self.directions / self.strength
        self.rigid = np.linalg.solve(alike.T @ information @ alike, alike.T)
        self.mixing = self.rigid @ information

    def variance(self, evidence: Float64) -> float:
        """Variance (px^2) of the deviation under which the evidence (n, 2 nodes) of frames far from each other is most likely."""
        power = ((evidence @ self.directions) ** 2).mean(0)
        candidates = np.concatenate([[0.0], np.geomspace(1e-5, 100.0, 141)])
        spread = 1 + candidates[:, None] * self.strength[None]
        cost = (np.log(spread) + power[None] / spread).sum(1)
        return float(candidates[int(np.argmin(cost))])


class DisplacementSmoother:
    """Takes the evidence of frames one after the other and gives their fields.

    Args:
        modes: of the evidence.
        nodes: rows and columns of the field.
        frames: of the recording.
        rigid: whether there is no deviation.
    """

    def __init__(self, modes: EvidenceModes, nodes: tuple[int, int], frames: int, *, rigid: bool) -> None:
        self._modes, self._nodes, self._is_rigid = modes, nodes, rigid
        self._held = np.zeros((frames, 0 if rigid else len(modes.strength)), np.float32)
        self._shifts = np.zeros((frames, 2))
        self._known = np.zeros(frames, bool)
        self._products = np.zeros((REACH + 1, self._held.shape[1]))
        self._pairs = np.zeros(REACH + 1)
        self._measured_at = 0.0
        self._process = StationaryProcess(np.zeros(1))
        self.count = 0

    def add(self, evidence: Float64, known: NDArray[np.bool_]) -> None:
        """Evidence (n, 2 nodes) of the next frames and which of them were measured at all."""
        first, stop = self.count, self.count + len(evidence)
        self._known[first:stop] = known
        self._shifts[first:stop][known] = evidence[known] @ self._modes.rigid.T
        self.count = stop
        if self._is_rigid:
            return
        self._held[first:stop][known] = evidence[known] @ self._modes.directions
        for lag in range(min(REACH, stop - 1) + 1):
            begin = max(first, lag)
            earlier, later = slice(begin - lag, stop - lag), slice(begin, stop)
            # Frames that are not known hold zeros.
            self._products[lag] += np.einsum("nm,nm->m", self._held[earlier], self._held[later], dtype=np.float64)
            self._pairs[lag] += np.count_nonzero(self._known[earlier] & self._known[later])

    def fields(self, start: int, stop: int) -> Float32:
        """Fields (stop - start, rows, columns, 2), from all frames so far that lie near; zero where no frame is known."""
        known = np.flatnonzero(self._known[: self.count])
        result = np.zeros((stop - start, 2, *self._nodes), np.float32)
        if len(known) == 0:
            return np.ascontiguousarray(result.transpose(0, 2, 3, 1))
        places = np.arange(start, stop)
        shifts = np.stack([np.interp(places, known, self._shifts[known, axis]) for axis in range(2)], 1)
        if not self._is_rigid:
            self._measure_covariance()
            deviation = self._deviation(start, stop) @ self._modes.patterns.T
            shifts -= deviation @ self._modes.mixing.T
            result += deviation.reshape(len(places), 2, *self._nodes)
        result += shifts[:, :, None, None]
        return np.ascontiguousarray(result.transpose(0, 2, 3, 1))

    def _measure_covariance(self) -> None:
        """Covariance of the deviation from frame to frame, px^2, at lags from zero."""
        known = float(self._pairs[0])
        if known < _GROWTH * self._measured_at:
            return
        self._measured_at = known
        strength = self._modes.strength
        lags = int(np.clip(known / _FEWEST_PAIRS, 1, REACH + 1))
        held = self._products[:lags] / np.maximum(self._pairs[:lags, None], 1)
        noise = np.zeros(lags)
        noise[0] = 1.0
        variance, covariance = 0.0, np.zeros(lags)
        # A line through what modes hold over their strength, weighted by how well each is known: slope deviation, intercept noise.
        for _ in range(5):
            weight = 1 / (1 + variance * strength) ** 2
            total, first, second = weight.sum(), weight @ strength, weight @ strength**2
            plain, sloped = held @ weight, held @ (weight * strength)
            if lags > 1 and total * second > first**2:
                slope = (total * sloped - first * plain) / (total * second - first**2)
                intercept = (plain - slope * first) / total
                # Noise has variance one: what of it is not white in time can be no more than the rest.
                white = float(np.clip(intercept[0] - intercept[1], 0.1, 1.0))
                lasting = float(np.clip(intercept[1], 0.0, 1.0 - white))
                noise = np.maximum(intercept, 0) * (lasting / max(intercept[1], 1e-9))
                noise[0] = white + lasting
            covariance = (sloped - noise * first) / second
            variance = max(float(covariance[:2].max()), 0.0)
        taper = falling(lags)
        self._process = StationaryProcess(covariance * taper if variance > 0 else np.zeros(lags))

    def _deviation(self, start: int, stop: int) -> Float64:
        """The part of the modes (stop - start, modes) that is no noise."""
        first, end = max(start - REACH, 0), min(stop + REACH, self.count)
        held, known = self._held[first:end].astype(np.float64), self._known[first:end]
        return self._process.mean(held, known, self._modes.strength)[start - first : stop - first]


def falling(lags: int) -> Float64:
    """Weights (lags,) of measured covariances, from one to zero: those at the longest lags are mostly chance."""
    return 0.5 + 0.5 * np.cos(np.pi * np.arange(lags) / lags)


class StationaryProcess:
    """A Gaussian process in time, seen in white noise of variance one.

    Args:
        covariance: (lags,) of the process at lags from zero; zero beyond.
    """

    def __init__(self, covariance: Float64) -> None:
        self.covariance = covariance
        self._windows: dict[int, tuple[Float64, Float64]] = {}

    def _window(self, length: int) -> tuple[Float64, Float64]:
        """Eigenvalues and -vectors of the covariance over so many samples."""
        if length not in self._windows:
            lags = np.zeros(length)
            lags[: len(self.covariance)] = self.covariance[:length]
            values, vectors = np.linalg.eigh(toeplitz(lags))
            self._windows[length] = np.maximum(values, 0), vectors
        return self._windows[length]

    def mean(self, held: Float64, known: NDArray[np.bool_], strength: Float64) -> Float64:
        """Mean (n, series) of the processes given what was seen (n, series); each has `strength` (series,) times the covariance."""
        values, vectors = self._window(len(held))
        share = values[:, None] * strength
        share /= 1 + share
        there = np.flatnonzero(known)
        if len(there) == 0:
            return np.zeros_like(held)
        held, rounds = held.copy(), 1
        for n in np.flatnonzero(~known).tolist():
            ends = np.concatenate([there[there < n][-1:], there[there > n][:1]])
            part = (n - ends[0]) / (ends[-1] - ends[0]) if len(ends) == 2 else 0.0
            held[n] = (1 - part) * held[ends[0]] + part * held[ends[-1]]
            rounds = 4
        smooth = held
        for _ in range(rounds):
            # What is missing is taken from the last round (expectation maximisation).
            held[~known] = smooth[~known]
            smooth = vectors @ (share * (vectors.T @ held))
        # A burst is nothing stationary: smoothing takes no sample further than noise explains.
        smooth[known] = np.clip(smooth[known], held[known] - _FARTHEST, held[known] + _FARTHEST)
        return smooth
