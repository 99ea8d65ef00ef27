"""The plan and the data's way on many ranks: the platform's own plan, and a model of object store and readers."""

import time
from dataclasses import dataclass

import numpy as np

from xactor_platform.data.plan import EpochPlan, PlanConfig, plan_epoch, rank_micro_batches
from xactor_platform.data.stream import BLOCK_BYTES, BLOCKS_AHEAD
from xactor_platform.scale.machine import Machine

TURNS = 200  # that the stream is simulated for


@dataclass(frozen=True, kw_only=True)
class Store:
    """What the stream reads from and with.

    Args:
        request_s: median of a request's time to the first byte. slow_sigma: of its logarithm.
        connection_bytes_s: of one request's bytes after that.
        requests: in flight of one reading task.
        cpu_bytes_s: what one CPU takes out of its requests; measured by `jobs/bench.py data`.
        network_share: of a node's network that reading may have.
    """

    request_s: float = 0.03
    slow_sigma: float = 0.8
    connection_bytes_s: float = 80e6
    requests: int = 16
    cpu_bytes_s: float = 400e6
    network_share: float = 0.25


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """One epoch's plan on so many ranks.

    Attributes:
        padding: share of padded frames. fillers: share of micro-batches that only fill the last step.
        waiting: share of the ranks' time for which they wait in turns for the one with the most frames.
        plan_s: how long each rank plans, once an epoch.
    """

    ranks: int
    steps: int
    frames: int
    padding: float
    fillers: float
    waiting: float
    plan_s: float


@dataclass(frozen=True, kw_only=True)
class StreamFacts:
    """The stream while it trains.

    Attributes:
        node_bytes_s: what each node reads. store_requests_s: what all nodes together ask of the store.
        first_s: until every rank has its first micro-batch. data_wait: share of the time after it that ranks wait.
        ahead_bytes: the most that a node holds of what was read and is not trained on.
    """

    node_bytes_s: float
    store_requests_s: float
    first_s: float
    data_wait: float
    ahead_bytes: float


def turn_costs(plan: EpochPlan, ranks: int) -> np.ndarray:
    """Padded frames of every turn, [turns, ranks], by the platform's own dealing; a filler costs its frames too."""
    costs = []
    for number in range(plan.steps):
        # One rank would take them in the order in which many are dealt them, one after another.
        order = rank_micro_batches(plan.step(number), 0, 1)
        costs += [batch.padded_frames for batch in order]
    return np.array(costs).reshape(-1, ranks)


def simulate_plan(
    frames: np.ndarray, shard: np.ndarray, config: PlanConfig, ranks: int
) -> tuple[PlanFacts, EpochPlan, np.ndarray]:
    """The facts of epoch 0, its plan and its turns' costs."""
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
    """Turn by turn: reading tasks that run ahead within their bounds, ranks that meet after every micro-batch.

    Pessimistic where it must choose: a sample's two members are two requests, all reading tasks of a node share its
    network all the time, and each burst of requests takes as long as its slowest.

    Args:
        costs: from `simulate_plan`.
        seconds_per_frame: of a rank's forward and backward pass, a padded frame.
        reduce_s: after every turn, when all ranks add their gradients.
        cpus_per_rank: that the training holds; what a node has beyond them reads.

    Raises:
        ValueError: a node without a CPU for reading.
    """
    store = store or Store()
    slots = int((machine.cpus - machine.gpus * cpus_per_rank) // machine.gpus)
    if slots < 1:
        raise ValueError(
            f"cpus_per_rank must leave each of the {machine.gpus} ranks of a node a CPU of its {machine.cpus} for "
            f"reading, got {cpus_per_rank:g}"
        )
    micro_batch = plan.config.budget_frames * bytes_per_frame
    per_block = max(1, BLOCK_BYTES // micro_batch)
    blocks = -(-TURNS // per_block)
    costs = np.resize(costs, (blocks * per_block, costs.shape[1]))  # [turns, ranks], again from the beginning
    ranks = costs.shape[1]
    bytes_read = (costs * (1 - plan.padding) * bytes_per_frame).reshape(blocks, per_block, ranks).sum(1)
    requests = 2 * max(1, round(per_block * len(plan.row) / plan.micro_batches))
    bursts = -(-requests // store.requests)
    generator = np.random.default_rng(0)
    rate = min(
        store.requests * store.connection_bytes_s,
        store.cpu_bytes_s,
        store.network_share * machine.network_bytes_s / (machine.gpus * slots),
    )
    ahead = 2 * BLOCKS_AHEAD
    ends = np.zeros((blocks, ranks))  # of each block's reading
    trained = np.zeros(blocks)  # when a block's last turn is over
    now = waited = first = 0.0
    ready = np.zeros(ranks)
    for block in range(blocks):
        latencies = store.request_s * np.exp(
            store.slow_sigma * generator.standard_normal((ranks, bursts, store.requests))
        )
        free = ends[block - slots] if block >= slots else 0.0
        room = trained[block - ahead] if block >= ahead else 0.0
        ends[block] = np.maximum(free, room) + latencies.max(-1).sum(-1) + bytes_read[block] / rate
        ready = np.maximum(ready, ends[block])  # order is kept
        here = max(now, float(ready.max()))
        first = first or here
        waited += here - now if block else 0.0
        now = here
        for turn in costs[block * per_block : (block + 1) * per_block]:
            now += float(turn.max()) * seconds_per_frame + reduce_s
        trained[block] = now
    nodes = max(ranks / machine.gpus, 1.0)
    return StreamFacts(
        node_bytes_s=float(bytes_read.sum()) / (now - first) / nodes,
        store_requests_s=requests * blocks * ranks / (now - first),
        first_s=first,
        data_wait=waited / (now - first),
        ahead_bytes=ahead * per_block * micro_batch * machine.gpus,
    )
