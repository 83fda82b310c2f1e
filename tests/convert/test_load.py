import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

import published
from tubelet.convert.load import load, refuse_empty
from tubelet.types import TubeletError


class Bomb:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("wrapper", [None, "model", "module", "model_state", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_weights_are_found_in_every_wrapper_without_the_prefixes_of_others(tmp_path, wrapper, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in published.classifier().items()}
    found = load(published.save(state, tmp_path / "any", wrapper))
    assert found.tensors.keys() == published.classifier().keys()


def test_half_precision_becomes_single_without_another_change(tmp_path):
    state = {name: tensor.half() for name, tensor in published.classifier().items()}
    found = load(published.save(state, tmp_path / "half.pt", "module"))
    assert all(torch.equal(found.tensors[name], tensor.float()) for name, tensor in state.items())


def test_settings_and_numbers_of_numpy_are_plain_values(tmp_path):
    args = argparse.Namespace(model="pretrain_videomae_base_patch16_224", num_frames=8, window=(8, 14, 14))
    optimiser = {"param_groups": [{"lr": numpy.float64(0.1), "step": numpy.int64(3)}]}
    path = published.save(published.classifier(), tmp_path / "x.pth", args=args, optimizer=optimiser)
    assert load(path).settings["num_frames"] == 8


def test_ema_is_taken_on_demand_only(tmp_path):
    state, average = published.classifier(), published.classifier(seed=1)
    path = published.save(state, tmp_path / "x.pth", model_ema=average)
    assert torch.equal(load(path).tensors["head.weight"], state["head.weight"])
    assert torch.equal(load(path, ema=True).tensors["head.weight"], average["head.weight"])
    with pytest.raises(TubeletError, match="has no model_ema"):
        load(published.save(state, tmp_path / "y.pth"), ema=True)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_never_runs_and_gets_one_line(tmp_path, how, protocol):
    mark, path = tmp_path / "ran", tmp_path / "checkpoint.pth"
    inside = {"model": {**published.classifier(), "extra": Bomb(mark)}}
    if how == "torch":
        torch.save(inside, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps({"model": Bomb(mark)}, protocol=protocol))
    with pytest.raises(TubeletError, match=r"could run code, so it was not|may hold code \(none was") as caught:
        load(path)
    assert not mark.exists() and "\n" not in str(caught.value)


def test_another_class_in_a_file_is_named_and_not_opened(tmp_path):
    path = published.save(published.classifier(), tmp_path / "x.pth", history=zipfile.ZipInfo("a"))
    with pytest.raises(TubeletError, match=r"zipfile\.ZipInfo beside tensors"):
        load(path)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("kept", [0, 0.02, 0.5, 0.99])
def test_a_truncated_file_gets_one_line(tmp_path, kind, kept):
    path = tmp_path / f"x.{kind}"
    if kind == "pth":
        published.save(published.classifier(), path)
    else:
        save_file(published.classifier(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(TubeletError, match="cannot be read") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_gets_one_line(tmp_path):
    text, archive, tensor, empty = (tmp_path / name for name in ("a.txt", "b.pth", "c.pth", "d.pth"))
    text.write_text("no weights at all")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "text")
    torch.save(torch.ones(2), tensor)
    torch.save({"epoch": 3, "model": {}}, empty)
    for path, message in (
        (text, "cannot be read"), (archive, "zip file of something else"), (tensor, "holds a Tensor"),
        (empty, "holds no weights"), (tmp_path / "none", "does not exist"), (tmp_path, "has no checkpoint"),
    ):  # fmt: skip
        with pytest.raises(TubeletError, match=message):
            load(path)


def test_a_folder_with_a_config_and_no_weights_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "videomae"}')
    with pytest.raises(TubeletError, match=r"a config.json but no weights"):
        load(tmp_path)


def test_shards_are_read_as_one(tmp_path):
    state = published.classifier()
    names = sorted(state)
    half = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, some in half.items():
        save_file({name: state[name] for name in some}, tmp_path / shard)
    places = {name: shard for shard, some in half.items() for name in some}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert all(torch.equal(load(tmp_path).tensors[name], state[name]) for name in names)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(TubeletError, match=r"b\.safetensors does not exist"):
        load(tmp_path)


def test_empty_tensors_are_refused_by_name_unless_they_are_said_to_be_meant():
    state = published.classifier()
    refuse_empty(state, "x", allow_zero=False)
    state["blocks.1.mlp.fc2.bias"].zero_()
    refuse_empty(state, "x", allow_zero=False)  # a bias may be zero
    state["blocks.1.mlp.fc2.weight"].zero_()
    with pytest.raises(TubeletError, match=r"wholly zero in blocks\.1\.mlp\.fc2\.weight.*--allow-zero"):
        refuse_empty(state, "x", allow_zero=False)
    refuse_empty(state, "x", allow_zero=True)
    state["head.weight"][0, 0] = torch.nan
    with pytest.raises(TubeletError, match=r"not finite in head\.weight"):
        refuse_empty(state, "x", allow_zero=True)
