"""t5_pytorch.T5 against Mesh TensorFlow's numbers, against transformers, and against itself."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_t5 import GOLDEN_SIZE, ODD_SIZE, VERSIONS, close, near, odd_batch, small_model

import loss
import t5_pytorch
from fast import t5 as fast_t5
from formats.errors import BadInput
from t5_pytorch import (
    T5,
    T5_CONFIGS,
    Attention,
    SequenceDropout,
    load_t5_pretrained_model,
    relative_position_bucket,
    shift_right,
)


@pytest.fixture(scope="module", params=VERSIONS)
def case(request, golden):
    """The original's numbers and a T5 with its weights, in evaluation mode."""
    folder = golden / "t5" / request.param
    model = T5(**GOLDEN_SIZE, **VERSIONS[request.param]).eval()
    load_t5_pretrained_model(model, str(folder / "checkpoint"))
    with np.load(folder / "golden.npz", allow_pickle=False) as file:
        numbers = {key: torch.from_numpy(file[key]) for key in file.files}
    numbers["src"], numbers["tgt"] = numbers["inputs"].long(), numbers["targets"].long()
    return numbers, model


def test_buckets_are_the_originals(golden):
    with np.load(golden / "t5" / "relative_position_bucket.npz") as file:
        positions = torch.from_numpy(file["relative_position"])
        for key, bidirectional in (("bidirectional", True), ("unidirectional", False)):
            expected = torch.from_numpy(file[key])
            assert torch.equal(relative_position_bucket(positions, bidirectional).int(), expected)


def test_bias_is_the_bucket_of_memory_minus_query():
    torch.manual_seed(0)
    for is_decoder in (False, True):
        model = small_model()
        attention = (model.decoder if is_decoder else model.encoder).block[0].layer[0].SelfAttention
        table = attention.relative_attention_bias.weight
        for length in (7, 150):
            relative = torch.arange(length)[None] - torch.arange(length)[:, None]
            expected = table[relative_position_bucket(relative, not is_decoder)].permute(2, 0, 1)[None]
            assert torch.equal(attention.compute_bias(length, bidirectional=not is_decoder), expected)
            for queries in (1, 4, length):
                bias = fast_t5.relative_bias(table, queries, length, bidirectional=not is_decoder)
                assert torch.equal(bias, expected[:, :, -queries:])


def test_every_layers_stream_is_the_originals(case):
    numbers, model = case
    mask, tgt_mask = numbers["src"] != 0, numbers["tgt"] != 0
    for stack, prefix, keep in ((model.encoder, "enc_layer", mask), (model.decoder, "dec_layer", tgt_mask)):
        seen = []
        layers = [layer for block in stack.block for layer in block.layer]
        hooks = [layers[0].register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))]
        hooks += [layer.register_forward_hook(lambda module, args, y, seen=seen: seen.append(y))
                  for layer in layers[:-1]]
        hooks.append(stack.final_layer_norm.register_forward_hook(lambda m, a, y, seen=seen: seen.append(y)))
        with torch.no_grad():
            model(numbers["src"], shift_right(numbers["tgt"]), mask, tgt_mask)
        for hook in hooks:
            hook.remove()
        assert len(seen) == sum(key.startswith(prefix) for key in numbers)
        for i, stream in enumerate(seen):
            assert near(stream[keep], numbers[f"{prefix}/{i:02d}"][keep], 1e-5), (prefix, i)


@pytest.mark.parametrize("path", ["plain", "fast"])
def test_encoder_and_logits_are_the_originals_with_zeros_at_padding(case, path):
    numbers, model = case
    assert torch.equal(shift_right(numbers["tgt"]), numbers["decoder_inputs"].long())
    mask, tgt_mask = numbers["src"] != 0, numbers["tgt"] != 0
    with torch.no_grad():
        if path == "plain":
            memory = model.encode(numbers["src"], mask)
            logits = model(numbers["src"], numbers["decoder_inputs"], mask, tgt_mask)
        else:
            memory = fast_t5.encode(model, numbers["src"], mask)
            hidden = fast_t5.hidden_states(model, numbers["src"], numbers["decoder_inputs"], mask, tgt_mask)
            logits = hidden @ model.logits_weight().T
    assert near(memory, numbers["encoder_output"], 1e-5)
    assert near(logits, numbers["logits"], 2e-5)
    assert memory[~mask].abs().max() == 0 and logits[~tgt_mask].abs().max() == 0


