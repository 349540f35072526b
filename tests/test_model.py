"""The GPT model: against the original's numbers, against transformers, and by its properties."""

import numpy as np
import pytest
import torch
from gpt_golden import batch_of, check_golden_gradients, config_of, model_of, no_dropout
from limits import agree
from small_gpt import enlarge, lm_batch, small_lm, small_model, story_batch
from torch._dynamo.testing import CompileCounter

import loss
from model_pytorch import (
    ACT_FNS,
    DEFAULT_CONFIG,
    TASK_HEADS,
    ClfHead,
    Conv1D,
    DoubleHeadModel,
    LayerNorm,
    LMModel,
    TransformerModel,
    dotdict,
    make_task_head,
    tf_name,
)

CASES = ["gpt_gelu", "gpt_relu", "gpt_swish", "gpt_edge"]


@pytest.mark.parametrize("train_mode", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_plain_path_equals_the_original(golden, case, train_mode):
    z = np.load(golden / "gpt" / f"{case}.npz")
    model, c = model_of(z).train(train_mode), config_of(z)
    x, m, y = batch_of(z)
    h = model.transformer(x)
    agree(h, z["h"], 1e-5)
    lm_logits, clf_logits = model(x)
    assert lm_logits.shape == z["lm_logits"].shape
    agree(lm_logits, z["lm_logits"], 1e-5)
    agree(clf_logits, z["clf_logits"], 2e-5)
    total, clf, lm = loss.double_head_loss(lm_logits, clf_logits, x, m, y, c["lm_coef"])
    agree(clf, z["clf_losses"], 1e-5)
    agree(lm, z["lm_losses"], 1e-5)
    agree(total, z["train_loss"], 1e-5)
    total.backward()
    check_golden_gradients(model, z)


def test_later_tokens_do_not_change_earlier_outputs():
    model = enlarge(small_model()).eval()
    x, _, _ = story_batch(3)
    changed = x.clone()
    changed[:, :, 11:, 0] = (changed[:, :, 11:, 0] + 13) % 97
    before, after = model.transformer(x), model.transformer(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert (before[:, 11:] - after[:, 11:]).abs().amax(-1).min() > 1e-4


def test_embedding_dropout_acts_on_the_matrix_once_per_forward():
    model = small_model(embd_pdrop=0.4)
    x, _, _ = story_batch(4)
    seen = []
    model.transformer.embd_dropout.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.transformer.h[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.extend([*inputs, output]))
    model(x)
    keep, h0, h, again, logits = seen
    assert keep is again                                   # the mask of the lookup is the one of the softmax
    matrix = model.transformer.embed.weight * keep
    torch.testing.assert_close(h0, matrix[x.flatten(0, 1)].sum(2))
    torch.testing.assert_close(logits, h[:, :-1].flatten(0, 1) @ matrix.T, rtol=1e-5, atol=1e-6)
    model(x)
    assert not torch.equal(seen[5], keep)                  # and every forward draws anew
    dropped = keep == 0
    assert 0.35 < dropped.float().mean() < 0.45
    assert 0 < dropped.float().mean(1).std() < 0.2         # single entries are dropped, not rows
    torch.testing.assert_close(keep[~dropped], torch.full_like(keep[~dropped], 1 / 0.6))


def test_compiled_blocks_are_whole_and_give_the_same_gradients():
    model = enlarge(small_model()).train()
    x, m, y = story_batch(3)
    parameters = list(model.parameters())

    def gradients():
        return torch.autograd.grad(loss.double_head_loss(*model(x), x, m, y, 0.5)[0], parameters)

    want = gradients()
    counter = CompileCounter()
    for block in model.transformer.h:
        block.compile(dynamic=True, backend=counter)
    for ours, expected in zip(gradients(), want, strict=True):
        torch.testing.assert_close(ours, expected)
    assert counter.frame_count == 1  # no graph breaks, and one graph serves all blocks


def test_classifier_dropout_is_shared_by_the_choices():
    model = small_model(clf_pdrop=0.5)
    head = model.task_head.train()
    with torch.no_grad():
        head.linear.weight.copy_(2.0 ** torch.arange(36).double() / 2.0 ** 36)
    logits = head.classify(torch.ones(50, 3, 36))
    assert torch.equal(logits[:, 0], logits[:, 1]) and torch.equal(logits[:, 0], logits[:, 2])
    assert logits[:, 0].unique().numel() > 40  # examples have masks of their own


def test_attention_and_residual_dropout_are_drawn_for_each_sequence():
    for setting in ("attn_pdrop", "resid_pdrop"):
        model = enlarge(small_model(**{setting: 0.3}))
        x, _, _ = story_batch(6)
        h = model.transformer(torch.cat([x[:1], x[:1]]))
        same = model.eval().transformer(torch.cat([x[:1], x[:1]]))
        assert torch.equal(same[0], same[2])
        assert (h[0, 1:] - h[2, 1:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("name", ACT_FNS)
def test_activations(name):
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    want = {"relu": x.clamp(min=0), "swish": x / (1 + (-x).exp()),
            "gelu": 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x ** 3)))}[name]
    torch.testing.assert_close(ACT_FNS[name](x), want)


def test_initialisation_is_the_original_s():
    torch.manual_seed(1)
    cfg = dotdict(DEFAULT_CONFIG | dict(n_embd=96, n_head=3, n_layer=3))
    model = DoubleHeadModel(cfg, 402, "multiple_choice", vocab=435, n_ctx=32)
    for name, p in model.named_parameters():
        if name.endswith((".g",)):
            assert (p == 1).all(), name
        elif p.ndim == 1:
            assert (p == 0).all(), name
        elif p.numel() > 1000:
            assert abs(p.std() - 0.02) < 0.001 and abs(p.mean()) < 0.001, name
        else:
            assert abs(p.std() - 0.02) < 0.005, name
    assert not torch.equal(model.transformer.h[0].mlp.c_fc.w, model.transformer.h[1].mlp.c_fc.w)


def test_full_size_has_the_released_number_of_parameters():
    with torch.device("meta"):
        model = TransformerModel(DEFAULT_CONFIG)
    assert sum(p.numel() for p in model.parameters()) == 116_534_784


def test_agrees_with_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    theirs = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(
        vocab_size=83, n_positions=29, n_embd=35, n_layer=3, n_head=5)).eval()
    model = enlarge(LMModel(no_dropout(n_embd=35, n_head=5, n_layer=3), vocab=83 + 29, n_ctx=29)).eval()
    weights = model.transformer.state_dict()
    own = {}
    for name, value in theirs.transformer.state_dict().items():
        if name in ("tokens_embed.weight", "positions_embed.weight"):
            rows = weights["embed.weight"]
            own[name] = rows[:83] if name.startswith("tokens") else rows[83:]
        elif name.startswith("h."):
            stem, kind = name.rsplit(".", 1)
            own[name] = weights[f"{stem}.{'b' if kind == 'bias' else 'g' if '.ln_' in stem else 'w'}"]
        else:
            own[name] = value
    theirs.transformer.load_state_dict(own)
    theirs.tie_weights()
    ids = torch.randint(83, (3, 17))
    x = torch.stack([ids, 83 + torch.arange(17).expand(3, 17)], -1)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[..., :83], theirs(ids).logits, atol=2e-5, rtol=1e-5)


