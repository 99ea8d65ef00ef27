"""Test that transient storage errors are retried until a timeout, and that permanent ones are raised at once."""

import errno

import pytest

from xactor_platform.storage.retries import StorageUnavailable, is_transient, with_retries


def test_a_transient_error_is_retried_and_logged_once(capsys):
    results = iter([OSError("AWS Error SLOW_DOWN"), OSError(errno.ENOSPC, "No space left on device"), "done"])

    def work() -> str:
        result = next(results)
        if isinstance(result, OSError):
            raise result
        return result

    assert with_retries(work, "runs/x/config.json", 10) == "done"
    assert capsys.readouterr().out.count("runs/x/config.json: retrying after") == 1


def test_a_transient_error_that_lasts_is_named_with_its_timeout():
    def work() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    message = r"runs/x: the storage failed for 0\.2 s: .*No space left on device"
    with pytest.raises(StorageUnavailable, match=message):
        with_retries(work, "runs/x", 0.2)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("x"),
        PermissionError("x"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError("AWS Error ACCESS_DENIED during PutObject"),
        StorageUnavailable("inner"),
        ValueError("x"),
    ],
)
def test_a_permanent_error_is_raised_at_once(error):
    calls = []

    def work() -> None:
        calls.append(1)
        raise error

    assert not is_transient(error)
    with pytest.raises(type(error)):
        with_retries(work, "runs/x", 10)
    assert len(calls) == 1