def test_token_losses_are_the_originals(case):
    numbers, model = case
    tgt_mask = numbers["tgt"] != 0
    with torch.no_grad():
        logits = model(numbers["src"], shift_right(numbers["tgt"]), numbers["src"] != 0, tgt_mask)
    losses = loss.token_losses(logits, numbers["tgt"]) * tgt_mask
    assert near(losses, numbers["token_loss_eval"], 1e-5)
    assert near(losses.mean(), numbers["loss_eval"], 1e-5)
    assert near(loss.token_losses(logits, numbers["tgt"], 1e-4) * tgt_mask, numbers["token_loss_train"], 1e-5)


@pytest.mark.parametrize("path", ["plain", "fast"])
@pytest.mark.parametrize("loss_key, grad_key, z_loss",
                         [("loss_mean_nonpad", "grad/", 0.0), ("loss_train", "grad_train/", 1e-4)])
def test_losses_and_gradients_are_the_originals(case, path, loss_key, grad_key, z_loss):
    numbers, model = case
    src, tgt = numbers["src"], numbers["tgt"]
    model.zero_grad()
    if path == "plain":
        value = loss.t5_loss(model(src, shift_right(tgt), src != 0, tgt != 0), tgt, z_loss)
    else:
        value = fast_t5.training_loss(model, src, tgt, z_loss)
    if z_loss == 0:  # training counts the padding
        value = value * tgt.numel() / (tgt != 0).sum()
    value.backward()
    assert near(value.detach(), numbers[loss_key], 1e-5)
    rms_norm = any("rms_norm" in key for key in numbers)
    for name, parameter in model.named_parameters():
        original, _ = t5_pytorch.checkpoint_names(name, rms_norm)
        expected = numbers[grad_key + original]
        gradient = parameter.grad if expected.dim() < 2 or name == "shared.weight" else parameter.grad.t()
        assert close(gradient, expected, 1e-4 * expected.abs().max().item() + 1e-6), name
    model.zero_grad()


@pytest.mark.parametrize("version", VERSIONS)
def test_agrees_with_transformers(version, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    gated = version == "t5_v1_1"
    config = transformers.T5Config(
        vocab_size=53, d_model=20, d_kv=7, d_ff=29, num_layers=2, num_decoder_layers=3, num_heads=3,
        feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=not gated)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    if gated:  # transformers 5 unties the logits only while reading a file that has them
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(53, 20))
    save_file(dict(theirs.named_parameters()), tmp_path / "model.safetensors")
    ours = small_model(**VERSIONS[version])
    load_t5_pretrained_model(ours, str(tmp_path))
    src, tgt = odd_batch()
    mask, tgt_mask = src != 0, tgt != 0
    inputs = shift_right(tgt)
    logits = ours(src, inputs, mask, tgt_mask)
    expected = theirs(input_ids=src, attention_mask=mask, decoder_input_ids=inputs,
                      decoder_attention_mask=tgt_mask).logits
    assert near(logits[tgt_mask], expected[tgt_mask], 1e-5)
    F.cross_entropy(logits[tgt_mask], tgt[tgt_mask]).backward()
    F.cross_entropy(expected[tgt_mask], tgt[tgt_mask]).backward()
    hub = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = hub[t5_pytorch.checkpoint_names(name)[1]].grad
        assert close(parameter.grad, gradient, 1e-4 * gradient.abs().max().item() + 1e-6), name


def test_the_seeds_snippet():
    torch.manual_seed(0)
    model = T5(
        dim = 768,              # noqa: E251
        enc_num_tokens = 512,   # noqa: E251
        enc_depth = 6,          # noqa: E251
        enc_heads = 12,         # noqa: E251
        enc_dim_head = 64,      # noqa: E251
        enc_mlp_mult = 4,       # noqa: E251
        dec_num_tokens = 512,   # noqa: E251
        dec_depth = 6,          # noqa: E251
        dec_heads = 12,         # noqa: E251
        dec_dim_head = 64,      # noqa: E251
        dec_mlp_mult = 4,       # noqa: E251
        dropout = 0.,           # noqa: E251
        tie_token_emb = True,   # noqa: E251
    )
    src = torch.randint(0, 512, (1, 1024))
    src_mask = torch.ones_like(src).bool()
    tgt = torch.randint(0, 512, (1, 1024))
    with torch.no_grad():
        loss = model(src, tgt, mask = src_mask)  # noqa: E251
    assert loss.shape == torch.Size([1, 1024, 512])
    assert loss.isfinite().all() and loss.std() > 0.1
    assert model.decoder.block[0].layer[2].DenseReluDense.wi.weight.shape == (3072, 768)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("b, s, t", [(3, 11, 7), (4, 5, 9), (6, 6, 6), (1, 2, 1)])
