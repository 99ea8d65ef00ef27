"""Simulate the data stream of a training on many ranks, with the platform's own plan and a model of the object store.

A rank is one process of the training, with one GPU. The plan divides an epoch into micro-batches and global steps.
Reading tasks read blocks of several micro-batches ahead of the training.
"""

import time
from dataclasses import dataclass

import numpy as np

from xactor_platform.data.plan import EpochPlan, PlanConfig, plan_epoch, rank_micro_batches
from xactor_platform.data.stream import BLOCK_BYTES, BLOCKS_AHEAD
from xactor_platform.scale.machine import Machine

# Number of simulated turns. In a turn every rank trains on one micro-batch.
TURNS = 200


@dataclass(frozen=True, kw_only=True)
class Store:
    """Model an object store and its readers."""

    request_s: float = 0.03
    """Median time from a request to its first byte, in seconds."""
    slow_sigma: float = 0.8
    """Standard deviation of the logarithm of the time to the first byte."""
    connection_bytes_s: float = 80e6
    """Bytes per second of one request after its first byte."""
    requests: int = 16
    """Number of concurrent requests of one reading task."""
    cpu_bytes_s: float = 400e6
    """Bytes per second that one CPU reads, as measured by `jobs/bench.py data`."""
    network_share: float = 0.25
    """Fraction of the bandwidth of a node's network that reading may use."""


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """Hold figures of one epoch's plan."""

    ranks: int
    """Number of ranks."""
    steps: int
    """Number of global steps of the epoch."""
    frames: int
    """Number of real frames of the epoch."""
    padding: float
    """Fraction of frames that are padding."""
    fillers: float
    """Fraction of micro-batches that only fill the last step, so that all ranks have equally many."""
    waiting: float
    """Fraction of the ranks' time that they spend waiting, in each turn, for the rank with the most padded frames."""
    plan_s: float
    """Seconds that each rank needs to plan an epoch."""


@dataclass(frozen=True, kw_only=True)
class StreamFacts:
    """Hold figures of the data stream during a training."""

    node_bytes_s: float
    """Bytes per second that each node reads."""
    store_requests_s: float
    """Requests per second of all nodes together."""
    first_s: float
    """Seconds until every rank has its first micro-batch."""
    data_wait: float
    """Fraction of the time after the first micro-batch in which ranks wait for data."""
    ahead_bytes: float
    """Maximum number of bytes on a node that are read and not yet trained on."""


def turn_costs(plan: EpochPlan, ranks: int) -> np.ndarray:
    """Return the number of frames, padding included, of each rank in every turn: [turns, ranks].

    Micro-batches, including fillers, are assigned to ranks as in a training.
    """
    costs = []
    for number in range(plan.steps):
        # For a single rank, the function returns all micro-batches of the step, in the order in which they are dealt to
        # several ranks.
        order = rank_micro_batches(plan.step(number), 0, 1)
        costs += [batch.padded_frames for batch in order]
    return np.array(costs).reshape(-1, ranks)


def simulate_plan(
    frames: np.ndarray, shard: np.ndarray, config: PlanConfig, ranks: int
) -> tuple[PlanFacts, EpochPlan, np.ndarray]:
    """Return figures of epoch 0, its plan, and its padded frames by turn and rank (see `turn_costs`)."""
    config.check_ranks(ranks)
    begun = time.perf_counter()
    plan = plan_epoch(frames, shard, config, 0)
    plan_s = time.perf_counter() - begun
    costs = turn_costs(plan, ranks)
    facts = PlanFacts(
        ranks=ranks,
        steps=plan.steps,
        frames=int(plan.frames.sum()),
        padding=plan.padding,
        fillers=1 - plan.micro_batches / (plan.steps * config.micro_batches),
        waiting=1 - float(costs.sum() / (costs.max(1).sum() * ranks)),
        plan_s=plan_s,
    )
    return facts, plan, costs


