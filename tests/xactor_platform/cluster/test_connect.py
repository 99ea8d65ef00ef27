"""Test that an address at which no cluster answers is refused at once."""

import socket
import time
from types import SimpleNamespace

import pytest

from xactor_platform.cluster import connect as connect_module
from xactor_platform.cluster.connect import connect
from xactor_platform.cluster.local import free_port


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    monkeypatch.setattr(connect_module, "_ANSWER_S", 1)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_where_nothing_listens_is_named(monkeypatch, form):
    address = form.format(free_port())
    monkeypatch.setenv("RAY_ADDRESS", address)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=rf"RAY_ADDRESS is {address}, but no cluster answers there"):
        connect([])
    assert time.monotonic() - begun < 15


def test_a_port_out_of_range_and_an_unknown_host_are_named(monkeypatch):
    for address in ("127.0.0.1:99999", "no-such-host.invalid:6379", "head..svc:6379"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ValueError, match=rf"RAY_ADDRESS is {address}, but no cluster answers there"):
            connect([])


def test_an_address_that_answers_is_passed_to_ray(monkeypatch):
    asked = {}
    # The patches keep the test session's own Ray and environment unchanged.
    monkeypatch.setattr(connect_module, "ray", SimpleNamespace(init=lambda **options: asked.update(options)))
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        connect([])
    assert asked["address"] == address