def test_padded_source_positions_influence_nothing(version, b, s, t):
    model = small_model(**VERSIONS[version])
    src, tgt = odd_batch(b=b, s=max(s, 2 * b), t=max(t, b))
    src, tgt, mask = src[:, :s], tgt[:, :t], torch.ones(b, s, dtype=torch.bool)
    mask[:, s // 2 + 1:] = False
    mask[0] = True
    with torch.no_grad():
        logits = model(src, tgt, mask=mask)
        changed = model(torch.where(mask, src, 52 - src.clamp(max=50)), tgt, mask=mask)
        assert torch.equal(logits, changed)
        for row in range(b):  # and each row is what it is alone, without padding and without a mask
            alone = model(src[row:row + 1, mask[row]], tgt[row:row + 1])
            assert close(logits[row], alone[0], 2e-5)
        assert not close(logits[-1], model(src, tgt)[-1], 1e-3) or s < 4


def test_a_mask_may_have_holes_and_be_of_integers():
    model = small_model()
    src, tgt = odd_batch()
    mask = torch.rand(src.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    with torch.no_grad():
        logits = model(src, tgt, mask)
        assert torch.equal(logits, model(src, tgt, mask.long()))
        assert torch.equal(logits, model(src, tgt, mask.float()))
        assert torch.equal(logits, model(src.masked_fill(~mask, 9), tgt, mask))


def test_a_source_without_a_position_depends_on_no_other():
    model = small_model()
    src, tgt = odd_batch()
    mask = torch.ones_like(src, dtype=torch.bool)
    mask[1] = False
    other = src.clone()
    other[0] = 52 - src[0].clamp(max=50)
    with torch.no_grad():
        logits, changed = (model(s, tgt, mask) for s in (src, other))
        assert torch.equal(logits[1:], changed[1:]) and not torch.equal(logits[0], changed[0])
        assert model(src, tgt, torch.zeros_like(mask)).isfinite().all()


def test_a_target_mask_hides_target_positions():
    model = small_model()
    src, tgt = odd_batch()
    tgt_mask = torch.ones_like(tgt, dtype=torch.bool)
    tgt_mask[1, 2] = tgt_mask[2, 0] = False
    with torch.no_grad():
        logits = model(src, tgt, None, tgt_mask)
        changed = model(src, tgt.masked_fill(~tgt_mask, 9), None, tgt_mask)
        assert torch.equal(logits, changed)
        assert logits[~tgt_mask].abs().max() == 0
        assert not close(logits[1, 3:], model(src, tgt)[1, 3:], 1e-3)


def test_later_target_tokens_influence_no_earlier_logits():
    model = small_model()
    src, tgt = odd_batch()
    with torch.no_grad():
        logits = model(src, tgt, src != 0)
        for i in range(1, tgt.shape[1]):
            changed = tgt.clone()
            changed[:, i:] = (changed[:, i:] + 5) % 53
            other = model(src, changed, src != 0)
            assert close(logits[:, :i], other[:, :i], 1e-6)
            assert not close(logits[:, i], other[:, i], 1e-3)


def test_vocabularies_may_differ_only_when_untied():
    with pytest.raises(BadInput, match="enc_num_tokens is 53 and dec_num_tokens 61"):
        T5(**{**ODD_SIZE, "dec_num_tokens": 61})
    model = small_model(dec_num_tokens=61, tie_token_emb=False)
    src, tgt = odd_batch()
    assert model(src, tgt + 8).shape == (3, 7, 61)
    model = small_model(dec_num_tokens=61, tie_token_emb=False, tie_logits=False)
    logits = model(src, tgt + 8)
    assert logits.shape == (3, 7, 61)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_encoder_and_decoder_may_have_different_shapes():
    model = T5(dim=20, enc_num_tokens=53, dec_num_tokens=53, enc_depth=1, dec_depth=2, enc_heads=3, dec_heads=5,
               enc_dim_head=7, dec_dim_head=4, enc_mlp_mult=2, dec_mlp_mult=3)
    src, tgt = odd_batch()
    assert model(src, tgt, src != 0).shape == (3, 7, 53)
    assert model.encoder.block[0].layer[1].DenseReluDense.wo.weight.shape == (20, 40)
    assert model.decoder.block[1].layer[2].DenseReluDense.wo.weight.shape == (20, 60)


def test_unusable_arguments_are_named():
    src, tgt = odd_batch()
    with pytest.raises(BadInput, match="feed_forward is 'swiglu', expected one of relu, gated-gelu"):
        T5(**ODD_SIZE, feed_forward="swiglu")
    with pytest.raises(BadInput, match="dropout is 1.0"):
        T5(**ODD_SIZE, dropout=1.0)
    with pytest.raises(BadInput, match=r"source has the shape \[3, 7\], expected \[batch, length\] = \[3, 11\]"):
        small_model()(src, tgt, mask=tgt != 0)
    with pytest.raises(BadInput, match=r"target has the shape \[3, 11\], expected"):
        small_model()(src, tgt, tgt_mask=src != 0)


@pytest.mark.parametrize("name, millions", [
    ("small", 60.5), ("base", 222.9), ("large", 737.7), ("3b", 2851.6), ("11b", 11307.3),
    ("v1_1-small", 77.0), ("v1_1-base", 247.6), ("v1_1-large", 783.2), ("v1_1-xl", 2849.8), ("v1_1-xxl", 11135.3)])
def test_released_sizes_have_the_published_counts(name, millions):
    with torch.device("meta"):
        model = T5(**T5_CONFIGS[name])
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 1) == millions
    assert (name.startswith("v1_1") and not model.tie_logits) or model.tie_logits


def test_every_released_size_is_tested():
    counted = test_released_sizes_have_the_published_counts.pytestmark[0].args[1]
    assert {name for name, _ in counted} == set(T5_CONFIGS)


def test_dropout_has_one_mask_for_all_positions():
    torch.manual_seed(0)
    layer = SequenceDropout(0.4)
    y = layer(torch.ones(5, 7, 301))
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert not torch.equal(y[0], y[1])
    assert set(y.unique().tolist()) == {0.0, y.max().item()} and math.isclose(y.max(), 1 / 0.6, rel_tol=1e-6)
    assert abs((y[:, 0] == 0).float().mean() - 0.4) < 0.05
    assert layer.eval()(y) is y


def test_attention_dropout_has_one_mask_for_all_queries():
    torch.manual_seed(0)
    attention = Attention(20, heads=3, dim_head=7, dropout=0.4).train()
    x, memory, bias = torch.randn(2, 5, 20), torch.randn(2, 6, 20), torch.randn(1, 3, 5, 6)
    torch.manual_seed(1)
    y = attention(x, memory, bias)
    k, v = fast_t5.keys_values(attention, memory)
    torch.manual_seed(1)
    fast = fast_t5.attention(attention, attention.q(x), k, v, bias)
    torch.manual_seed(1)
    noise = F.dropout(torch.ones(2, 3, 6, 1), 0.4)[..., 0]
    weights = (torch.einsum("bthk,bhjk->bhtj", attention.q(x).view(2, 5, 3, 7), k) + bias).softmax(-1)
    expected = torch.einsum("bhtj,bhjk->bthk", weights * noise[:, :, None], v).reshape(2, 5, 21)
    assert 0 < (noise == 0).sum() < noise.numel()
    assert near(y, attention.o(expected), 1e-5) and near(fast, attention.o(expected), 1e-5)


def test_dropouts_stand_where_the_originals_do():
    model = small_model(dropout=0.3, enc_depth=1, dec_depth=1).train()
    places = []
    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        if isinstance(module, SequenceDropout):
            assert module.p == 0.3
            module.register_forward_hook(lambda m, args, y: places.append((names[m], args[0].shape[-1])))
    src, tgt = odd_batch()
    model(src, tgt, src != 0)
    layer = "{}.block.0.layer.{}.dropout".format
    inner = "{}.block.0.layer.{}.DenseReluDense.dropout".format
    weights = "{}.block.0.layer.{}.{}.dropout".format
    assert places == [
        ("encoder.dropout", 20), (weights("encoder", 0, "SelfAttention"), 11), (layer("encoder", 0), 20),
        (inner("encoder", 1), 29), (layer("encoder", 1), 20), ("encoder.dropout", 20),
        ("decoder.dropout", 20), (weights("decoder", 0, "SelfAttention"), 7), (layer("decoder", 0), 20),
        (weights("decoder", 1, "EncDecAttention"), 11), (layer("decoder", 1), 20), (inner("decoder", 2), 29),
        (layer("decoder", 2), 20), ("decoder.dropout", 20)]


@pytest.mark.parametrize("version", VERSIONS)
def test_initial_weights_are_distributed_as_the_originals(version):
    torch.manual_seed(0)
    model = T5(dim=128, enc_num_tokens=999, enc_depth=2, enc_heads=8, enc_dim_head=32, dec_num_tokens=999,
               dec_depth=2, dec_heads=8, dec_dim_head=32, d_ff=256, **VERSIONS[version])
    cut = 0.8796  # the standard deviation that remains of a normal distribution cut at 2
    expected = {"embedding": (1, 9), "q": (0.01563, 9), "k": (0.08839, 9), "v": (0.08839, 9), "o": (0.0625, 9),
                "wi": (cut * 0.08839, 0.17678), "wi_0": (cut * 0.08839, 0.17678), "wi_1": (cut * 0.08839, 0.17678),
                "logits": (cut * 0.08839, 0.17678), "wo": (cut * 0.0625, 0.125)}
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2]
        if name.endswith("scale"):
            assert (parameter == 1).all()
        elif kind == "relative_attention_bias":
            limit = (6 / (8 + 32)) ** 0.5
            assert 0.9 * limit < parameter.abs().max() <= limit and abs(parameter.std() - 0.2236) < 0.03
        else:
            std, largest = expected["embedding" if kind in ("shared", "embedding") else kind]
            assert abs(parameter.std() / std - 1) < 0.03, name
            assert parameter.abs().max() <= largest * 1.001, name
            if largest < 1:
                assert parameter.abs().max() > largest * 0.99, name


