"""Run Ray Train with a fixed number of ranks, or with as many ranks as the cluster has room for.

A rank is one worker process of a training.
"""

from typing import Any, cast

import ray
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from xactor_platform.data.plan import PlanConfig


class SharedSteps(ElasticScalingPolicy):
    """Choose the number of ranks, as a scaling policy of Ray Train.

    It is the largest number that the cluster has room for and that divides the number of micro-batches of a global
    step. Some CPUs stay free for Ray Data: ranks that hold every CPU would wait for their data for ever.

    Args:
        scaling_config: Ray Train's configuration of the ranks: their resources and their maximum number.
        plan: holds the number of micro-batches of a global step.
        data_cpus: number of CPUs that stay free for Ray Data.
    """

    def __init__(self, scaling_config: Any, plan: PlanConfig, data_cpus: float):
        super().__init__(scaling_config)
        self._plan, self._data_cpus = plan, data_cpus

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        max_ranks = super()._count_possible_workers(reserved_resources)
        cpus_per_rank = float(cast(Any, self.scaling_config._resources_per_worker_not_none).get("CPU", 0.0))
        if cpus_per_rank:
            # `reserved_resources` holds only what Ray reserved for ranks, which may be every CPU. So the ranks are
            # also limited to the cluster's CPUs without those of Ray Data.
            cpus = ray.cluster_resources().get("CPU", 0.0) - self._data_cpus
            max_ranks = min(max_ranks, int(max(0.0, cpus) // cpus_per_rank))
        return max((ranks for ranks in self._plan.allowed_ranks if ranks <= max_ranks), default=0)


class RankTrainer(DataParallelTrainer):
    """Train with a fixed number of ranks. The controller, the actor that manages the ranks, can be ended meanwhile."""

    controller: Any = None
    """Handle of the controller, once it exists."""

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller
        super()._register_sigint_handler(controller)


class ElasticTrainer(RankTrainer):
    """Train with the number of ranks that SharedSteps chooses. It changes when the cluster grows or shrinks.

    Args:
        args: positional arguments of Ray Train's DataParallelTrainer.
        plan: see SharedSteps.
        data_cpus: see SharedSteps.
        options: keyword arguments of DataParallelTrainer.
    """

    def __init__(self, *args: Any, plan: PlanConfig, data_cpus: float, **options: Any):
        super().__init__(*args, **options)
        self._plan, self._data_cpus = plan, data_cpus

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        controller["scaling_policy"] = SharedSteps(self.scaling_config, self._plan, self._data_cpus)
        return super()._initialize_and_run_controller(**controller)
