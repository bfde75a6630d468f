"""Horovod, which the setup does not build: without it tests that need it are skipped, and in CI they fail."""

import os

import pytest
from needs import HOROVOD

from crossfade.base.errors import MissingExtraError
from crossfade.trainer.model.allreduce import require_horovod


def require_built_horovod() -> None:
    """Skip, or fail in CI, unless Horovod is installed."""
    try:
        require_horovod()
    except MissingExtraError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(HOROVOD)