def test_bfloat16_works_and_overflow_in_float16_is_said():
    model = small_model(dropout=0.1)
    src, tgt = odd_batch()
    with torch.no_grad():
        exact = model(src, tgt, src != 0, tgt != 0)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(src, tgt, src != 0, tgt != 0)
        assert rounded.dtype == torch.bfloat16
        assert near(rounded.float(), exact, 0.05)
        for half in (torch.bfloat16, torch.float16):
            assert near(small_model().to(half)(src, tgt, src != 0, tgt != 0).float(), exact, 0.05)
        large = small_model()
        large.encoder.block[1].layer[1].DenseReluDense.wo.weight.mul_(1e6)  # as in the released models
        with torch.autocast("cpu", torch.float16), pytest.raises(BadInput, match="float16.*use bfloat16"):
            large(src, tgt)
        with pytest.raises(BadInput, match="float16.*use bfloat16"):
            large.half()(src, tgt)
    with torch.autocast("cpu", torch.bfloat16):  # training: gradients come back in float32
        model.train()(src, tgt, src != 0, tgt != 0).float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("path", ["plain", "fast"])
def test_batches_of_0_rows_and_sources_of_length_0(path):
    model = small_model()
    src, tgt = odd_batch()
    for s, t in ((src[:0], tgt[:0]), (src[:, :0], tgt), (src, tgt[:, :0])):
        assert model(s, t, s != 0, t != 0).shape == (*t.shape, 53)
        assert model(s, t, (s != 0).float(), (t != 0).float()).isfinite().all()
        if path == "fast" and t.numel():
            assert fast_t5.training_loss(model, s, t).isfinite()
    assert fast_t5.target_log_probs(model, src[:0], tgt).shape == (0, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_gpu_computes_what_the_cpu_does(version):
    model = small_model(**VERSIONS[version])
    src, tgt = odd_batch()
    with torch.no_grad():
        expected = model(src, tgt, src != 0, tgt != 0)
        logits = model.cuda()(src.cuda(), tgt.cuda(), src.cuda() != 0, tgt.cuda() != 0)
    assert close(logits.cpu(), expected, 1e-3)
