"""Options of ``crossfade serve``: which model, and how it is served."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from crossfade.base.errors import InputError
from crossfade.base.options import Integer, Number, option
from crossfade.deploy.access import ANY_HOST, AccessOptions
from crossfade.trainer.recommend.options import MetadataOptions
from crossfade.trainer.runs.options import Location, ModelSource

DEFAULT_PORT, SAGEMAKER_PORT = 8090, 8080
TOKEN_VARIABLE = "CROSSFADE_SERVE_TOKEN"  # noqa: S105 - the name of a variable
INDEX_FROM = 50_000
"""Items from which an index is built."""


class ServeOptions(MetadataOptions, AccessOptions, ModelSource):
    """Which model to serve, and how."""

    token_variable = TOKEN_VARIABLE

    source: Location | None = option(  # type: ignore[assignment]
        None,
        "serve this run folder, folder of checkpoints, checkpoint, or service, by its folder or file (default: "
        "/opt/ml/model)",
        group="model",
        value="FROM",
        positional=True,
    )
    exact: bool = option(False, "rank all items exactly, never by an index", group="model")
    refresh: Number = option(
        30.0, "check for a newer model at this interval; 0: never", group="model", value="SECONDS", ge=0
    )
    port: Integer | None = option(
        None, f"listen on this port; 0: a free one (default: {DEFAULT_PORT})", group="server", value="N", ge=0, le=65535
    )
    work_dir: Path | None = option(
        None, "copy the model to this folder (default: a temporary one)", group="server", value="DIR"
    )

    def located(self) -> Self:
        """Return the options with a model, an address, and a port: those of a SageMaker endpoint, if none is named.

        Raises:
            InputError: no model is named, or a file that is no service's, and this is not a SageMaker endpoint.
        """
        from crossfade.deploy.aws.sagemaker.container import SERVED_DATA_VARIABLE, Paths
        from crossfade.deploy.refresh.service_file import service_folder

        folder = Paths().model
        if self.source is not None:
            found: dict[str, object] = {"host": "127.0.0.1", "port": DEFAULT_PORT}
        elif folder.is_dir():
            found = {
                "data": os.environ.get(SERVED_DATA_VARIABLE),
                "host": "0.0.0.0",  # noqa: S104 - SageMaker's network reaches only the endpoint
                "port": SAGEMAKER_PORT,
            }
        else:
            raise InputError(
                "FROM is missing; expected a run folder, a folder of checkpoints, a checkpoint, or a service's folder"
            )
        names = () if self.source is not None else (ANY_HOST,)
        missing = {name: value for name, value in found.items() if name not in self.model_fields_set}
        source = service_folder(self.source or str(folder), remote=True)
        return self.model_copy(update={**missing, "source": source, "allowed_host": (*self.allowed_host, *names)})
