"""Which trials are for training, validation and the two tests.

Test images say themselves which tier they belong to. Of the images shown once, about a tenth become validation, drawn over the image
ids in ascending order and never over the order of presentation: the draw can be repeated by anyone (its seed is the session's name), and
would otherwise tell which places in time the validation trials hold.
"""

import hashlib
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.raw_session import ImageSet

Tier = Literal["train", "validation", "test", "final_test"]
TIERS: tuple[Tier, ...] = get_args(Tier)
HIDDEN_TIERS: tuple[Tier, ...] = ("test", "final_test")  # in competition sessions
VALIDATION_SHARE = 0.1

TierNames = NDArray[np.str_]


def seeded_generator(*parts: str) -> np.random.Generator:
    """A generator seeded by the sha256 of texts: the same on every machine."""
    return np.random.default_rng(list(hashlib.sha256("\n".join(parts).encode()).digest()))


def assign_tiers(
    image_id: NDArray[np.int64], image_sets: Mapping[int, ImageSet], session: str, validation_share: float = VALIDATION_SHARE
) -> TierNames:
    """Tier of every presentation (presentations,).

    Args:
        image_id: (presentations,), what was shown.
        image_sets: for every image id the set it belongs to.
        session: name of the session, which seeds the draw.
        validation_share: share of the images shown once that become validation.

    Raises:
        InputError: when an image belongs to no set.
    """
    unknown = sorted({int(image) for image in image_id} - set(image_sets))
    if unknown:
        raise InputError(
            f"{len(unknown)} images belong to no set, such as {unknown[:3]}", where="image_sets", advice="Add them to the table of images."
        )
    single = np.array(sorted(image for image, name in image_sets.items() if name == "single"), np.int64)
    drawn = seeded_generator("tiers", session).choice(len(single), round(validation_share * len(single)), replace=False)
    tier_of: dict[int, Tier] = {int(image): "train" for image in single}
    tier_of |= {int(image): "validation" for image in single[drawn]}
    for image, name in image_sets.items():
        if name != "single":
            tier_of[image] = name
    return np.array([tier_of[int(image)] for image in image_id], dtype="<U10")
