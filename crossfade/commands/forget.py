"""``crossfade prepare --forget``: deletes what prepared data have of some customers, and says what else has them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvstore.io.folder import Folder

if TYPE_CHECKING:
    from trainer.data.reporter import ProgressReporter
    from trainer.prepare.forget import ForgetReport


def forget_ids(arguments: argparse.Namespace, progress: ProgressReporter) -> str:
    """Delete what ``arguments`` ask for; what there is to say of it.

    Raises:
        CrossfadeError: it could not be done; the data are what they were, or what they were to be.
    """
    from trainer.data.manifest import read_manifest
    from trainer.prepare.forget import forget
    from trainer.prepare.id_list import read_ids

    folder = Folder(arguments.out)
    entity = arguments.entity or read_manifest(folder).query
    ids = read_ids(arguments.forget, arguments.column, entity)
    return describe_forgotten(forget(folder, ids, entity, progress), folder, arguments.forget)


def describe_forgotten(forgotten: ForgetReport, folder: Folder, file: str) -> str:
    """What was deleted, what still holds the people, and how that is cleared."""
    unknown = forgotten.requested - forgotten.found - forgotten.pending
    dropped = ", ".join(f"{count:,} of {split}" for split, count in forgotten.interactions.items())
    forgotten_in_all = len(forgotten.manifest.entities[forgotten.entity].vacant_rows)
    lines = [
        f"{folder.uri}: forgot {forgotten.found:,} rows of {forgotten.entity} ({forgotten_in_all:,} in all)",
        f"  ids: {forgotten.requested:,} in {file}; {unknown:,} of them are not in the data, or not any more",
        f"  interactions dropped: {dropped}; {forgotten.files_rewritten} file(s) rewritten",
    ]
    if forgotten.pending:
        lines.insert(2, f"  {forgotten.pending:,} of them waited for a row (--admit)")
    if forgotten.leftovers_deleted:
        lines.append("  an earlier --forget had broken off: the files that it left are deleted")
    if forgotten_in_all or forgotten.pending:
        lines += ["what may still hold them, and how to clear it:", *(f"  {line}" for line in _still(forgotten))]
    return "\n".join(lines)


def _still(forgotten: ForgetReport) -> list[str]:
    source = forgotten.manifest.source
    raw = [text for split in ("train", "valid", "test") for text in _texts(source.get(split))]
    where = f": {', '.join(raw[:3])}{' …' if len(raw) > 3 else ''}" if raw else ""
    lines = [
        f"raw events     delete them there, or the next preparation brings them back{where}",
        "checkpoints    train a new run with --set checkpoint.warm_start_from=OLD/checkpoints: their rows start afresh;",
        "               then delete the older checkpoints",
        "embeddings     of earlier runs, exports and indexes: that run writes new embeddings; delete the old ones",
        "copies         data prepared earlier, backups, older versions of objects in S3: forget there, or delete them",
    ]
    if "base" in source:
        lines.append(f"earlier data   {source['base']}, whose vocabulary these data go on with: forget there too")
    return lines


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []
