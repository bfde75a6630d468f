"""What SageMaker prepares for a training container: a folder that stands for /opt/ml."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def prepare(
    base: Path, parameters: Mapping[str, str], hosts: Sequence[str] = ("algo-1",), own: str | None = None
) -> Path:
    """The folder ``base`` of the host ``own``, by default the first, with files as SageMaker writes them."""
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
    """Hyperparameters, all of them text, as SageMaker hands them on."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
