import pytest
import torch

from tubelet.nn.transformer import Attention, Block, DropPath, attention


def slow_attention(query, key, value):
    out = torch.zeros_like(value)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            scores = query[b, h] @ key[b, h].T / query.shape[-1] ** 0.5
            out[b, h] = torch.exp(scores) / torch.exp(scores).sum(dim=1, keepdim=True) @ value[b, h]
    return out


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_every_kernel_equals_the_slow_twin(gradient, dtype, tolerance):
    torch.manual_seed(0)
    qkv = [torch.randn(2, 3, 10, 8) for _ in range(3)]
    with torch.set_grad_enabled(gradient):
        fast = attention(*(x.to(dtype) for x in qkv))
    torch.testing.assert_close(fast.float(), slow_attention(*qkv), atol=tolerance, rtol=tolerance)


def test_there_is_no_key_bias():
    names = dict(Attention(16, 4).named_parameters())
    assert set(names) == {"qkv.weight", "query_bias", "value_bias", "out.weight", "out.bias"}


def test_attention_against_pytorch():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    torch.nn.init.normal_(ours.query_bias)
    torch.nn.init.normal_(ours.value_bias)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(torch.cat([ours.query_bias, torch.zeros(16), ours.value_bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    tokens = torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens)[0], atol=1e-5, rtol=1e-4)


def test_drop_path_keeps_the_mean_and_does_nothing_in_evaluation():
    torch.manual_seed(0)
    drop, branch = DropPath(0.25), torch.ones(8000, 2, 3)
    dropped = drop(branch)
    assert dropped[:, 0, 0].unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.03)
    assert drop.eval()(branch) is branch


def test_a_block_adds_to_its_input():
    block = Block(16, 4)
    torch.nn.init.zeros_(block.attention.out.weight)
    torch.nn.init.zeros_(block.mlp.out.weight)
    torch.nn.init.zeros_(block.attention.out.bias)
    torch.nn.init.zeros_(block.mlp.out.bias)
    tokens = torch.randn(2, 5, 16)
    assert torch.equal(block(tokens), tokens)
