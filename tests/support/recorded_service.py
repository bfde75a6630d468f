"""Services of ``crossfade refresh`` without datasets and models: their file, and records of versions."""

from pathlib import Path
from typing import Any

import yaml

from crossfade.deploy.refresh.increment import RefreshedService
from crossfade.deploy.refresh.service_file import load_service
from crossfade.deploy.refresh.versions import ServiceVersions, VersionRecord


def write_service(folder: Path, **keys: Any) -> Path:
    """Write the file of the service ``fresh`` of customers and tracks; return its path."""
    path = folder / "fresh.yaml"
    values = {
        "name": "fresh",
        "folder": str(folder / "service"),
        "events": [str(folder / "events" / "*.parquet")],
        "prepare": {"query": "customer=user", "item": "track=track", "timestamp": "at", "hold_out_valid": "random:0.2"},
        "job": {"model": {"dim": 8}, "train": {"epochs": 2, "batch_size": 64}},
        "settle_seconds": 0,
        **keys,
    }
    path.write_text(yaml.safe_dump(values))
    return path


def write_versions(folder: Path, *records: dict[str, Any]) -> RefreshedService:
    """Write a service with ``records``, the versions from 1; return it."""
    service = RefreshedService(load_service(write_service(folder)))
    service.folder.mkdir(exist_ok=True)
    for number, values in enumerate(records, 1):
        ServiceVersions(service.folder).write(make_record(number, **values))
    return service


def make_record(number: int, **values: Any) -> VersionRecord:
    """Return the record of a published version, with ``values`` of others."""
    record = VersionRecord(
        number=number,
        status="published",
        base=number - 1 or None,
        files=[],
        events=100,
        newest=1_790_000_000 + number,
        metric="ndcg@10",
        before=0.2 + number / 100,
        after=0.25 + number / 100,
        error=0.01,
        queries=40,
        decided=1_790_000_100.0 + number,
        seconds={"prepare": 2.5, "train": 40.0},
    )
    return record.model_copy(update=values)
