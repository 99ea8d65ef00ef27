"""Test the routing of a portrait's windows with Serve's own replicas."""

import asyncio

import pytest
from client import delete
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from xactor_serving.routing import PortraitRouter


@serve.deployment(
    num_replicas=2,
    max_ongoing_requests=2,
    ray_actor_options={"num_cpus": 0},
    request_router_config=RequestRouterConfig(request_router_class=PortraitRouter),
)
class Keeper:
    """Return the id of the replica that caches a name, after a wait."""

    @serve.multiplexed(max_num_models_per_replica=100)
    async def kept(self, _: str) -> str:
        return serve.get_replica_context().replica_id.unique_id

    async def __call__(self, wait_s: float = 0) -> str:
        kept = await self.kept(serve.get_multiplexed_model_id())
        await asyncio.sleep(wait_s)
        return kept


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Video:
    """Make many concurrent calls within one request. All calls have the id of the request."""

    def __init__(self, keeper: DeploymentHandle):
        self._keeper = keeper

    async def __call__(self, name: str, calls: int) -> list[str]:
        keeper = self._keeper.options(multiplexed_model_id=name)
        async with asyncio.timeout(30):
            return await asyncio.gather(*(keeper.remote(0.1) for _ in range(calls)))


@pytest.fixture(scope="module")
def video(serving):
    yield serve.run(Video.bind(Keeper.bind()), name="keeper", route_prefix="/keeper")
    delete("keeper")


@pytest.fixture(scope="module")
def keeper(video):
    return serve.get_deployment_handle("Keeper", "keeper")


def handle_for(keeper: DeploymentHandle, name: str) -> DeploymentHandle:
    return keeper.options(multiplexed_model_id=name)


def test_later_calls_follow_the_first(keeper):
    first = [handle_for(keeper, f"p{n}").remote().result() for n in range(12)]
    # New names go to any replica.
    assert len(set(first)) == 2
    for n in range(12):
        name = f"q{n}"
        assert len({handle_for(keeper, name).remote().result() for _ in range(3)}) == 1
    assert [handle_for(keeper, f"p{n}").remote().result() for n in range(12)] == first


def test_calls_beyond_the_capacity_of_a_replica_go_to_another(keeper):
    busy = handle_for(keeper, "busy")
    warm = busy.remote().result()
    calls = [busy.remote(1.0) for _ in range(3)]
    assert sorted(call.result() == warm for call in calls) == [False, True, True]


def test_no_call_of_a_request_is_lost(video):
    # Together, the two replicas accept four concurrent calls.
    answers = [video.remote(f"v{n}", 12) for n in range(3)]
    assert [len(answer.result()) for answer in answers] == [12, 12, 12]