def simulate_stream(
    costs: np.ndarray,
    plan: EpochPlan,
    machine: Machine,
    *,
    bytes_per_frame: int,
    seconds_per_frame: float,
    reduce_s: float,
    cpus_per_rank: float,
    store: Store | None = None,
) -> StreamFacts:
    """Simulate at least TURNS turns of the training, and return figures of the data stream.

    Reading tasks read ahead within their limits. All ranks end a turn together. The model is pessimistic: a sample's
    two members (latents and audio features) are two requests, all reading tasks of a node share its network all the
    time, and a burst of concurrent requests takes as long as its slowest request.

    Args:
        costs: padded frames by turn and rank, from `simulate_plan`.
        plan: the plan of the epoch, from `simulate_plan`.
        machine: the GPU and its node.
        bytes_per_frame: stored bytes of a frame's latent and audio features.
        seconds_per_frame: time of a rank's forward and backward pass per padded frame.
        reduce_s: time of the communication between ranks after every turn.
        cpus_per_rank: CPUs that each rank holds. The other CPUs of a node read data.
        store: the object store. The default is `Store()`.

    Raises:
        ValueError: a node has no CPU left to read with.
    """
    store = store or Store()
    # Number of concurrent reading tasks of a rank, with one CPU each.
    slots = int((machine.cpus - machine.gpus * cpus_per_rank) // machine.gpus)
    if slots < 1:
        raise ValueError(
            f"cpus_per_rank must leave each of the {machine.gpus} ranks of a node at least one of its "
            f"{machine.cpus} CPUs for reading, got {cpus_per_rank:g}"
        )
    micro_batch_bytes = plan.config.budget_frames * bytes_per_frame
    # Number of micro-batches in a block, which one reading task reads.
    per_block = max(1, BLOCK_BYTES // micro_batch_bytes)
    blocks = -(-TURNS // per_block)
    # If the epoch has fewer turns than are simulated, np.resize repeats it from its beginning: [turns, ranks].
    costs = np.resize(costs, (blocks * per_block, costs.shape[1]))
    ranks = costs.shape[1]
    bytes_read = (costs * (1 - plan.padding) * bytes_per_frame).reshape(blocks, per_block, ranks).sum(1)
    # Number of requests of a block: two for each sample. They are made in bursts of concurrent requests.
    requests = 2 * max(1, round(per_block * len(plan.row) / plan.micro_batches))
    bursts = -(-requests // store.requests)
    generator = np.random.default_rng(0)
    # Bytes per second of one reading task: limited by its connections, its CPU or its share of the network.
    rate = min(
        store.requests * store.connection_bytes_s,
        store.cpu_bytes_s,
        store.network_share * machine.network_bytes_s / (machine.gpus * slots),
    )
    # Number of blocks that a rank may read ahead, as in `PlannedStream`, the stream of a real training.
    ahead = 2 * BLOCKS_AHEAD
    # Seconds from the start until each block is read, [blocks, ranks], and until its last turn is trained, [blocks].
    read_at = np.zeros((blocks, ranks))
    trained_at = np.zeros(blocks)
    now = waited = first = 0.0
    ready = np.zeros(ranks)
    for block in range(blocks):
        latencies = store.request_s * np.exp(
            store.slow_sigma * generator.standard_normal((ranks, bursts, store.requests))
        )
        # Reading a block starts when a task is free and at most `ahead` blocks are not trained on yet.
        task_free_at = read_at[block - slots] if block >= slots else 0.0
        room_at = trained_at[block - ahead] if block >= ahead else 0.0
        started_at = np.maximum(task_free_at, room_at)
        read_at[block] = started_at + latencies.max(-1).sum(-1) + bytes_read[block] / rate
        # Blocks are used in order, so a block is ready only when all earlier blocks are read too.
        ready = np.maximum(ready, read_at[block])
        arrived = max(now, float(ready.max()))
        if block == 0:
            first = arrived
        else:
            waited += arrived - now
        now = arrived
        for turn in costs[block * per_block : (block + 1) * per_block]:
            now += float(turn.max()) * seconds_per_frame + reduce_s
        trained_at[block] = now
    nodes = max(ranks / machine.gpus, 1.0)
    return StreamFacts(
        node_bytes_s=float(bytes_read.sum()) / (now - first) / nodes,
        store_requests_s=requests * blocks * ranks / (now - first),
        first_s=first,
        data_wait=waited / (now - first),
        ahead_bytes=ahead * per_block * micro_batch_bytes * machine.gpus,
    )
