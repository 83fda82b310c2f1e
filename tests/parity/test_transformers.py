"""Against transformers with random weights: forward, loss and the gradient of every parameter, both directions."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tubelet import registry
from tubelet.checkpoint import load_backbone
from tubelet.convert.check import compare, set_epsilon
from tubelet.convert.convert import convert, read
from tubelet.convert.huggingface import ARCHITECTURES, rename, write
from tubelet.convert.neutral import Neutral, Options, spread
from tubelet.nn import masks
from tubelet.types import TubeletError

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

SIZES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "decoder_hidden_size": 192,
              "decoder_num_hidden_layers": 4, "decoder_num_attention_heads": 3, "num_frames": 4, "image_size": 32},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "decoder_hidden_size": 384,
             "decoder_num_hidden_layers": 4, "decoder_num_attention_heads": 6, "num_frames": 4, "image_size": 32},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "decoder_hidden_size": 512,
              "decoder_num_hidden_layers": 12, "decoder_num_attention_heads": 8, "num_frames": 4, "image_size": 32},
    "odd": {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5, "decoder_hidden_size": 36,
            "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 3, "num_frames": 8, "image_size": 112},
    "like giant": {"hidden_size": 88, "num_hidden_layers": 5, "num_attention_heads": 1, "intermediate_size": 384,
                   "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4,
                   "decoder_intermediate_size": 139, "num_frames": 8, "image_size": 56, "patch_size": 14},
    "long cubes": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_hidden_size": 16,
                   "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1, "num_frames": 8, "image_size": 24,
                   "patch_size": 8, "tubelet_size": 4},
}  # fmt: skip
QUICK = [pytest.param(name, marks=pytest.mark.slow if name in ("base", "large") else ()) for name in SIZES]


def make(kind: str, size: str, **more):
    """A model of transformers whose every tensor is random, biases and mask token too."""
    shape = SIZES[size]
    inner = {"intermediate_size": "hidden_size", "decoder_intermediate_size": "decoder_hidden_size"}
    wide = {name: 4 * shape[dim] for name, dim in inner.items()}
    wide |= {"id2label": {number: f"class {number}" for number in range(7)}}
    pooled = {"use_mean_pooling": kind == "classifier", "layer_norm_eps": 1e-6}
    config = transformers.VideoMAEConfig(**{**wide, **pooled, **shape, **more})
    model = getattr(transformers, ARCHITECTURES[kind])(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "mask_token" not in name else 0.1
            parameter.copy_(noise * scale + (1 if "norm" in name and name.endswith("weight") else 0))
    set_epsilon(model, 1e-6)
    return model.eval()


def clips(model, count: int = 2) -> torch.Tensor:
    config = model.config
    shape = (count, 3, config.num_frames, config.image_size, config.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


def theirs(video: torch.Tensor) -> torch.Tensor:
    mean, deviation = (torch.tensor(v).view(3, 1, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return ((video - mean) / deviation).transpose(1, 2)  # B T C H W


def assert_close(ours: torch.Tensor, other: torch.Tensor, what: str, tolerance: float = 1e-5) -> None:
    apart = (ours - other).abs().max() / other.abs().max().clamp(min=1e-12)
    assert apart <= tolerance, f"{what}: {apart:.1e}"


def assert_same_gradients(neutral: Neutral, model) -> None:
    """Of every parameter, each by the name that it has there; relative to the tensor's largest."""
    named = dict(model.named_parameters())
    prefix = "" if neutral.options else "backbone."
    for name, parameter in neutral.module.named_parameters():
        parts = rename(neutral.kind, f"{prefix}{name}")
        other = torch.cat([named[_name_of_5(part)].grad for part in parts])
        assert other.abs().max() > 0, name
        assert_close(parameter.grad, other.reshape(parameter.shape), f"gradient of {name}")
    assert sum(p.numel() for p in named.values()) == sum(p.numel() for p in neutral.module.parameters())


def _name_of_5(name: str) -> str:
    return name.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias")


@pytest.mark.parametrize("size", QUICK)
def test_pre_training_from_transformers(tmp_path, size):
    model = make("pretraining", size)
    model.save_pretrained(tmp_path)
    neutral = read(tmp_path)
    learner, video, keys = neutral.module, clips(model), torch.tensor([3, 4])
    grid = learner.backbone.grid(*video.shape[2:])
    learner.ratio = 0.5
    hidden = masks.draw("tube", keys, video, grid, 0.5)
    said = model(theirs(video), bool_masked_pos=hidden)
    tokens = learner.backbone(video, hidden).tokens
    assert_close(tokens, model.videomae(theirs(video), bool_masked_pos=hidden).last_hidden_state, "tokens")
    assert_close(learner.decode(learner.enter(tokens), hidden, grid), said.logits, "predictions")
    loss = learner({"video": [video], "key": keys}, "main").loss
    assert_close(loss, said.loss, "loss")
    loss.backward()
    said.loss.backward()
    assert_same_gradients(neutral, model)


@pytest.mark.parametrize("size", QUICK)
@pytest.mark.parametrize("pooled", [True, False])
def test_classification_from_transformers(tmp_path, size, pooled):
    model = make("classifier", size, use_mean_pooling=pooled)
    model.save_pretrained(tmp_path)
    neutral = read(tmp_path)
    video, labels = clips(model), torch.tensor([6, 2])
    said = model(theirs(video), labels=labels)
    assert_close(neutral.module.logits(video), said.logits, "logits")
    neutral.module.smoothing = 0.0
    loss = neutral.module({"video": [video], "label": labels}, "main").loss
    assert_close(loss, said.loss, "loss")
    loss.backward()
    said.loss.backward()
    assert_same_gradients(neutral, model)
    assert neutral.classes == [f"class {number}" for number in range(7)]


@pytest.mark.parametrize("saved", ["VideoMAEModel", "VideoMAEForPreTraining"])
def test_an_encoder_alone_from_transformers(tmp_path, saved):
    model = make("encoder" if saved == "VideoMAEModel" else "pretraining", "odd")
    encoder = model if saved == "VideoMAEModel" else model.videomae
    encoder.save_pretrained(tmp_path)
    neutral, video = read(tmp_path), clips(model)
    assert neutral.kind == "encoder"
    assert_close(neutral.module(video).tokens, encoder(theirs(video)).last_hidden_state, "tokens")


@pytest.mark.parametrize("size", QUICK)
@pytest.mark.parametrize("kind", ["pretraining", "classifier", "encoder"])
def test_to_transformers(tmp_path, kind, size):
    """Our own network, started at random and disturbed, in their code."""
    shape = SIZES[size]
    torch.manual_seed(0)
    frames, side = shape["num_frames"], shape["image_size"]
    dim = shape["hidden_size"]
    backbone = registry.build(
        "backbones", "vit", dim=dim, depth=shape["num_hidden_layers"], heads=shape["num_attention_heads"],
        mlp=shape.get("intermediate_size", 4 * dim) / dim, patch=shape.get("patch_size", 16),
        tubelet=shape.get("tubelet_size", 2), last_norm=kind != "classifier", made_for=(frames, side, side),
    )  # fmt: skip
    options = {
        "pretraining": {"name": "videomae", "decoder_dim": shape["decoder_hidden_size"],
                        "decoder_depth": shape["decoder_num_hidden_layers"],
                        "decoder_heads": shape["decoder_num_attention_heads"], "normalise": "none"},
        "classifier": {"name": "supervised"}, "encoder": {},
    }[kind]  # fmt: skip
    arguments = {name: value for name, value in options.items() if name != "name"}
    count = {"classes": 3} if kind == "classifier" else {}
    module = backbone
    if options:
        module = registry.build("methods", options["name"], backbone=backbone, **arguments, **count)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    clip = {"frames": frames, "stride": 4, "reference_fps": 30.0, "size": side}
    neutral = Neutral(module.eval(), options, clip, ["a", "b", "c"] if count else [], "ours")
    write(neutral, tmp_path / "hf")
    architecture = getattr(transformers, ARCHITECTURES[kind])
    model, report = architecture.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    set_epsilon(model.eval(), 1e-6)
    video, keys = clips(model), torch.tensor([8, 9])
    if kind == "pretraining":
        module.ratio = 0.5
        hidden = masks.draw("tube", keys, video, backbone.grid(*video.shape[2:]), 0.5)
        ours, other = module({"video": [video], "key": keys}, "main").loss, model(theirs(video), hidden).loss
    elif kind == "classifier":
        ours, other = module.logits(video).square().mean(), model(theirs(video)).logits.square().mean()
    else:
        ours, other = module(video).tokens.square().mean(), model(theirs(video)).last_hidden_state.square().mean()
    assert_close(ours, other, "loss")
    ours.backward()
    other.backward()
    assert_same_gradients(neutral, model)


@pytest.mark.parametrize("kind", ["pretraining", "classifier", "encoder"])
@pytest.mark.parametrize("names", [4, 5])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_there_and_back_is_equal_tensor_for_tensor(tmp_path, kind, names, file):
    """Folders of transformers 4.x and 5.x, in either kind of file: read, and written with the names of 4.x."""
    make(kind, "odd").save_pretrained(tmp_path)
    tensors = {_name_of_5(name): tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    if names == 4:
        tensors = {_name_of_4(name): tensor for name, tensor in tensors.items()}
    (tmp_path / "model.safetensors").unlink()
    if file == "model.safetensors":
        save_file(tensors, tmp_path / file)
    else:
        torch.save(tensors, tmp_path / file)
    neutral = read(tmp_path)
    back = spread(neutral, lambda name: rename(neutral.kind, name))
    assert back.keys() == {_name_of_4(name) for name in tensors}
    assert all(torch.equal(back[_name_of_4(name)], tensor) for name, tensor in tensors.items())


def _name_of_4(name: str) -> str:
    name = name.replace("attention.attention.query.bias", "attention.attention.q_bias")
    return name.replace("attention.attention.value.bias", "attention.attention.v_bias")


def test_the_difference_is_said_with_their_epsilons_and_with_equal_ones(tmp_path):
    """A Hub configuration has 1e-12 in its blocks, and the code 1e-5 in the decoder's norm."""
    make("pretraining", "odd", layer_norm_eps=1e-12).save_pretrained(tmp_path / "hf")
    done = convert(tmp_path / "hf", tmp_path / "ours", "tubelet")
    assert any("layer_norm_eps 1e-12" in note for note in done.notes)
    begun = ["read back: all", "largest difference from transformers", "with the epsilons that transformers uses"]
    assert all(line.startswith(start) for line, start in zip(done.proof, begun, strict=True))
    assert load_backbone(tmp_path / "ours").dim == 40


def test_a_folder_that_answers_otherwise_is_not_converted(tmp_path):
    """A wrong number of heads runs in silence: only the comparison tells."""
    make("classifier", "odd").save_pretrained(tmp_path / "hf")
    neutral = read(tmp_path / "hf", Options(heads=4))
    with pytest.raises(TubeletError, match="transformers answers otherwise"):
        compare(neutral, tmp_path / "hf")
