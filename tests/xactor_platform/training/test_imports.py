"""Test that no process of a training imports a large package that it does not need, so that it starts quickly."""

import subprocess
import sys

import pytest

LOADED = "import sys; print(*[name for name in {names!r} if name in sys.modules])"


def loaded(code: str, *names: str) -> list[str]:
    """Return which of the named modules are loaded in a new process after the code has run."""
    command = [sys.executable, "-c", f"{code}\n{LOADED.format(names=names)}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_a_command_line_is_parsed_without_torch_and_without_ray():
    code = """
from xactor_platform.training import stage1_config, stage2_config
from xactor_platform.training.command import parse
for module in (stage1_config, stage2_config):
    for preset in module.PRESETS:
        parse([preset], module.PRESETS)
"""
    assert loaded(code, "torch", "transformers", "diffusers", "deepspeed", "ray", "pandas") == []


def test_driver_and_controller_need_no_torch():
    code = "import xactor_platform.training.launch, xactor_platform.training.process_group"
    assert loaded(code, "torch", "transformers", "diffusers", "deepspeed") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "needless"), [("stage2", ["diffusers"]), ("stage1", ["transformers.models.qwen2"])]
)
def test_a_rank_imports_the_models_of_its_own_stage_only(stage, needless):
    code = f"import xactor_platform.training.loop, xactor_platform.training.{stage}"
    assert loaded(code, "deepspeed", *needless) == []
