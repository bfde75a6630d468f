"""Train on plays.csv; print neighbors of an artist, and artists for a customer."""

import csv
import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim import RowWiseAdagrad

BATCH, EPOCHS = 1024, 30

with Path("plays.csv").open(encoding="utf-8", newline="") as file:
    plays = list(csv.DictReader(file))
customers, customer_rows = np.unique([play["customer"] for play in plays], return_inverse=True)
artists, artist_rows = np.unique([play["artist"] for play in plays], return_inverse=True)

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT="29511")
dist.init_process_group("gloo")
tables = (("customers", len(customers), ["customer"]), ("artists", len(artists), ["artist", "other"]))
embeddings = EmbeddingBagCollection(
    tables=[
        EmbeddingBagConfig(name=name, embedding_dim=64, num_embeddings=rows, feature_names=features)
        for name, rows, features in tables
    ],
    device=torch.device("meta"),
)
apply_optimizer_in_backward(RowWiseAdagrad, embeddings.parameters(), {"lr": 0.1})
model = DistributedModelParallel(embeddings, device=torch.device("cpu"))

random = np.random.default_rng(1)
for _ in range(EPOCHS):
    order = random.permutation(len(plays))
    for start in range(0, len(plays), BATCH):
        rows = order[start : start + BATCH]
        others = random.integers(len(artists), size=len(rows))
        ids = torch.from_numpy(np.concatenate([customer_rows[rows], artist_rows[rows], others]))
        lengths = torch.ones(len(ids), dtype=torch.int64)
        vectors = model(KeyedJaggedTensor(keys=["customer", "artist", "other"], values=ids, lengths=lengths))
        margins = (vectors["customer"] * (vectors["artist"] - vectors["other"])).sum(dim=1)
        torch.nn.functional.softplus(-margins).mean().backward()

state = model.state_dict()
customer_vectors, artist_vectors = (
    state[f"embedding_bags.{name}.weight"].local_shards()[0].tensor.detach() for name in ("customers", "artists")
)
[artist] = np.flatnonzero(artists == "Radiohead")
cosines = torch.nn.functional.cosine_similarity(artist_vectors[artist : artist + 1], artist_vectors)
for row in cosines.topk(11).indices.tolist():
    print(f"{cosines[row]:.3f}  {artists[row]}")
[customer] = np.flatnonzero(customers == "2")
scores = artist_vectors @ customer_vectors[customer]
scores[torch.from_numpy(artist_rows[customer_rows == customer])] = -torch.inf
for row in scores.topk(10).indices.tolist():
    print(f"{scores[row]:.3f}  {artists[row]}")
