"""Test that the files of a checkpoint, which DeepSpeed loads as pickles, run no code."""

import pickle
from collections import OrderedDict

import pytest
import torch
from planted import Planted

from xactor_platform.training.run.restore import _code_in, refuse_code, refused_code


@pytest.fixture
def refusing(monkeypatch):
    # The test ends with the variable as it was.
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    refuse_code()


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("place", ["whole", "inside"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, refusing, place, new_format):
    planted = Planted(tmp_path / "ran")
    content = planted if place == "whole" else {"optimizer_state_dict": {"loss_scaler": planted}}
    torch.save(content, tmp_path / "states.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(pickle.UnpicklingError) as raised:
        # DeepSpeed passes weights_only=False.
        torch.load(tmp_path / "states.pt", weights_only=False)
    assert refused_code(raised.value) == "holds code and not only tensors and numbers: posix.mkdir"
    assert not (tmp_path / "ran").exists()


def test_code_is_found_before_any_rank_loads_its_file(tmp_path, refusing):
    (tmp_path / "state").mkdir()
    torch.save({"step": 3}, tmp_path / "state" / "a.pt")
    assert _code_in(tmp_path) == ""
    torch.save({"step": Planted(tmp_path / "ran")}, tmp_path / "state" / "b.pt")
    assert _code_in(tmp_path) == "b.pt holds code and not only tensors and numbers: posix.mkdir"
    assert not (tmp_path / "ran").exists()


def test_what_deepspeed_saves_is_loaded(tmp_path, refusing):
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    saved = {
        "loss_scaler": LossScaler(scale=1.0),
        "zero_stage": ZeroStageEnum.gradients,
        "param_slice_mappings": [OrderedDict(weight=fragment_address(numel=3, start=1))],
        "shapes": OrderedDict(weight=torch.Size([3])),
        "state": {0: {"exp_avg": torch.arange(3.0, dtype=torch.bfloat16)}},
        "ds_version": "0",
    }
    torch.save(saved, tmp_path / "states.pt")
    assert _code_in(tmp_path) == ""
    loaded = torch.load(tmp_path / "states.pt", weights_only=False)
    assert loaded["zero_stage"] == ZeroStageEnum.gradients
    assert loaded["param_slice_mappings"][0]["weight"].numel == 3
    assert torch.equal(loaded["state"][0]["exp_avg"], saved["state"][0]["exp_avg"])
