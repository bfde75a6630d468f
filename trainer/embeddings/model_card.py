"""Write the model card of an export: README.md with the YAML front matter of Hugging Face's hub, then Markdown.

    card = ModelCard(job, data, manifest, origin, tables, date, to="numpy", loading="```python ...")
    card.write(folder)

The front matter has no license, since that is the owner's to choose, and the card has no path of this machine: it is
meant to be published with the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from crossfade.base.io.folder import Folder
from crossfade.kvstore import __version__
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.manifest import DatasetManifest, data_fingerprint
from crossfade.trainer.embeddings.vector_origin import VectorOrigin
from crossfade.trainer.runs.shown_metrics import count_queries, is_metric, show_metric

CARD_FILE = "README.md"
_FRONT_MATTER = """\
---
library_name: crossfade
tags: [recommendation, collaborative-filtering, embeddings, music]
---"""
_METRICS = ("recall", "ndcg", "map", "mrr", "hit_rate", "coverage")
_SCORES: dict[ScoreKind, str] = {
    "cosine": "the cosine, `q·i / (|q|·|i|)`; only the directions of vectors matter",
    "dot": "the dot product, `q·i`; do not scale vectors to length 1",
    "euclidean": "minus the squared Euclidean distance, `-|q - i|²`; do not scale vectors to length 1",
}


@dataclass(frozen=True)
class ExportedTable:
    """An exported table: columns and rows of its vectors, and how many rows are not trained.

    Attributes:
        name: the entity.
        rows: the rows that were written.
        dim: the columns of a vector.
        untrained: rows without an ID or a trained vector; None if they were not counted.
    """

    name: str
    rows: int
    dim: int
    untrained: int | None = None


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card.

    Attributes:
        job: the job that trained the model.
        data: the folder of the dataset.
        manifest: its manifest.
        origin: the step, and the metrics of the vectors.
        tables: what was exported.
        date: when.
        to: the format.
        loading: Markdown on how to load the files, with an example.
    """

    job: JobConfig
    data: Folder
    manifest: DatasetManifest
    origin: VectorOrigin
    tables: Sequence[ExportedTable]
    date: datetime
    to: str
    loading: str

    def write(self, folder: Path) -> None:
        """Write the card into ``folder``."""
        (folder / CARD_FILE).write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """Return the card."""
        names = [table.name for table in self.tables]
        entities = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        parts = [
            _FRONT_MATTER,
            f"# {self.job.name}: embeddings of {entities}",
            f"Trained by Crossfade on interactions of {self._query} with {self._item}: the score of two vectors "
            f"predicts whether the two interact. The files are in the format `{self.to}`.",
            "## Vectors",
            "\n".join(self._tables()),
            "## Comparison of vectors",
            f"The score of a vector q of {self._query} and a vector i of {self._item} is {_SCORES[self._score]}. "
            f"Higher is better. (In the loss, it is divided by the temperature, {self.job.model.temperature:g}.)",
            "## Loading",
            self.loading,
            "## Training",
            "\n".join(self._training()),
            *(["## Metrics", "\n".join(self._metrics())] if self.origin.metrics else []),
        ]
        return "\n\n".join(parts) + "\n"

    @property
    def _score(self) -> ScoreKind:
        return self.job.model.score

    @property
    def _query(self) -> str:
        return self.manifest.query

    @property
    def _item(self) -> str:
        return self.manifest.item

    def _tables(self) -> Iterator[str]:
        counted = any(table.untrained is not None for table in self.tables)
        yield f"| entity | rows | columns |{' untrained |' if counted else ''}"
        yield f"|---|---|---|{'---|' if counted else ''}"
        for table in self.tables:
            yield f"| {table.name} | {table.rows:,} | {table.dim} |{f' {table.untrained:,} |' if counted else ''}"

    def _training(self) -> Iterator[str]:
        job = self.job
        rows = {name: entity.rows for name, entity in self.manifest.entities.items()}
        rows |= {f"interactions, {split}": files.rows for split, files in self.manifest.interactions().items()}
        yield "| | |"
        yield "|---|---|"
        yield f"| job | {job.name}, by crossfade {__version__} |"
        yield f"| vectors | {self.origin}, exported {self.date.isoformat(timespec='seconds')} |"
        yield f"| loss | {job.loss}, negatives: {job.negatives.kind} |"
        yield f"| dataset | {self.data.name}, fingerprint {data_fingerprint(self.data):08x} (CRC-32 of its manifest) |"
        for name, count in rows.items():
            yield f"| {name} | {count:,} |"

    def _metrics(self) -> Iterator[str]:
        task = self.job.evaluate.task
        excluded = ", ".join(self.job.evaluate.exclude_splits) if task == "new" else ""
        others = f" without those in its other splits of {excluded}, which do not count as held out" if excluded else ""
        yield f"All of {self._item} are ranked for each {self._query}{others} (`evaluate.task: {task}`)."
        yield ""
        splits = list(self.origin.metrics)
        yield f"| metric | {' | '.join(splits)} |"
        yield f"|---|{'---|' * len(splits)}"
        first = self.origin.metrics[splits[0]]
        for name in filter(_is_shown, first):
            yield f"| {name} | {' | '.join(show_metric(self.origin.metrics[split], name) for split in splits)} |"
        yield f"| queries | {' | '.join(count_queries(self.origin.metrics[split]) for split in splits)} |"


def _is_shown(name: str) -> bool:
    return is_metric(name) and name.partition("@")[0] in _METRICS


def is_model_card(path: Path) -> bool:
    """Return whether ``path`` is a model card that an export wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_FRONT_MATTER)) == _FRONT_MATTER.encode()
