"""Evaluate embeddings during training, and keep the best.

They are written to the run folder where all workers share it, and next to the checkpoints otherwise, so that a run that
resumes on another machine finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from crossfade.base.arrays import IntArray
from crossfade.base.errors import CrossfadeError
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.kvstore.store import RowStore
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import resolved
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings.files import EmbeddingFiles, write_embeddings
from crossfade.trainer.embeddings.listing import LISTING_FILE
from crossfade.trainer.embeddings.popularity import PopularityCard, PopularityTerm, write_term
from crossfade.trainer.embeddings.staged import StagedEmbeddings
from crossfade.trainer.evaluation.held_out import HeldOut
from crossfade.trainer.evaluation.paired_gain import Evaluation, GroupSums
from crossfade.trainer.evaluation.popularity_choice import RankingTrials, choose_term, count_latest
from crossfade.trainer.evaluation.ranking import EvalMetrics, evaluate, evaluate_embeddings
from crossfade.trainer.model.spec import ModelSpec
from crossfade.trainer.model.towers import TowerVectors
from crossfade.trainer.runs.job_inputs import JobInputs, open_lineage
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.training.state import TrainState


@dataclass(frozen=True)
class BestEmbeddings:
    """Evaluates the vectors of a run on its valid split and writes the best ones.

    Attributes:
        held_out: this worker's part of the valid split; None if there is none.
        counts_N: interactions of each item in train, here and in base datasets, int64 (items,); needed with
            ``held_out``.
    """

    inputs: JobInputs
    folder: RunFolder
    store: RowStore
    vocabularies: Mapping[str, Vocabulary]
    vectors: TowerVectors
    held_out: HeldOut | None = None
    counts_N: IntArray | None = None

    @property
    def job(self) -> JobConfig:
        """The job, with a value for each ``auto``."""
        return self.inputs.job

    @property
    def model(self) -> ModelSpec:
        """The model."""
        return self.inputs.model

    def evaluate(self) -> Evaluation | None:
        """Compute the metrics on the valid split over all workers; None without one. Every worker calls this.

        With ``train.patience``, they have what it takes to compare them with those of another epoch, query by query.
        """
        if self.held_out is None:
            return None
        assert self.counts_N is not None
        spec, all_reduce = self.job.evaluate, self.store.all_reduce
        sums = GroupSums(spec.best_metric) if self.job.train.patience is not None else None
        observers = [] if sums is None else [sums]
        metrics = evaluate(self.vectors, self.model, self.held_out, spec, self.counts_N, all_reduce, observers)
        return Evaluation(metrics, None if sums is None else sums.of_all(all_reduce))

    def save(self, epoch: int) -> None:
        """Replace the written vectors by those after ``epoch``, if the job keeps any. Every worker calls this."""
        if not self._enabled:
            return
        path, tables, vocabularies = self.folder.embeddings, self.model.vectors, dict(self.vocabularies)
        if self.job.cluster.shared_run_dir:
            with translate_storage_errors(str(path), action="written", other=CrossfadeError):
                write_embeddings(self.store, tables, vocabularies, path, self.vectors)
        else:
            scratch = path.with_name(f".embeddings.worker-{self.store.rank}")
            self._staged.stage(self.store, tables, vocabularies, epoch, scratch, self.vectors)

    def add_popularity(self, *, has_queries: bool) -> tuple[PopularityCard, EvalMetrics | None] | None:
        """Choose the popularity term of the written vectors, and write it; every worker calls this.

        Args:
            has_queries: whether valid has queries to choose by; without, only a given factor is a term.

        Returns:
            How popularity enters scores, and the metrics on valid with it, if there are any; None if it does not.
        """
        if not self._enabled:
            return None
        vectors = EmbeddingFiles(self._written)
        term = self._choose_term(vectors, has_queries=has_queries)
        if self.store.rank == 0:
            self._write_term(term)
        self.store.barrier()
        if term is None or not has_queries:
            return None if term is None else (term.card, None)
        assert self.held_out is not None
        assert self.counts_N is not None
        score = term.added_to(self.model.score, resolved(self.job.model.temperature))
        ranked = vectors, replace(self.model, score=score), self.held_out, self.job.evaluate
        return term.card, evaluate(*ranked, self.counts_N, self.store.all_reduce)

    def _choose_term(self, vectors: EmbeddingFiles, *, has_queries: bool) -> PopularityTerm | None:
        model, spec = self.job.model, self.job.evaluate
        if model.popularity == "off" or model.score == "euclidean":
            return None
        factor = None if model.popularity == "auto" else model.popularity
        if factor is None and not has_queries:
            return None
        temperature = resolved(model.temperature)
        with closing(open_lineage(self.job, self.inputs.folder, self.inputs.manifest)) as lineage:
            counts = count_latest(lineage, self.job.data.time_range())
        if factor is not None and not has_queries:
            return PopularityTerm.of(factor, 1.0, temperature, counts[1.0])
        assert self.held_out is not None
        trials = RankingTrials(vectors, self.model, self.held_out, spec.best_metric, self.store.all_reduce)
        return choose_term(trials, counts, temperature, factor)

    def _write_term(self, term: PopularityTerm | None) -> None:
        if self.job.cluster.shared_run_dir:
            write_term(Folder(self.folder.embeddings), term)
        else:
            self._staged.write_term(term)

    @property
    def _written(self) -> Path | Folder:
        return self.folder.embeddings if self.job.cluster.shared_run_dir else self._staged.folder()

    def evaluate_test(self) -> EvalMetrics:
        """Evaluate the embeddings on the test split, as they were written. Every worker calls this."""
        return evaluate_embeddings(self.job, self._written, "test", self.store)

    def discard_missing(self, state: TrainState) -> None:
        """Reset the best of ``state`` if its embeddings are not here: they may lie on another machine's disk.

        Later epochs then determine the best. Embeddings of a later epoch are kept, since that epoch is repeated.
        """
        if self._enabled and state.best is not None and not self._exists(state.best_epoch or 0):
            state.reset_best()

    def _exists(self, epoch: int) -> bool:
        if self.job.cluster.shared_run_dir:
            return (self.folder.embeddings / LISTING_FILE).exists()
        staged = self._staged.epoch()
        return staged is not None and staged >= epoch

    @property
    def _enabled(self) -> bool:
        return self.job.train.save_embeddings == "best"

    @property
    def _staged(self) -> StagedEmbeddings:
        return StagedEmbeddings(self.folder.checkpoints(self.job))
