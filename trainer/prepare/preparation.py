"""The steps of a preparation, on either engine: from events to the files of a dataset.

    manifest = Preparation(groups, options, inputs, base, staged, faults, progress).run()

What is done with events is done in their groups (``event_groups.py``); vocabularies, features, and content are built in
one database, out of core, of the IDs that the groups have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from crossfade.base.errors import OptionError
from crossfade.trainer.data.manifest import REPLAY, DatasetManifest, Entity, Feature, Split
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.admission import count_sightings, filter_admitted, plan_id_policies
from crossfade.trainer.prepare.attribute_columns import plan_columns
from crossfade.trainer.prepare.cleaning import filter_k_core, sum_duplicates
from crossfade.trainer.prepare.co_occurrence import with_co_occurrence
from crossfade.trainer.prepare.earlier import Carrying
from crossfade.trainer.prepare.event_context import count_context
from crossfade.trainer.prepare.event_groups import (
    EventGroups,
    Report,
    Step,
    count_events,
    earliest,
    latest,
    total,
)
from crossfade.trainer.prepare.events import EventTable
from crossfade.trainer.prepare.extend import BaseDataset
from crossfade.trainer.prepare.faults import Faults
from crossfade.trainer.prepare.hold_out import (
    check_split,
    check_taken,
    check_times,
    create_interactions,
    describe_interactions,
    drop_gaps,
    moments,
    plan_hold_outs,
    take,
)
from crossfade.trainer.prepare.input_files import Source
from crossfade.trainer.prepare.options import PrepareOptions, Side
from crossfade.trainer.prepare.replay import ReplayDraw
from crossfade.trainer.prepare.split_files import SplitLayout
from crossfade.trainer.prepare.staging import Staged, write_relation
from crossfade.trainer.prepare.summary import Facts, describe_options, describe_stats
from crossfade.trainer.prepare.vocabulary_builder import VocabularyBuilder
from crossfade.trainer.prepare.vocabulary_tables import IdPolicy


@dataclass(frozen=True)
class Inputs:
    """The input files: of the events by split, of names by entity, and of each entry of the features and content."""

    events: dict[str, list[Source]]
    names: dict[str, Source]
    features: list[list[Source]]
    content: list[list[Source]]


@dataclass
class Preparation:
    """One preparation.

    Attributes:
        groups: Its events.
        options: What to prepare.
        inputs: The files found for the options.
        base: The dataset whose vocabularies are extended, if any.
        staged: Where files are written.
        faults: Receives the faults of files.
        progress: Receives a phase for each step.
        facts: What the manifest records under ``source``.
    """

    groups: EventGroups
    options: PrepareOptions
    inputs: Inputs
    base: BaseDataset | None
    staged: Staged
    faults: Faults
    progress: ProgressReporter
    facts: Facts = field(default_factory=dict)

    def run(self) -> DatasetManifest:
        """Write all files except the manifest, which is returned.

        Raises:
            InputError: a file or an option is wrong.
        """
        options, connection = self.options, self.groups.connection
        events, counts = self._read_events()
        vocabularies = VocabularyBuilder(
            connection,
            self.staged,
            self.progress,
            self.base,
            options.names,
            self.inputs.names,
            self.faults.emptied,
        )
        vocabularies.load_base(options)
        counts = self._sum_duplicates() or counts
        newest = latest(counts, "newest")
        policies = self._filter_ids(newest, events)
        rows = self._hold_out(newest, total(counts, "train"), events)
        self.groups.collect_ids()
        entities, features = self._write_vocabularies(vocabularies, events, policies)
        content = vocabularies.write_content()
        if context := options.context_plans():
            types = count_context(self.groups, context, events.id_types, self.facts.get("last_timestamp"))
            entities |= vocabularies.build_context(context, types)
        self.facts |= vocabularies.facts
        layout = self._layout(events.timestamps is not None)
        layout.place_groups(connection, "vocabulary_query WHERE number IS NOT NULL")
        manifest = DatasetManifest(
            query=options.query.name,
            item=options.item.name,
            entities=entities,
            splits=self.groups.write(layout, rows),
            features=features,
            content=content,
            context=[plan.name for plan in context],
            lineage=self.base.lineage() if self.base else [],
            has_timestamp=layout.has_timestamp,
            is_grouped=True,
            co_occurrence=self.base.manifest.co_occurrence if self.base else None,
            source={
                **describe_options(options),
                "timestamps_are_dates": events.timestamps == "datetime",
                **self.facts,
            },
        )
        return with_co_occurrence(self.staged.folder, self._with_earlier(manifest), self.progress)

    def _with_earlier(self, manifest: DatasetManifest) -> DatasetManifest:
        """Carry the interactions of the base, and draw the replay of them; return ``manifest`` with both."""
        if self.base is None:
            return manifest
        earlier = Carrying(self.base, manifest, self.staged, self.progress).run()
        manifest = manifest.model_copy(update={"earlier": earlier})
        return manifest.model_copy(update={"replay": self._draw_replay(manifest)})

    def _draw_replay(self, manifest: DatasetManifest) -> Split | None:
        """Write the replay of the dataset that ``manifest`` describes; return None if there is nothing to draw."""
        if self.options.replay is None:
            return None
        draw = ReplayDraw(self.groups.connection, self.options, self.staged.folder, manifest, self.progress)
        rows = draw.create(round(self.options.replay * manifest.splits["train"].rows))
        if not rows:
            return None
        self.progress.phase(f"write {REPLAY}", rows, "row")
        schema = self._layout(manifest.has_timestamp).schema()
        return Split(files=write_relation(self.staged, REPLAY, schema, draw.relation(), rows, self.progress))

    def _read_events(self) -> tuple[EventTable, list[Report]]:
        events, counts = self.groups.read()
        self.facts |= describe_stats(events.stats, self.faults)
        if not total(counts, "positives"):
            raise OptionError(
                "train",
                problem="the files hold no interaction with a weight above 0",
                expected="at least one",
            )
        return events, counts

    def _sum_duplicates(self) -> list[Report]:
        """Sum duplicates if requested, on each side of a hold-out by time; return what is left."""
        if self.options.duplicates != "sum":
            return []
        self.progress.phase("sum duplicates", None, "row")
        cuts = [moment.value for moment in moments(plan_hold_outs(self.options))]
        reports = self.groups.apply([partial(sum_duplicates, cuts), count_events])
        self.facts |= {name: total(reports, name) for name in ("merged_duplicates", "cancelled_pairs")}
        return reports

    def _filter_ids(self, newest: int | None, events: EventTable) -> dict[Side, IdPolicy]:
        """Leave out events of IDs that are not admitted, or rare; return which IDs are admitted and which expire."""
        options, sides = self.options, self.options.sides()
        policies = plan_id_policies(newest, sides, events.id_types, options.admit, options.max_ages(), self.base)
        if policies:
            self.progress.phase("admission", len(policies), "side")
            count_sightings(self.groups, list(policies.values()), self.base)
            self.progress.advance(len(policies))
        if options.admit:
            self.facts["dropped_pending"] = filter_admitted(self.groups, list(policies.values()), self.base)
        if options.min_count:
            entities: dict[str, str] = {side: entity for entity, side in sides.items()}
            minimums = {side: options.min_count[name] for side, name in entities.items() if name in options.min_count}
            report = filter_k_core(self.groups, minimums, entities, self.progress)
            self.facts["dropped_rare"] = report.interactions
            self.facts |= {f"{entity}_rare": report.ids[side] for side, entity in entities.items()}
        return policies

    def _hold_out(self, newest: int | None, train: int, events: EventTable) -> dict[str, int]:
        """Hold out of ``train`` events, up to the ``newest``; return the number of interactions of each split."""
        options, gap = self.options, self.options.hold_out_gap
        plan = {split: each.bounded(train) for split, each in plan_hold_outs(options).items()}
        check_times(plan, gap, events.timestamps, newest)
        if plan:
            self.progress.phase("hold out", len(plan), "split")
        steps: list[Step] = [] if gap is None else [partial(drop_gaps, plan, gap)]
        steps += [create_interactions, partial(take, plan, options.seed), describe_interactions]
        reports = self.groups.apply(steps, found=("found_query", "found_item"))
        check_taken(plan, reports)
        if gap is not None:
            self.facts |= {name: total(reports, name) for name in ("dropped_gap", "dropped_without_history")}
        self.facts["valid_by_default"] = any(each.by_default for each in plan.values())
        self.facts |= {name: total(reports, name) for name in ("kept_for_train", "negative")}
        self.progress.advance(len(plan))
        first, last = earliest(reports, "first"), latest(reports, "last")
        if first is not None and last is not None:
            self.facts |= {"first_timestamp": first, "last_timestamp": last}
        return self._count_splits(reports)

    def _count_splits(self, reports: Sequence[Report]) -> dict[str, int]:
        """Count the interactions of each split; one with files needs at least one of positive weight."""
        rows: dict[str, int] = {split: total(reports, split) for split in ALL_SPLITS}
        for split, files in self.inputs.events.items():
            check_split(split, rows[split], total(reports, f"{split}_positives"), has_files=bool(files))
        return rows

    def _write_vocabularies(
        self, vocabularies: VocabularyBuilder, events: EventTable, policies: Mapping[Side, IdPolicy]
    ) -> tuple[dict[str, Entity], dict[str, dict[str, Feature]]]:
        """Write the vocabularies of the two sides and of their features, and the pairs of the features."""
        options, sides = self.options, self.options.sides()
        base = self.base.manifest if self.base else None
        in_base = list(base.feature_owners().items()) if base else []
        plans = plan_columns("feature", options.features, self.inputs.features, sides, in_base)
        in_base = [(name, entity) for entity, names in base.content.items() for name in names] if base else []
        content = plan_columns("content", options.content, self.inputs.content, sides, in_base)
        vocabularies.read_features(plans, content, options.id_type)
        entities = {
            entity: vocabularies.build_side(
                side, entity, events.id_types[side], entity in options.catalog, policies.get(side)
            )
            for entity, side in sides.items()
        }
        values, features = vocabularies.build_features()
        return {**entities, **values}, features

    def _layout(self, has_timestamp: bool) -> SplitLayout:
        options = self.options
        return SplitLayout(
            options.query.name,
            options.item.name,
            has_timestamp=has_timestamp,
            context=[plan.name for plan in options.context_plans()],
            seed=options.seed,
        )
