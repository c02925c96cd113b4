"""How a model is trained; the defaults are those of SENSORIUM 2022."""

from pydantic import BaseModel, ConfigDict, Field


class TrainerParameters(BaseModel):
    """Parameters of the trainer.

    Attributes:
        epochs: at most this many; an epoch passes every trial of the longest session once.
        batch_size: trials of each session in one step.
        learning_rate: of Adam, in the first stage.
        patience: epochs without a better validation score that end a stage.
        tolerance: how much higher a score must be to count as better.
        stages: of the learning rate, each starting from the best state so far.
        decay: factor of the learning rate from one stage to the next.
        time_limit: seconds after which no further epoch is begun; None for no limit. With a limit the result depends on the machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=0.009, gt=0)
    patience: int = Field(default=5, ge=1)
    tolerance: float = Field(default=1e-6, ge=0)
    stages: int = Field(default=4, ge=1)
    decay: float = Field(default=0.3, gt=0, le=1)
    time_limit: float | None = Field(default=None, gt=0)