def test_lm_model_never_predicts_a_position():
    torch.manual_seed(0)
    model = LMModel(no_dropout(n_embd=12, n_head=2, n_layer=1), vocab=31 + 7, n_ctx=7, return_probs=True)
    x = torch.stack([torch.randint(31, (3, 5)), 31 + torch.arange(5).expand(3, 5)], -1)
    probs = model(x)
    assert (probs[..., 31:] == 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, 5))


def test_lm_loss_equals_plain_cross_entropy():
    torch.manual_seed(0)
    model, x = enlarge(small_lm()), lm_batch()
    want = torch.nn.functional.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:, 0].flatten())
    torch.testing.assert_close(model.loss(x), want)


@pytest.mark.parametrize("kind", [*TASK_HEADS, ("classification", 7)])
def test_every_task_head_learns(kind):
    torch.manual_seed(0)
    cfg = no_dropout(n_embd=24, n_head=2, n_layer=1)
    model = DoubleHeadModel(cfg, 52, kind, vocab=53 + 9, n_ctx=9)
    tokens = torch.randint(50, (3, 2, 9))
    tokens[..., 6] = 52
    x = torch.stack([tokens, 53 + torch.arange(9).expand(3, 2, 9)], -1)
    if isinstance(model.task_head, ClfHead):
        x = x[:, 0]
    lm_logits, logits = model(x)
    shape = {"multiple_choice": (3, 2), "similarity": (3, 1), "inference": (3, 3)}.get(kind, (3, 7))
    assert logits.shape == shape
    assert lm_logits.shape == (x[..., 0].numel() // 9 * 8, 62)
    (logits - torch.arange(logits.numel()).view(shape)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.task_head.parameters())


def test_similarity_ignores_the_order():
    torch.manual_seed(0)
    model = enlarge(DoubleHeadModel(no_dropout(n_embd=24, n_head=2, n_layer=1), 52, "similarity", 62, 9))
    tokens = torch.randint(50, (3, 2, 9))
    tokens[..., 6] = 52
    x = torch.stack([tokens, 53 + torch.arange(9).expand(3, 2, 9)], -1)
    torch.testing.assert_close(model(x)[1], model(x.flip(1))[1])


@pytest.mark.parametrize("wrong, message", [
    (lambda x: x[..., 0], r"x is int64 \[3, 17\], expected int \[..., length, 2\].*start at 97"),
    (lambda x: x.float(), r"float32 \[3, 17, 2\]"),
    (lambda x: x.flip(-1), "position ids from .* expected .* 97 to 119"),   # the two columns confused
    (lambda x: x - 1, "position ids from 96 to 112"),                       # tokens + special tokens miscounted
    (lambda x: x + 20, "position ids from 117 to 133"),
    (lambda x: x * torch.tensor([1, 0]), "position ids from 0 to 0")])
def test_ids_that_are_no_pairs_of_token_and_position_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        small_lm()(wrong(lm_batch()))


def test_sequences_of_length_0_and_batches_of_0():
    model = small_lm()
    assert model(lm_batch()[:, :0]).shape == (3, 0, 120) and model(lm_batch()[:0]).shape == (0, 17, 120)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="'tanh'.*relu, swish, gelu"):
        small_model(afn="tanh")
    with pytest.raises(ValueError, match="36.*5"):
        small_model(n_head=5)
    with pytest.raises(ValueError, match="regression"):
        make_task_head("regression", 1, DEFAULT_CONFIG)
    with pytest.raises(ValueError):
        Conv1D(3, 2, 3)
    with pytest.raises(AttributeError, match="n_heads"):
        _ = DEFAULT_CONFIG.n_heads


def test_layer_norm_has_epsilon_inside_the_root():
    x = torch.tensor([[1e-3, -1e-3, 0.0]], dtype=torch.float64)
    norm = LayerNorm(3).double()
    torch.testing.assert_close(norm(x), x / (x.square().mean() + 1e-5).sqrt())


def test_tf_names():
    names = [tf_name(n) for n, _ in small_model().transformer.named_parameters()]
    assert names[:3] == ["model/we:0", "model/h0/attn/c_attn/w:0", "model/h0/attn/c_attn/b:0"]
    assert names[-1] == "model/h1/ln_2/b:0" and len(names) == 25
