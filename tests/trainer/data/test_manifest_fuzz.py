"""Corrupt dataset manifests are read as a consistent dataset, or rejected in one line: never anything else.

Cases are deterministic; CONTRIBUTING.md has how to run more of them.
"""

import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from cluster_data import write_planted
from fuzzed_json import corrupt_json, fuzz, fuzz_range, judge

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reader import InteractionReader, row_groups
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.vocabulary import Vocabulary, check_vocabularies
from crossfade.trainer.prepare.options import ValidateOptions
from crossfade.trainer.prepare.validate import validate

CASES, FIRST = fuzz_range(300)


def read_dataset(folder: Folder) -> None:
    """Read all that a training reads."""
    manifest = read_manifest(folder)
    check_vocabularies(folder, manifest)
    for name, entity in manifest.entities.items():
        vocabulary = Vocabulary(folder, manifest, name)
        assert len(vocabulary.counts()) == entity.rows
        vocabulary.read(0, entity.rows)
    with closing(InteractionReader(folder, manifest)) as reader:
        for split in manifest.splits.values():
            for group in row_groups(split):
                interactions = reader.read(group)
                assert len(interactions) == group.rows
                assert np.isfinite(interactions.weight_N).all()


def error_of(folder: Folder) -> str | None:
    """Return the line in which the manifest of ``folder`` is rejected; None if it is read."""
    try:
        read_manifest(folder)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_corrupt_manifest_is_read_or_rejected_as_validate_rejects_it(tmp_path: Path) -> None:
    folder = Folder(write_planted(tmp_path / "data", train_files=((500, 17), (40,)), named=True))
    original = folder.read("manifest.json")
    read_dataset(folder)
    rejected = 0

    def manifests(draw: random.Random) -> str | None:
        nonlocal rejected
        (tmp_path / "data" / "manifest.json").write_bytes(corrupt_json(draw, original))
        problem = judge(tmp_path / "data", lambda: read_dataset(folder), (InputError,))
        refused = error_of(folder)
        if problem is None and refused is not None:
            rejected += 1
            assert validate(ValidateOptions.of(data=folder.uri), NullReporter()).problems.listed == [refused]
        return problem

    fuzz(CASES, FIRST, manifests)
    assert rejected > CASES / 4
