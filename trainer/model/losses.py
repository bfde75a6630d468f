"""Losses of one example against its negatives, by name: their formulas and papers.

    loss = LossSpec("bpr", temperature=0.2)
    engine = CpuEngine(model, loss, negatives)          # the closed forms are in trainer/model/loss_kernels.py

With s the score of the example's item, s_j those of its C negatives and w ≥ 0 its weight:

- ``bpr``       w/C · Σ_j −log σ(s − s_j)
                Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009
- ``logistic``  w · (−log σ(s) − 1/C · Σ_j log σ(−s_j))
                negative sampling, Mikolov et al., "Distributed representations of words and phrases", NIPS 2013
- ``softmax``   −w · log p, p = eˢ / (eˢ + Σ_j e^{s_j})
                sampled softmax, Jean et al., ACL 2015; on cosine scores, InfoNCE (van den Oord et al. 2018). With
                ``negatives.logq_correction``, log Q_j is subtracted from each s_j, where Q_j is how often the negative
                is expected in the pool, so that the sum estimates that over all items (Bengio and Senécal 2008; Yi et
                al., RecSys 2019). The item itself is always present, Q = 1 (Khrylchenko et al., "Correcting the LogQ
                correction", RecSys 2025). With ``top_k``, w is multiplied by v, below
- ``warp``      w · log(1 + J·(N − 1)/C) · [m + max_j s_j − s]₊, J = #{j: m + s_j > s}, N items in all
                Weston et al., "WSABIE", IJCAI 2011, with the rank estimated from a batch of negatives rather than from
                the number of draws until a violation; on euclidean scores with rows bounded to length 1
                (``optimizer.max_norm``) it is collaborative metric learning (CML), Hsieh et al., WWW 2017. The
                logarithm counts as a constant

With ``top_k`` K, the weight w > 0 of an example under ``softmax`` is multiplied by v = 2σ((s − β)·T/τ), a constant
without a gradient, with β the query's K-th highest score of all items and τ ``top_k_temperature``: an item above the
K-th place counts for up to 2, and one far below it for little. It follows from a bound of −log DCG@K: SL@K, Yang et
al., "Breaking the top-K barrier: advancing top-K ranking metrics optimization in recommender systems", KDD 2025. There,
β is estimated every few epochs; here, all items are negatives, so it is exact in each step, from its scores. So it is
never stale, and no state of a run: checkpoints, resumed runs, and servers need nothing for it.

The margin m is in units of the score before it is divided by the temperature T: ``margin``/T.

A weight w < 0 is negative feedback. It is penalized by |w| times the reversed loss, which is never below 0 and
has bounded derivatives (−|w| times the loss itself would be unbounded below):

- ``bpr``       |w|/C · Σ_j −log σ(s_j − s)
                the reversed pairs: an unseen item is preferred to one with negative feedback
- ``logistic``  |w| · −log σ(−s)
                the label 0, as LightFM treats interactions of −1 (Kula, CBRecSys 2015). Negatives add nothing: they are
                contrasted with positives only
- ``softmax``   −|w| · log(1 − p) = |w| · −log σ(log Σ_j e^{s_j} − s)
                unlikelihood, Welleck et al., "Neural text generation with unlikelihood training", ICLR 2020; for
                retrieval, the "not-to-recommend" loss of Wang et al., "Learning from negative user feedback and
                measuring responsiveness for sequential recommenders", RecSys 2023. The form on the right has no 1 − p,
                which would cancel where p is near 1
- ``warp``      |w|/C · Σ_j [m + s − s_j]₊, the reversed pairs without a rank, which negative feedback does not have

A negative that is the example's own item does not count: it adds no loss and gets no gradient. The same holds for an
in-batch negative that is another positive of the same query. Where none is left, ``bpr``, ``softmax``, and ``warp``
have no loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import LossKind, resolved
from crossfade.trainer.model.kernel_arguments import ScoreScales, TopK
from crossfade.trainer.model.loss_kernels import BPR, LOGISTIC, SOFTMAX, WARP, Objective
from crossfade.trainer.model.spec import ModelSpec

LOSS_CODES: dict[LossKind, int] = {"bpr": BPR, "logistic": LOGISTIC, "softmax": SOFTMAX, "warp": WARP}


@dataclass(frozen=True)
class LossSpec:
    """A loss and its constants, as in the formulas above.

    Attributes:
        kind: the loss.
        temperature: T, which the scores have been divided by.
        margin: m·T, the margin before that division.
        top_k: K, by which ``softmax`` weighs examples; None: all count alike.
        top_k_temperature: τ, in the units of scores before that division.
    """

    kind: LossKind
    temperature: float = 1.0
    margin: float = 0.5
    top_k: int | None = None
    top_k_temperature: float = 0.6

    @staticmethod
    def of(job: JobConfig) -> LossSpec:
        """Build the loss of a job."""
        return LossSpec(
            job.loss,
            resolved(job.model.temperature),
            margin=job.margin,
            top_k=job.top_k,
            top_k_temperature=job.top_k_temperature,
        )

    @property
    def sharpness(self) -> float:
        """T/τ, which differences of scores are multiplied by where they make weights."""
        return self.temperature / self.top_k_temperature

    def objective(self, model: ModelSpec) -> Objective:
        """Return the loss of the scores of ``model`` as kernels take it."""
        margin, scales = np.float32(self.margin / self.temperature), ScoreScales.of(model.score)
        return Objective(LOSS_CODES[self.kind], margin, model.item.rows - 1, scales)

    def top_k_params(self) -> TopK:
        """Return what weights depend on."""
        return TopK(np.int64(self.top_k or 0), np.float32(self.sharpness))
