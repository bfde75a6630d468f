"""Project vectors to two dimensions by t-SNE (van der Maaten and Hinton, JMLR 2008), as openTSNE computes it.

place_N2 = project(vectors_ND, seed=1, reporter)

Shapes: N vectors, D columns.
"""

from __future__ import annotations

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import MissingExtraError
from crossfade.kvstore.jit import get_num_threads
from crossfade.trainer.data.reporter import ProgressReporter

_PERPLEXITY = 30
_EXAGGERATED_STEPS, _STEPS = 250, 500
_STEPS_PER_REPORT = 25


def project(vectors_ND: FloatArray, seed: int, reporter: ProgressReporter) -> FloatArray:
    """Return the places of ``vectors_ND`` on a map, float32 (N, 2), with mean 0.

    Raises:
        MissingExtraError: openTSNE is not installed.
    """
    try:
        from openTSNE import TSNE
    except ImportError as error:
        raise MissingExtraError("openTSNE", "map", "crossfade map") from error

    reporter.phase("t-SNE", _EXAGGERATED_STEPS + _STEPS, "step")

    def report(_step: int, _divergence: float, _place_N2: FloatArray) -> None:
        reporter.advance(_STEPS_PER_REPORT)

    tsne = TSNE(
        perplexity=min(_PERPLEXITY, max(1, (len(vectors_ND) - 1) // 3)),
        early_exaggeration_iter=_EXAGGERATED_STEPS,
        n_iter=_STEPS,
        initialization="pca",
        n_jobs=get_num_threads(),
        random_state=seed,
        callbacks=report,
        callbacks_every_iters=_STEPS_PER_REPORT,
    )
    place_N2: FloatArray = np.asarray(tsne.fit(vectors_ND.astype(np.float64)), np.float32)
    place_N2 -= place_N2.mean(axis=0)
    return place_N2
