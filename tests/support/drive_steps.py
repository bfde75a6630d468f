"""The script of every role in the tests of ``test_invariants.py`` that measure the cost of a step.

    drive_steps.py JOB

A worker trains. It reports after ``WARM_STEPS`` steps and after ``MEASURED_STEPS`` more, and waits for the test
each time.
"""

import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

import psutil
from dist_roles import play_role, send, send_and_wait

from crossfade.kvstore.mxnet.client import MXNetStore
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.data.reader import InteractionReader, row_groups
from crossfade.trainer.data.schedule import BatchSchedule
from crossfade.trainer.model.batches import BatchSource, FrequencyWeighting
from crossfade.trainer.model.engines.engine import choose_engine
from crossfade.trainer.model.negatives import NegativeSampler
from crossfade.trainer.model.towers import load_towers
from crossfade.trainer.runs.events import Event, StepEvent
from crossfade.trainer.runs.job_inputs import open_inputs
from crossfade.trainer.training.hooks import TrainingHooks
from crossfade.trainer.training.loop import TrainLoop
from crossfade.trainer.training.state import TrainState
from crossfade.trainer.training.steps import PullPushStep

WARM_STEPS, MEASURED_STEPS = 20, 30
_TCP_INFO_BYTES = 256
_BYTES_ACKED_OFFSET = 120
"""Of tcpi_bytes_acked in Linux's struct tcp_info; tcpi_bytes_received follows."""


def network_bytes() -> tuple[int, int]:
    """Return the bytes that the connections of this process have sent and received so far."""
    sent = received = 0
    for connection in psutil.Process().net_connections("tcp"):
        if connection.status == psutil.CONN_ESTABLISHED:
            with suppress(OSError), socket.fromfd(connection.fd, socket.AF_INET, socket.SOCK_STREAM) as duplicate:
                info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                acked, delivered = struct.unpack_from("QQ", info, _BYTES_ACKED_OFFSET)
                sent, received = sent + acked, received + delivered
    return sent, received


class NoEmbeddings:
    def evaluate(self) -> None:
        return None

    def save(self, epoch: int) -> None:
        pass


class NoCheckpoints:
    def after_step(self, state: TrainState) -> bool:
        return False


def work(store: MXNetStore) -> None:
    """Train the job without evaluating or writing embeddings."""
    job = load_job(Path(sys.argv[1]))
    folder, manifest, model, job = open_inputs(job)
    store.create(model.tables, job.optimizer_spec, job.train.seed)
    reader = InteractionReader(folder, manifest)

    def watch(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step in (WARM_STEPS, WARM_STEPS + MEASURED_STEPS):
            store.barrier()
            sent, received = network_bytes()
            send_and_wait(step=event.step, sent=sent, received=received)

    towers = load_towers(job, model, folder, manifest)
    batches = BatchSource(
        BatchSchedule(
            reader,
            row_groups(manifest.splits["train"]),
            batch_size=job.train.batch_size,
            partitions=job.data.partitions,
            shuffle_block_rows=job.data.shuffle_block_rows,
            seed=job.train.seed,
        ),
        NegativeSampler(job.negatives, model.item.rows, None, job.train.seed),
        FrequencyWeighting(job.train.query_frequency_power, None, job.train.item_frequency_power, None),
        towers.add_tower_inputs,
        store.rank,
        store.workers,
    )
    hooks, state = TrainingHooks(on_event=watch), TrainState()
    step = PullPushStep(store, choose_engine(job.train).build(job, model), towers)
    TrainLoop(job, model, store, step, batches, NoEmbeddings(), NoCheckpoints(), hooks).run(state)
    send(pushed=state.traffic.bytes_pushed, pulled=state.traffic.bytes_pulled)


if __name__ == "__main__":
    play_role(work, key_bytes=load_job(Path(sys.argv[1])).cluster.max_key_bytes)
