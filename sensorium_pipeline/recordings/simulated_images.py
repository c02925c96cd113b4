"""Naturalistic images: dead leaves of oriented 1/f texture.

Dead leaves (Lee, Mumford & Huang 2001) have the occlusion edges and the scale invariance of natural scenes; the texture inside the
leaves has their power spectrum. An image depends on the image seed and its id alone, so that equal ids are equal images in every
simulated session.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.recordings.raw_session import IMAGE_HEIGHT, IMAGE_WIDTH

_LEAVES = 110
_SMALLEST, _LARGEST = 9.0, 70.0  # radius in pixels
_TEXTURES = 16
_TEXTURE_SIZE = 512


def natural_image(image_seed: int, image_id: int) -> NDArray[np.uint8]:
    """The image (144, 256) uint8 with this id."""
    generator = np.random.default_rng([image_seed, image_id])
    textures = _textures(image_seed)
    image = np.full((IMAGE_HEIGHT, IMAGE_WIDTH), 115.0, np.float32)
    # Radii with density r^-3: leaves of every scale cover equal areas.
    spread = generator.random(_LEAVES)
    radii = 1 / np.sqrt(spread / _SMALLEST**2 + (1 - spread) / _LARGEST**2)
    radii[:4] = 120.0  # the ground
    centers = generator.random((_LEAVES, 2)) * (IMAGE_HEIGHT, IMAGE_WIDTH)
    tones = np.clip(generator.normal(115, 48, _LEAVES), 10, 245)
    contrasts = generator.uniform(12, 42, _LEAVES)
    aspects, turns = generator.uniform(0.5, 1.0, _LEAVES), generator.uniform(0, np.pi, _LEAVES)
    picks = generator.integers(_TEXTURES, size=_LEAVES)
    corners = generator.integers(_TEXTURE_SIZE - IMAGE_WIDTH, size=(_LEAVES, 2))
    for leaf in range(_LEAVES):
        radius, (y, x) = radii[leaf], centers[leaf]
        top, bottom = max(0, int(y - radius)), min(IMAGE_HEIGHT, int(y + radius) + 2)
        left, right = max(0, int(x - radius)), min(IMAGE_WIDTH, int(x + radius) + 2)
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)
        dx = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x)
        cosine, sine = np.float32(np.cos(turns[leaf])), np.float32(np.sin(turns[leaf]))
        inside = (dx * cosine + dy * sine) ** 2 + ((dy * cosine - dx * sine) / np.float32(aspects[leaf])) ** 2 < radius**2
        row, column = corners[leaf]
        texture = textures[picks[leaf], row : row + bottom - top, column : column + right - left]
        view = image[top:bottom, left:right]
        np.copyto(view, np.float32(tones[leaf]) + np.float32(contrasts[leaf]) * texture, where=inside)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def _textures(image_seed: int) -> NDArray[np.float32]:
    """Oriented 1/f noise (textures, y, x) of zero mean and unit standard deviation."""
    generator = np.random.default_rng([image_seed, -1 % 2**32, 7])
    fy, fx = np.fft.fftfreq(_TEXTURE_SIZE)[:, None], np.fft.rfftfreq(_TEXTURE_SIZE)[None, :]
    frequency, angle = np.hypot(fy, fx), np.arctan2(fy, fx)
    frequency[0, 0] = 1.0
    textures = np.empty((_TEXTURES, _TEXTURE_SIZE, _TEXTURE_SIZE), np.float32)
    for index in range(_TEXTURES):
        orientation = np.pi * index / _TEXTURES
        # Half of the textures are strongly oriented; none has the finest detail, which the screen would not show.
        sharpness = 4.0 if index % 2 else 0.5
        amplitude = np.exp(sharpness * (np.cos(2 * (angle - orientation)) - 1)) / frequency * np.exp(-((frequency / 0.12) ** 2))
        amplitude[0, 0] = 0.0
        noise = generator.standard_normal((_TEXTURE_SIZE, _TEXTURE_SIZE)).astype(np.float32)
        texture = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(_TEXTURE_SIZE, _TEXTURE_SIZE))
        textures[index] = (texture - texture.mean()) / texture.std()
    return textures
