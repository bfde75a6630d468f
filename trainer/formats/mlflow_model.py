"""Write or register a model of MLflow (flavor ``python_function``) that answers what ``Model.recommend`` does."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from crossfade.base.errors import CrossfadeError, InputError, Option, OptionError
from crossfade.base.io.folder import Folder
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.kvstore import __version__
from crossfade.trainer.config.sections import has_credentials
from crossfade.trainer.embeddings.popularity import write_term
from crossfade.trainer.formats.arrays import write_parquet
from crossfade.trainer.formats.databases import needed
from crossfade.trainer.formats.exported_model import ExportedModel
from crossfade.trainer.runs.run_folder import EMBEDDINGS_FOLDER, JOB_FILE
from crossfade.trainer.tracking.mlflow_run import TrackingError, tracking_errors


def check(push: str | None) -> None:
    """Raise MissingExtraError without MLflow, and OptionError unless a server to ``push`` to is known."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with needed("mlflow", "mlflow", "mlflow"), warnings.catch_warnings(action="ignore"):
        import mlflow.pyfunc
    if push is not None:
        uri = push or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri or has_credentials(uri):
            fix = "set MLFLOW_TRACKING_USERNAME and so on for credentials"
            raise OptionError("push", expected="a tracking URI without credentials, or MLFLOW_TRACKING_URI", fix=fix)
        mlflow.set_tracking_uri(uri)


def write(exported: ExportedModel, folder: Path | None, registered: str = "") -> str:
    """Write the model into the empty ``folder``, or without one register it as ``registered``; return its place."""
    import mlflow.pyfunc
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    model, entity = exported.model, exported.model.spec.query.name
    column = ColSpec("string" if model.manifest.entities[entity].id_type == "string" else "long", entity)
    signature = mlflow.models.ModelSignature(Schema([column]), params=ParamSchema([ParamSpec("k", "long", 10)]))
    with temporary_folder("mlflow") as work, warnings.catch_warnings(action="ignore"):
        write_parquet(exported, work / "model" / EMBEDDINGS_FOLDER)
        write_term(Folder(work / "model" / EMBEDDINGS_FOLDER), model.popularity)
        (work / "model" / JOB_FILE).write_text(model.job.to_yaml(), encoding="utf-8")
        for name in model.data.files():
            Folder(work / "model" / "dataset").take_over(name, model.data, name)
        parts: Any = {"loader_module": __name__, "data_path": str(work / "model"), "signature": signature}
        parts["pip_requirements"] = [f"crossfade=={__version__}", "pandas"]
        if folder is not None:
            mlflow.pyfunc.save_model(folder, **parts)
            return str(folder)
        try:
            with tracking_errors():
                mlflow.set_experiment(model.job.tracking.experiment)
                found = mlflow.pyfunc.log_model(name=model.job.name, registered_model_name=registered, **parts)
        except TrackingError as error:
            kind, server = CrossfadeError if error.temporary else InputError, Option("push", mlflow.get_tracking_uri())
            raise kind(server, f": {error}") from error
    return f"models:/{registered}/{found.registered_model_version}"


def _load_pyfunc(path: str) -> SimpleNamespace:
    """Open the model in the folder ``path``. MLflow calls this by its name, which is in MLmodel."""
    import crossfade

    model = crossfade.load(path, data=f"{path}/dataset", frame="pandas")

    def predict(frame: Any, params: dict[str, Any] | None = None) -> Any:
        return model.recommend(frame.iloc[:, 0].tolist(), **(params or {}))

    return SimpleNamespace(predict=predict)
