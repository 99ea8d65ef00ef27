"""Check the private names of Ray that the platform uses, and the only version in which they were tried.

A new version of Ray fails here first. Then change TRIED_VERSION, fix what these tests show, and move the upper bound of
ray in pyproject.toml.
"""

import ast
import inspect
import logging
import pkgutil
import re
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRIED_VERSION = "2.60"
# Modules that are not part of Ray's public interface, and the name that is taken from each.
PRIVATE_NAMES = {
    "ray._private.runtime_env.packaging": "_dir_travel",
    "ray._raylet": "GcsClient",
    "ray.autoscaler._private.fake_multi_node.node_provider": "FakeMultiNodeProvider",
    "ray.data._internal.execution.execution_callback": "ExecutionCallback",
    "ray.train._internal.utils": "get_address_and_port",
    "ray.train.v2._internal.execution.scaling_policy": "ElasticScalingPolicy",
    "ray.train.v2.api.data_parallel_trainer": "DataParallelTrainer",
}
# The loggers that data/stream.py silences, with the module that owns each.
LOGGERS = ("ray.data._internal.execution.streaming_executor", "ray.data._internal.progress")
_PRIVATE_MODULE = re.compile(r"ray(\.\w+)*\.(_\w+|v2)(\.\w+)*")


def _private_modules(path: Path) -> set[str]:
    """Return the private modules of Ray that a file imports or names in a string."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        found |= {name for name in names if _PRIVATE_MODULE.fullmatch(name)}
    return found


def test_installed_ray_is_the_tried_version():
    assert version("ray").startswith(f"{TRIED_VERSION}."), (
        f"ray {version('ray')} is not {TRIED_VERSION}: run this file's tests, then change TRIED_VERSION"
    )


def test_upper_bound_is_the_version_after_the_tried_one():
    major, minor = map(int, TRIED_VERSION.split("."))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    bounds = [line for lines in extras.values() for line in lines if line.startswith("ray[")]
    assert len(bounds) == 2
    for bound in bounds:
        assert bound.endswith(f"<{major}.{minor + 1}"), bound


def test_every_private_module_is_in_the_list():
    used = set()
    for room in ("platform", "serving", "jobs", "xactor"):
        for path in (ROOT / room).rglob("*.py"):
            used |= _private_modules(path)
    # A string names the fake provider's class together with its module.
    modules = {name.removesuffix(".FakeMultiNodeProvider") for name in used}
    assert modules == set(PRIVATE_NAMES)


@pytest.mark.parametrize(("module", "name"), PRIVATE_NAMES.items())
def test_private_name_exists(module: str, name: str):
    assert hasattr(import_module(module), name)


@pytest.mark.parametrize("name", LOGGERS)
def test_silenced_logger_is_the_one_that_ray_uses(name: str):
    package = import_module(name)
    for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
        import_module(f"{name}.{module.name}")
    used = [
        other for other in logging.root.manager.loggerDict if other == name or other.startswith(f"{name}.")
    ]
    assert used, f"no module of {name} logs under its own name"


def test_execution_callback_has_the_hook_of_the_stream():
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    hook = inspect.signature(ExecutionCallback.on_execution_step)
    assert [*hook.parameters] == ["self", "executor"]


def test_a_trainer_gets_the_handle_of_its_controller():
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    parameters = inspect.signature(DataParallelTrainer._register_sigint_handler).parameters
    assert [*parameters] == ["self", "controller"]


def test_a_placement_groups_identifier_ends_with_that_of_its_job():
    from ray import JobID, PlacementGroupID

    job = JobID.from_int(10)
    assert PlacementGroupID.of(job).hex().endswith(job.hex())


def test_gcs_client_lists_nodes():
    from ray._raylet import InnerGcsClient  # pyright: ignore

    assert callable(InnerGcsClient.get_all_node_info)


def test_elastic_policy_has_the_methods_that_training_overrides():
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
    from ray.train.v2.api.config import ScalingConfig

    assert [*inspect.signature(ElasticScalingPolicy._count_possible_workers).parameters] == [
        "self",
        "reserved_resources",
    ]
    assert [*inspect.signature(ElasticScalingPolicy.__init__).parameters][:2] == ["self", "scaling_config"]
    controller = inspect.signature(TorchTrainer._initialize_and_run_controller)
    assert [each.kind for each in controller.parameters.values()][1:] == [inspect.Parameter.VAR_KEYWORD]
    scaling = ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5})
    assert scaling._resources_per_worker_not_none == {"CPU": 0.5}
