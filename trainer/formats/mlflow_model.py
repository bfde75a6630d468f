"""Register a model in MLflow, which recommends by its flavor ``python_function``.

    place = register(exported, "models:/music")             # models:/music/3

    model = mlflow.pyfunc.load_model(place)
    frame = model.predict(pandas.DataFrame({"customer": ["2"]}), params={"k": 5})

A model has MLflow's own files, and in ``version/`` what answers need (trainer/serving/version.py). It answers what
``crossfade recommend`` does: a row for each item, with the customer, its rank from 1, its ID, its score, and its name
if there are names. It ranks all items exactly, without the run, its dataset, or a network.

``MLmodel`` names this module as what loads the model, so ``_load_pyfunc`` must stay here.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfade.base.errors import (
    CrossfadeError,
    InputError,
    MissingExtraError,
    Option,
    OptionError,
    format_names,
)
from crossfade.base.io.disk_errors import write_failure
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.kvstore import __version__
from crossfade.trainer.config.sections import has_credentials
from crossfade.trainer.formats.exported_model import ExportedModel
from crossfade.trainer.recommend.bulk import recommend_to_queries
from crossfade.trainer.recommend.options import RecommendOptions
from crossfade.trainer.recommend.queries import find_queries
from crossfade.trainer.recommend.trained_model import TrainedModel
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.tracking.mlflow_run import RUN_TAG, TrackingError, tracking_errors

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

_VERSION = "version"
_PLACE = re.compile(r"models:/([^/:]+)")
_logger = logging.getLogger(__name__)


def check_place(place: str) -> None:
    """Check that MLflow is installed, and that ``place`` names a registered model.

    Raises:
        MissingExtraError: it is not installed.
        OptionError: it does not.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MLflow about its own types
            import mlflow.pyfunc  # noqa: F401
    except ImportError as error:
        missing = error.name or "mlflow"
        how = "pip install 'crossfade[mlflow]' pandas"
        raise MissingExtraError(missing, extra="mlflow", purpose=Option("to", "mlflow"), how=how) from error
    if not _PLACE.fullmatch(place):
        raise OptionError("push", found=place, expected="models:/NAME, without a version")


def register(exported: ExportedModel, place: str) -> str:
    """Log the model in the run of MLflow that has the training, or a new one, and register it as a new version.

    The tracking server is that of MLFLOW_TRACKING_URI, otherwise the one of the job.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: the server cannot be reached, or the disk for temporary files is full.
        InputError: not all tables are exported, no server is known, its address has credentials, or it rejects a
            request.
    """
    from mlflow.tracking import MlflowClient

    model = exported.model
    if len(exported.tables) < len(model.spec.vectors):
        leave_out = ("leave out ", Option("entity"))
        raise OptionError("entity", problem="a model of MLflow needs all tables", fix=leave_out)
    uri = _tracking_server(model)
    with temporary_folder("mlflow") as work:
        # Versions do not share files.
        folder = work / f"model-{exported.date:%Y%m%dT%H%M%S%f}"
        try:
            _write(exported, folder)
        except OSError as error:
            raise CrossfadeError(f"{folder}: could not be written: {write_failure(error, folder)}") from error
        try:
            with tracking_errors():
                return f"{place}/{_register(MlflowClient(tracking_uri=uri), model, folder, place)}"
        except TrackingError as error:
            kind = CrossfadeError if error.temporary else InputError
            raise kind(Option("push"), f": {uri}: {error}") from error


def _write(exported: ExportedModel, folder: Path) -> None:
    import mlflow.pyfunc

    from crossfade.trainer.serving.version_folder import VersionOptions, write_version  # with DuckDB, which takes long

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no example, which would be the ID of a customer
        mlflow.pyfunc.save_model(
            folder,
            loader_module=__name__,
            signature=_signature(exported.model),
            pip_requirements=[f"crossfade=={__version__}", "pandas"],
        )
    write_version(exported.model, folder / _VERSION, VersionOptions(index_from=None), exported.reporter)


