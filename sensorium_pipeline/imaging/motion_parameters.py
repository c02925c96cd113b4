"""Parameters of motion correction, apart from it: whoever only names them need not load compiled code."""

from dataclasses import dataclass

from sensorium_pipeline.errors import InputError


@dataclass(frozen=True)
class MotionParameters:
    """How motion is corrected; the defaults are good for movies of any size.

    Attributes:
        largest_shift: of a frame as a whole, in parts of the side of the field (0 to 0.5); beyond it frames are flagged.
        non_rigid: whether parts of the field may move differently. Where they do not, the correction comes out rigid by itself.
        block_size: px between the nodes of the displacement field.
        template_frames: frames sampled, evenly over the recording, for the template.
    """

    largest_shift: float = 0.25
    non_rigid: bool = True
    block_size: int = 64
    template_frames: int = 300

    def __post_init__(self) -> None:
        if not 0 < self.largest_shift <= 0.5:
            raise InputError(f"{self.largest_shift} is not within 0 to 0.5", where="largest_shift", advice="Give it in parts of the side.")
        if self.block_size < 8:
            raise InputError(f"{self.block_size} px are too few", where="block_size", advice="Use at least 8, better 64.")
        if self.template_frames < 2:
            raise InputError(f"{self.template_frames} frames are too few", where="template_frames", advice="Use at least 2, better 300.")
