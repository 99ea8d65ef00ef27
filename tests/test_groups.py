"""Test that parallel workers know the groups that conftest.py makes."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="the tests run in one process")
def test_a_worker_knows_the_group_of_a_test(request):
    # pytest-xdist appends the group to the id. A version that does not would run clusters next to each other.
    assert request.node.nodeid.endswith("@tests/test_groups.py")