def _signature(model: TrainedModel) -> ModelSignature:
    """Return the column of the input, and the parameters."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    query = model.manifest.entities[model.spec.query.name]
    column = ColSpec(DataType.string if query.id_type == "string" else DataType.long, model.spec.query.name)
    parameters = ParamSchema([ParamSpec("k", DataType.long, RecommendOptions().k)])
    return ModelSignature(Schema([column]), params=parameters)


def _tracking_server(model: TrainedModel) -> str:
    """Return the address of the tracking server, which messages show.

    Raises:
        OptionError: none is known, or it has credentials.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or model.job.tracking.mlflow
    if uri is None:
        fix = "set MLFLOW_TRACKING_URI, or train with tracking.mlflow"
        raise OptionError("push", problem="no tracking server of MLflow is known", fix=fix)
    if has_credentials(uri):
        fix = "leave them out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        raise OptionError("push", problem="MLFLOW_TRACKING_URI has credentials or a query", fix=fix)
    return uri


def _register(client: MlflowClient, model: TrainedModel, folder: Path, place: str) -> str:
    """Log the model in ``folder`` as an artifact of a run, and return its version in the registry."""
    from mlflow.exceptions import MlflowException

    name = place.removeprefix("models:/")
    known = _find_run(client, model)
    run = known or _create_run(client, model)
    client.log_artifacts(run.info.run_id, str(folder), folder.name)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(name, f"{run.info.artifact_uri}/{folder.name}", run.info.run_id).version
    if known is None:
        client.set_terminated(run.info.run_id)
    return str(version)


def _find_run(client: MlflowClient, model: TrainedModel) -> Run | None:
    """Return the run that was recorded while the model trained, if it was."""
    experiment = client.get_experiment_by_name(model.job.tracking.experiment)
    folder = Path(model.uri).parent
    if experiment is None or model.step is not None or not folder.is_dir():
        return None
    try:
        run_id = RunFolder(folder).run_id()
    except InputError:
        return None
    found: list[Run] = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'")
    return found[0] if found else None


def _create_run(client: MlflowClient, model: TrainedModel) -> Run:
    name = model.job.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    number = client.create_experiment(name) if experiment is None else experiment.experiment_id
    return client.create_run(number, run_name=model.job.name, tags={"crossfade.job": model.job.name})


def _load_pyfunc(path: str) -> _Recommender:
    """Open the model in the folder ``path``; MLflow calls it."""
    return _Recommender(Path(path) / _VERSION)


class _Recommender:
    """Answers with recommendations."""

    def __init__(self, folder: Path) -> None:
        from crossfade.trainer.serving.version import open_version  # with DuckDB, which takes long

        version = open_version(folder)
        self._model = version.model
        self._close = weakref.finalize(self, version.close)

    def predict(self, frame: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the recommendations for the IDs in ``frame``; unknown ones are left out, and logged.

        Args:
            frame: a data frame of pandas with a column, named as the query entity, such as customer. Where IDs are
                texts, names are taken too; where they are integers, MLflow rejects texts by the signature.
            params: ``k``, the number of items for each.

        Raises:
            InputError: the column is missing or has an empty value, ``k`` is invalid, or no ID has a trained vector.
        """
        model, options = self._model, RecommendOptions.of(**params or {})
        if model.query not in frame:
            raise InputError(f"expected the column '{model.query}', but found {format_names(frame.columns)}")
        column = frame[model.query]
        if len(empty := np.flatnonzero(column.isna())):
            raise InputError(f"{model.query}: row {int(empty[0])} is empty; expected an ID in every row")
        queries = find_queries(model, [str(id) for id in column], "skip", _logger.warning)
        if len(column) and not len(queries.rows_Q):
            raise InputError(f"{model.query}: none of the {len(column):,} IDs has a trained vector")
        return recommend_to_queries(model, queries, options).to_pandas()
