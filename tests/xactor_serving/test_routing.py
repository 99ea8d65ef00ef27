"""Where a portrait's windows go, with Serve's own replicas."""

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
    """Says who keeps what it is asked for, and when others are done."""

    @serve.multiplexed(max_num_models_per_replica=100)
    async def kept(self, _: str) -> str:
        return serve.get_replica_context().replica_id.unique_id

    async def __call__(self, wait_s: float = 0) -> str:
        kept = await self.kept(serve.get_multiplexed_model_id())
        await asyncio.sleep(wait_s)
        return kept


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Video:
    """Asks for many at a time, as one request does: they all have its id."""

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


def of(keeper: DeploymentHandle, name: str) -> DeploymentHandle:
    return keeper.options(multiplexed_model_id=name)


def test_what_follows_at_once_goes_where_the_first_went(keeper):
    first = [of(keeper, f"p{n}").remote().result() for n in range(12)]
    assert len(set(first)) == 2  # new ones go to any
    for n in range(12):
        name = f"q{n}"
        assert len({of(keeper, name).remote().result() for _ in range(3)}) == 1
    assert [of(keeper, f"p{n}").remote().result() for n in range(12)] == first


def test_what_finds_no_room_there_goes_elsewhere(keeper):
    busy = of(keeper, "busy")
    warm = busy.remote().result()
    calls = [busy.remote(1.0) for _ in range(3)]
    assert sorted(call.result() == warm for call in calls) == [False, True, True]


def test_none_of_one_requests_calls_is_lost(video):
    answers = [video.remote(f"v{n}", 12) for n in range(3)]  # of four that there is room for
    assert [len(answer.result()) for answer in answers] == [12, 12, 12]
