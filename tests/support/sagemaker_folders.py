"""Folders as SageMaker prepares them for a training container, in place of /opt/ml."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from run_results import ENTITIES, vectors

JOB: dict[str, object] = {
    "name": "planted",
    "model.dim": 8,
    "model.temperature": 0.1,
    "negatives.kind": "shared",
    "negatives.count": 64,
    "optimizer.kind": "adagrad",
    "optimizer.learning_rate": 0.1,
    "optimizer.schedule": "constant",
    "optimizer.weight_decay": 0.0,
    "train.batch_size": 256,
    "train.query_frequency_power": 0.0,
    "train.item_frequency_power": 0.0,
    "train.epochs": 12,
    "train.eval_every_epochs": 3,
    "train.patience": None,
    "evaluate.k": [5, 10],
    "checkpoint.interval_seconds": 1,
}
SECTIONS: dict[str, Any] = {
    "train": {"epochs": 12, "eval_every_epochs": 3, "patience": None},
    "checkpoint": {"interval_seconds": 1},
}


def prepare(
    base: Path, parameters: Mapping[str, str], hosts: Sequence[str] = ("algo-1",), own: str | None = None
) -> Path:
    """Create the folder ``base`` of the host ``own``, by default the first, with files as SageMaker writes them."""
    config = base / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps({**parameters, "sagemaker_region": '"us-east-1"'}))
    card = "lo" if hosts[0].startswith("127.") else "eth0"
    resources = {"current_host": own or hosts[0], "hosts": list(hosts), "network_interface_name": card}
    (config / "resourceconfig.json").write_text(json.dumps(resources))
    (config / "inputdataconfig.json").write_text("{}")
    for name in ("model", "output", "checkpoints"):
        (base / name).mkdir()
    return base


def parameters_of(values: Mapping[str, object]) -> dict[str, str]:
    """Return hyperparameters as SageMaker passes them: all as text."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def assert_same_model(model: Path, run: Path) -> None:
    """Assert that the embeddings in ``model`` equal those of the run in ``run``, bit for bit, on equal CPU kernels."""
    kernels, kernels_of_run = (json.loads((folder / "report.json").read_text())["kernels"] for folder in (model, run))
    assert kernels == kernels_of_run
    for entity in ENTITIES:
        assert vectors(model, entity).tobytes() == vectors(run, entity).tobytes(), entity
