"""Options of the verbs that use what a run has trained: where it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from crossfade.base.options import Options, option


def _location(value: Any) -> Any:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("expected a path")
    return str(value)


Location = Annotated[str, BeforeValidator(_location)]
"""A path or URI."""


def history_option(group: str) -> Any:
    """Return the option to do without base datasets."""
    return option(
        False,
        "read no base datasets of the dataset, such as where they cannot be reached: what is known from them counts as "
        "new",
        group=group,
    )


class ModelSource(Options):
    """Where a trained model and its dataset are."""

    group_notes: ClassVar[Mapping[str, str]] = {
        "model": "FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3. The\n"
        "embeddings of a run are used if it has written any, otherwise its newest complete checkpoint."
    }

    source: Location = option(
        ..., "read this run folder, folder of checkpoints, or checkpoint", group="model", value="FROM", positional=True
    )
    data: Location | None = option(
        None, "read IDs and interactions here (default: data.path of the job)", group="model", value="DATA"
    )
    history_from_this_dataset_only: bool = history_option("model")

    @property
    def data_changes(self) -> dict[str, Any]:
        """What to replace in the section ``data`` of the model's job."""
        changes = {"path": self.data, "history_from_this_dataset_only": self.history_from_this_dataset_only or None}
        return {key: value for key, value in changes.items() if value is not None}
