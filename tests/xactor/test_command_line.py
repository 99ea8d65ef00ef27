"""Test how a command ends: with its status, or with one line and status 2 after an error that the user can correct."""

import pytest

from xactor.command_line import run_command


def failing(error: Exception):
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    "error", [ValueError("steps must be >= 1, got 0"), FileNotFoundError("a: no such file")]
)
def test_an_error_that_the_user_can_correct_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(failing(error))
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_defect_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_command(failing(KeyError("a defect")))


@pytest.mark.parametrize("status", [None, 0, 3])
def test_the_exit_status_is_the_return_value_of_main(status):
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: status)
    assert ended.value.code == status
