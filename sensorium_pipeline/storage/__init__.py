"""The write-once store: exclusive creates, datasets named by content, numbered generations, keyed results."""

from sensorium_pipeline.storage.backend import MissingObjectError, StoredObject
from sensorium_pipeline.storage.collection import CollectionReport, collect_garbage
from sensorium_pipeline.storage.datasets import (
    dataset_url,
    download_files,
    list_datasets,
    list_files,
    open_dataset,
    read_file,
    verify_dataset,
    write_dataset,
    write_files,
)
from sensorium_pipeline.storage.digests import canonical_json, digest_of, digest_of_bytes, digest_of_file
from sensorium_pipeline.storage.manifests import DatasetReference, FileEntry, Manifest
from sensorium_pipeline.storage.results import read_result, record_result
from sensorium_pipeline.storage.series import Series
from sensorium_pipeline.storage.staging import StagedDataset, stage
from sensorium_pipeline.storage.store import Store
from sensorium_pipeline.storage.workspace import Workspace, open_workspace

__all__ = [
    "CollectionReport",
    "DatasetReference",
    "FileEntry",
    "Manifest",
    "MissingObjectError",
    "Series",
    "StagedDataset",
    "Store",
    "StoredObject",
    "Workspace",
    "canonical_json",
    "collect_garbage",
    "dataset_url",
    "digest_of",
    "digest_of_bytes",
    "digest_of_file",
    "download_files",
    "list_datasets",
    "list_files",
    "open_dataset",
    "open_workspace",
    "read_file",
    "read_result",
    "record_result",
    "stage",
    "verify_dataset",
    "write_dataset",
    "write_files",
]
