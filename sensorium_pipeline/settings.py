"""Settings: every `SENSORIUM_*` environment variable, in one place.

A workspace is one root URL, or four roots with credentials of their own (in production no process holds more of them than
its job needs). Nested names use two underscores: `SENSORIUM_SEALED__URL`, `SENSORIUM_SEALED__ACCESS_KEY`.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_ROOT = "workspace"


class RootSettings(BaseModel):
    """One root of a workspace; fields left out are taken from the workspace's own settings."""

    url: str | None = None
    endpoint_url: str | None = None
    access_key: str | None = None
    secret_key: SecretStr | None = None


class Settings(BaseSettings):
    """What the environment says. Command-line options win over it.

    Attributes:
        root: workspace root, a path, `file:///...` or `s3://bucket/prefix`.
        endpoint_url: S3 endpoint of the workspace, where it is not Amazon's.
        access_key: S3 access key of the workspace; where it is left out, botocore's own chain applies.
        secret_key: S3 secret key of the workspace.
        lab: the lab root, where it is not `<root>/lab`; likewise `open`, `sealed` and `inbox`.
        dask_address: scheduler to use; left out, a cluster is started on this machine.
        workers: Dask workers to start on this machine; 0 means one a core, at most four.
        team_token: what `sensorium team add` printed, for the commands of participants.
        gpu_slots: models that may train at once on one GPU, or on the stand-in for one.
        isolation: the lowest tier of isolation that strangers' code may run in.
        checkpoint_seconds: between two checkpoints of a model that trains.
        suite2p_python: interpreter of an environment with suite2p, for extractions that choose it as their segmenter.
    """

    model_config = SettingsConfigDict(env_prefix="SENSORIUM_", env_nested_delimiter="__", extra="ignore")

    root: str = DEFAULT_ROOT
    endpoint_url: str | None = None
    access_key: str | None = None
    secret_key: SecretStr | None = None
    lab: RootSettings = RootSettings()
    open: RootSettings = RootSettings()
    sealed: RootSettings = RootSettings()
    inbox: RootSettings = RootSettings()
    dask_address: str | None = None
    workers: int = 0
    team_token: SecretStr | None = None
    gpu_slots: int = Field(default=1, ge=1)
    isolation: Literal["bubblewrap with user namespace", "bubblewrap without user namespace"] = "bubblewrap without user namespace"
    checkpoint_seconds: float = Field(default=30.0, ge=0)
    suite2p_python: Path | None = None
