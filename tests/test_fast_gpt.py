"""fast.gpt against the original's numbers, and against the plain text: every head, every precision, equal masks."""

import copy

import numpy as np
import pytest
import torch
from dropout_masks import gpt_masks_read, gpt_masks_written_down
from gpt_golden import batch_of, check_golden_gradients, config_of, model_of
from limits import agree
from small_gpt import ALL_DROPOUTS, HEADS, N_LOGITS, batch_for, enlarge, lm_batch, small_lm, small_model, story_batch

import loss
from fast import attention, gpt, known
from fast.dropout import rate
from formats.errors import BadInput

CASES = ["gpt_gelu", "gpt_relu", "gpt_swish", "gpt_edge"]


@pytest.fixture(autouse=True)
def only_known_models(monkeypatch):
    """Fail where the plain text takes a fast function's place: it would be compared with itself."""
    monkeypatch.setattr(known, "warn_once", pytest.fail)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_originals(golden, case):
    z = np.load(golden / "gpt" / f"{case}.npz")
    model, c = model_of(z), config_of(z)
    x, m, y = batch_of(z)
    total, clf = gpt.losses(model, x, m, y, c["lm_coef"])
    agree(clf, z["clf_losses"], 1e-5)
    agree(total, z["train_loss"], 1e-5)
    total.backward()
    check_golden_gradients(model, z)


@pytest.mark.parametrize("case", CASES)
def test_choice_logits_are_the_originals(golden, case):
    z = np.load(golden / "gpt" / f"{case}.npz")
    model = model_of(z).eval()
    x, _, _ = batch_of(z)
    agree(gpt.choice_logits(model, x), z["clf_logits"], 2e-5)


def loss_and_gradients(model, function, precision="fp32"):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        value = function()
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(ours, plain, limit):
    agree(ours[0], plain[0], limit)
    assert ours[1].keys() == plain[1].keys()
    largest = max(g.abs().max() for g in plain[1].values())
    for name, want in plain[1].items():
        assert (ours[1][name] - want).abs().max() <= limit * max(want.abs().max(), 0.05 * largest), name


@pytest.fixture(params=[False, True], ids=["whole", "in pieces"])
def pieces(request, monkeypatch):
    """Attention with dropout whole, and in pieces as of long sequences."""
    if request.param:
        monkeypatch.setattr(attention, "LONG", 2)
        monkeypatch.setattr(attention, "QUERIES", 3)


@pytest.mark.parametrize("precision, limit", [("fp32", 2e-5), ("bf16", 4e-2)])
@pytest.mark.parametrize("dropouts", [{}, ALL_DROPOUTS])
@pytest.mark.parametrize("lm_coef", [0.0, 0.5])
@pytest.mark.parametrize("kind", HEADS, ids=str)
def test_losses_of_every_head_are_the_plain_text_s(monkeypatch, pieces, kind, lm_coef, dropouts, precision, limit):
    model = enlarge(small_model(head=kind, **dropouts), 4)
    x, m, y = batch_for(kind)
    with gpt_masks_written_down(monkeypatch) as masks:
        ours = loss_and_gradients(model, lambda: gpt.losses(model, x, m, y, lm_coef)[0], precision)
    assert len(masks) == (1 + 3 * 2 + 1 if dropouts else 0)  # the embedding, three a layer, the classifier
    with gpt_masks_read(monkeypatch, masks):
        plain = loss_and_gradients(
            model, lambda: loss.double_head_loss(*model(x), x, m, y, lm_coef)[0], precision)
    compare(ours, plain, limit)


@pytest.mark.parametrize("choices", [2, 3])
def test_losses_in_double_precision_are_the_plain_text_s(choices):
    model = enlarge(small_model()).double()
    x, m, y = story_batch(1, choices=choices)
    got, clf = gpt.losses(model, x, m, y, 0.5)
    want, want_clf, _ = loss.double_head_loss(*model(x), x, m.double(), y, 0.5)
    np.testing.assert_allclose(got.item(), want.item(), rtol=1e-6)
    np.testing.assert_allclose(clf.detach(), want_clf.detach(), rtol=1e-6)
    ours, plain = (torch.autograd.grad(value, list(model.parameters())) for value in (got, want))
    largest = max(g.abs().max() for g in plain)
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).abs().max() <= 1e-6 * largest


@pytest.mark.parametrize("precision, limit", [("fp32", 1e-5), ("bf16", 3e-2)])
@pytest.mark.parametrize("kind", HEADS, ids=str)
def test_task_logits_of_every_head_are_the_plain_text_s(kind, precision, limit):
    model = enlarge(small_model(head=kind), 4).eval()
    x, _, _ = batch_for(kind)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        agree(gpt.task_logits(model, x), model(x)[1], limit)
        agree(gpt.task_logits(model, x[:1]), model(x)[1][:1], limit)


def test_choices_that_are_equal_or_lack_the_classify_token():
    model = enlarge(small_model()).eval()
    x, _, _ = story_batch(2)
    x[1, 1] = x[1, 0]                 # the whole sequence is shared
    x[2, :, :, 0][x[2, :, :, 0] == 99] = 5  # no classify token: position 0 is pooled
    with torch.no_grad():
        agree(gpt.choice_logits(model, x), model(x)[1], 1e-5)


def test_task_logits_want_nothing_dropped():
    model = small_model()
    x, _, _ = story_batch(2)
    with pytest.raises(RuntimeError, match="eval"):
        gpt.task_logits(model.train(), x)
    model = small_model(attn_pdrop=0.1).eval()
    model.transformer.h[1].attn.attn_dropout.train()  # kept on at test time
    with pytest.raises(RuntimeError, match="dropout"):
        gpt.choice_logits(model, x)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        agree(gpt.choice_logits(model, x), model(x)[1], 1e-5)


@pytest.mark.parametrize("precision, limit", [("fp32", 2e-5), ("bf16", 4e-2)])
@pytest.mark.parametrize("dropouts", [{}, ALL_DROPOUTS])
def test_lm_loss_is_the_plain_text_s(monkeypatch, pieces, dropouts, precision, limit):
    model, x = enlarge(small_lm(**dropouts), 4), lm_batch()
    with gpt_masks_written_down(monkeypatch) as masks:
        ours = loss_and_gradients(model, lambda: gpt.lm_loss(model, x), precision)
    assert len(masks) == (1 + 3 * 2 if dropouts else 0)
    with gpt_masks_read(monkeypatch, masks):
        plain = loss_and_gradients(model, lambda: model.loss(x), precision)
    compare(ours, plain, limit)
    model.eval()
    with torch.no_grad():
        agree(gpt.lm_word_loss(model, x), loss.word_loss(model(x), x, 97), 1e-5)


def test_a_mask_of_zeros_for_one_choice_adds_nothing():
    model = enlarge(small_model())
    x, m, y = story_batch(1)
    m[1, 0] = 0
    got, _ = gpt.losses(model, x, m, y, 0.5)
    want, _, lm = loss.double_head_loss(*model(x), x, m, y, 0.5)
    assert got.isfinite() and lm[2] == 0
    agree(got, want, 1e-5)
    token_losses = torch.nn.functional.cross_entropy(
        model(x)[0], x.flatten(0, 1)[:, 1:, 0].flatten(), reduction="none").view(10, -1) * m.flatten(0, 1)[:, 1:]
    per_sequence = token_losses.sum(1) / m.flatten(0, 1)[:, 1:].sum(1)
    agree(lm.mean(), per_sequence[[i for i in range(10) if i != 2]].sum() / 10, 1e-5)


@pytest.mark.parametrize("part, name, value", [("attn", "n_head", 2), ("attn", "scale", False), ("ln_1", "e", 0.5),
                                               ("ln_2", "e", 0.5)])
def test_a_setting_changed_afterwards_is_followed(part, name, value):
    model = enlarge(small_model(), 4)
    x, m, y = story_batch(1)
    usual = gpt.losses(model, x, m, y, 0.5)[0].item()
    for block in model.transformer.h:
        setattr(block.get_submodule(part), name, value)
    ours = loss_and_gradients(model, lambda: gpt.losses(model, x, m, y, 0.5)[0])
    compare(ours, loss_and_gradients(model, lambda: loss.double_head_loss(*model(x), x, m, y, 0.5)[0]), 2e-5)
    assert abs(ours[0] - usual) > 1e-4


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("kind", HEADS, ids=str)
def test_a_model_that_lost_blocks_is_followed(kind, left):
    model = enlarge(small_model(head=kind), 4).eval()
    model.transformer.h = model.transformer.h[:left]
    x, m, y = batch_for(kind)
    with torch.no_grad():
        agree(gpt.task_logits(model, x), model(x)[1], 1e-5)
        agree(gpt.losses(model, x, m, y, 0.5)[0], loss.double_head_loss(*model(x), x, m, y, 0.5)[0], 1e-5)


def test_weights_of_tokens_below_one_are_shares_of_their_sum():
    model = enlarge(small_model(), 4)
    x, m, y = story_batch(1)
    m = m * torch.rand(m.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    ours = loss_and_gradients(model, lambda: gpt.losses(model, x, m, y, 0.5)[0])
    compare(ours, loss_and_gradients(model, lambda: loss.double_head_loss(*model(x), x, m, y, 0.5)[0]), 2e-5)
    agree(ours[0], gpt.losses(model, x, m * 1000, y, 0.5)[0], 1e-5)


def test_weights_of_the_terms_that_learn_get_their_gradients():
    model = enlarge(small_model(), 4)
    x, m, y = story_batch(1)
    gradients = []
    for function in (gpt.losses, lambda model, x, *rest: loss.double_head_loss(*model(x), x, *rest)):
        for mask, lm_coef in ((m.clone().requires_grad_(), 0.5), (m, torch.tensor(0.5, requires_grad=True))):
            learned = next(t for t in (mask, lm_coef) if torch.is_tensor(t) and t.requires_grad)
            gradients.append(torch.autograd.grad(function(model, x, mask, y, lm_coef)[0], learned)[0])
    agree(gradients[0], gradients[2], 1e-5)
    agree(gradients[1], gradients[3], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_type_changes_nothing(dtype):
    model, x = small_lm(), lm_batch()
    want = gpt.lm_loss(model, x).item(), gpt.lm_word_loss(model, x).item()
    torch.set_default_dtype(dtype)
    try:
        got = gpt.lm_loss(model, x), gpt.lm_word_loss(model, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(value.dtype == torch.float32 for value in got) and tuple(value.item() for value in got) == want


def test_the_default_device_changes_nothing():
    model, (x, m, y) = enlarge(small_model(**ALL_DROPOUTS)), story_batch(1)
    values = []
    for device in ("cpu", "meta"):  # as "cuda" would be where the model is on the CPU
        torch.manual_seed(0)
        with torch.device(device):
            value = gpt.losses(model, x, m, y, 0.5)[0]
        values.append(value.item())
    assert values[0] == values[1]


def test_losses_take_a_mask_of_integers_or_bool():
    model = small_model()
    x, m, y = story_batch(1)
    want = gpt.losses(model, x, m, y, 0.5)[0]
    for other in (m.long(), m.bool(), m.double()):
        assert torch.equal(gpt.losses(model, x, other, y, 0.5)[0], want)
        agree(loss.double_head_loss(*model(x), x, other, y, 0.5)[0], want, 1e-5)


@pytest.mark.parametrize("pieces", [[4, *[1] * 13], [3, 2, 5, 7], [17]])
def test_a_cache_changes_nothing(pieces):
    model, x = enlarge(small_lm(), 4).eval().transformer, lm_batch()
    with torch.no_grad():
        whole = model(x)
        cache, parts, at = gpt.empty_cache(model, 17), [], 0
        for n in pieces:
            parts.append(gpt.hidden_states(model, x[:, at:at + n], cache=cache)[0])
            at += n
    agree(torch.cat(parts, 1), whole, 1e-5)
    assert [layer.length for layer in cache] == [17, 17]
    with pytest.raises(RuntimeError, match="no_grad"):
        gpt.hidden_states(model, x, cache=gpt.empty_cache(model, 17))


@pytest.mark.parametrize("setting", ["embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop"])
def test_every_dropout_acts_and_asks_its_own_mode(setting):
    model = enlarge(small_model(**{setting: 0.3})).train()
    x, m, y = story_batch(1)

    def value(seed):
        torch.manual_seed(seed)
        return gpt.losses(model, x, m, y, 0.5)[0].item()

    assert value(1) == value(1) != value(2)
    model.eval()
    still = value(1)
    assert still == value(2)
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert len(dropouts) == 1 + 3 * 2 + 1
    for module in dropouts:
        module.train()
    assert value(1) != still
    for module in dropouts:
        module.p = 0.0
    assert value(1) == pytest.approx(still, rel=1e-6)


@pytest.mark.parametrize("change", ["eval", "p"])
def test_what_is_computed_again_takes_the_forward_pass_s_mode_and_rate(change):
    x, m, y = story_batch(1)
    gradients = []
    for changed in (False, True):
        model = enlarge(small_model(**ALL_DROPOUTS)).train()
        torch.manual_seed(3)
        value = gpt.losses(model, x, m, y, 0.5)[0]
        if changed and change == "eval":
            model.eval()
        elif changed:
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.9
        value.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("setting", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_gradient_is_that_of_the_forward_pass_with_its_masks(setting):
    model = enlarge(small_model(**{setting: 0.3})).double().train()
    x, m, y = story_batch(1)
    parameters = [p for p in model.parameters() if p.ndim > 1]
    directions = [torch.randn_like(p) * p.abs().mean() for p in parameters]

    def value():
        torch.manual_seed(8)
        return gpt.losses(model, x, m, y, 0.5)[0]

    def value_at(step):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, u in zip([p for p in moved.parameters() if p.ndim > 1], directions, strict=True):
                p.add_(u, alpha=step)
            torch.manual_seed(8)
            return gpt.losses(moved, x, m, y, 0.5)[0].item()

    gradients = torch.autograd.grad(value(), parameters)
    slope = sum((g * u).sum().item() for g, u in zip(gradients, directions, strict=True))
    numeric = (value_at(1e-3) - value_at(-1e-3)) / 2e-3
    assert abs(numeric - slope) < 1e-2 * abs(slope), (numeric, slope)


def test_the_matrix_of_the_embedding_is_dropped_once_for_lookup_and_softmax(monkeypatch):
    model = small_model(embd_pdrop=0.4)
    x, m, y = story_batch(4)
    seen = []
    look_up, cross_entropy = gpt.look_up, gpt.linear_cross_entropy
    monkeypatch.setattr(gpt, "look_up", lambda *a: seen.append((a[1], *look_up(*a))) or seen[-1][1:])
    monkeypatch.setattr(gpt, "linear_cross_entropy",
                        lambda *a, **k: seen.append(k["keep"]) or cross_entropy(*a, **k))
    gpt.losses(model, x, m, y, 0.5)
    (ids, h, dropped), keep = seen
    assert keep is dropped.keep and rate(model.transformer.embd_dropout) == 0.4
    matrix = model.transformer.embed.weight * keep / 0.6
    torch.testing.assert_close(h, matrix[ids].sum(-2))
    share = (keep == 0).float()
    assert 0.35 < share.mean() < 0.45 and 0 < share.mean(1).std() < 0.2  # single entries, not rows


def test_two_backwards_over_one_graph_are_refused_not_wrong():
    model = small_model()
    x, m, y = story_batch(1)
    value, _ = gpt.losses(model, x, m, y, 0.5)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="plain text"):
        value.backward()
    value, _ = gpt.losses(model, x, m, y, 0.5)
    with pytest.raises(RuntimeError, match="plain text"):
        torch.autograd.grad(value, list(model.parameters()), create_graph=True)


def test_weights_in_bfloat16_train():
    x, m, y = story_batch(1)
    model = enlarge(small_model(), 4)
    want = loss_and_gradients(model, lambda: gpt.losses(model, x, m, y, 0.5)[0])
    model.bfloat16()
    got = loss_and_gradients(model, lambda: gpt.losses(model, x, m, y, 0.5)[0])
    agree(got[0], want[0], 2e-2)
    norms = [sum(g.float().square().sum() for g in gradients.values()) ** 0.5 for _, gradients in (got, want)]
    assert abs(norms[0] / norms[1] - 1) < 0.1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", HEADS, ids=str)
def test_no_example_gives_no_logits_and_a_loss_of_0(kind, training):
    model = small_model(head=kind, **ALL_DROPOUTS).train(training)
    x, m, y = (part[:0] for part in batch_for(kind))
    for total, clf in (gpt.losses(model, x, m, y, 0.5), loss.double_head_loss(*model(x), x, m, y, 0.5)[:2]):
        assert total == 0 and clf.shape == (0,)
        total.backward()
    assert model(x)[1].shape == (0, N_LOGITS[kind])
    if not training:
        assert gpt.task_logits(model, x).shape == model(x)[1].shape
        if kind == "multiple_choice":
            assert gpt.choice_logits(model, x).shape == (0, 2)


@pytest.mark.parametrize("kind", HEADS, ids=str)
def test_texts_of_one_token_teach_the_task_and_nothing_else(kind):
    model = enlarge(small_model(head=kind), 4)
    x, m, y = batch_for(kind)
    x, m = x[..., :1, :].clone(), m[..., :1]
    x[..., 0] = torch.randint(1, 97, x.shape[:-1])
    ours = loss_and_gradients(model, lambda: gpt.losses(model, x, m, y, 0.5)[0])
    compare(ours, loss_and_gradients(model, lambda: loss.double_head_loss(*model(x), x, m, y, 0.5)[0]), 1e-5)
    logits = model(x)[1]
    agree(ours[0], loss.task_losses(logits, y).mean(), 1e-6)
    agree(gpt.task_logits(model.eval(), x), logits, 1e-5)


@pytest.mark.parametrize("part", [np.s_[:, :1], np.s_[:0], np.s_[:, :0]], ids=str)
def test_a_text_that_predicts_nothing_has_loss_0(part):
    model, x = small_lm(), lm_batch()[part]
    for function in (gpt.lm_loss, type(model).loss):
        value, gradients = loss_and_gradients(model, lambda function=function: function(model, x))
        assert value == 0 and not any(g.any() for g in gradients.values())
    model.eval()
    assert gpt.lm_word_loss(model, x) == 0 == loss.word_loss(model(x), x, 97)


@pytest.mark.parametrize("kind", HEADS, ids=str)
def test_examples_without_a_label_are_left_out_of_the_task_s_loss(kind):
    model = enlarge(small_model(head=kind), 4)
    x, m, y = batch_for(kind)
    y[[0, 3]] = loss.IGNORED
    ours = loss_and_gradients(model, lambda: gpt.losses(model, x, m, y, 0)[0])
    compare(ours, loss_and_gradients(model, lambda: loss.double_head_loss(*model(x), x, m, y, 0)[0]), 1e-5)
    logits, rest = model(x)[1], [1, 2, 4]
    want = torch.nn.functional.cross_entropy(logits, y) if logits.size(1) > 1 else \
        torch.nn.functional.binary_cross_entropy_with_logits(logits[rest, 0], y[rest].float())
    agree(ours[0], want, 1e-5)
    _, clf = gpt.losses(model, x, m, y, 0.5)
    assert not clf[[0, 3]].any() and clf[rest].all()
    assert gpt.losses(model, x, m, torch.full_like(y, loss.IGNORED), 0)[0] == 0
    shares = torch.randn(5, N_LOGITS[kind])  # not ids: all of them count
    shares = shares.softmax(1) if N_LOGITS[kind] > 1 else shares.sigmoid()
    agree(gpt.losses(model, x, m, shares, 0)[0], loss.task_losses(logits, shares).mean(), 1e-5)


def test_a_token_s_label_that_is_ignored_is_in_no_mean():
    x, m, _ = story_batch(1)
    x, m = x.flatten(0, 1), m.flatten(0, 1)
    logits = torch.randn(x[:, 1:, 0].numel(), 120)
    labels = x.clone()
    labels[0, 3, 0] = labels[7, 1, 0] = loss.IGNORED
    without = m.clone()
    without[0, 3] = without[7, 1] = 0
    assert m[0, 3] and m[7, 1]
    assert torch.equal(loss.lm_losses(logits, labels, m), loss.lm_losses(logits, x, without))
    assert torch.equal(loss.lm_losses(logits, labels, m.bool()), loss.lm_losses(logits, x, without))


@pytest.mark.parametrize("dropouts", [{}, ALL_DROPOUTS])
@pytest.mark.parametrize("wrong", [-100, 123])
def test_ids_that_are_no_rows_of_the_embedding_are_refused(wrong, dropouts):
    model, lm = small_model(**dropouts), small_lm(**dropouts)
    (x, m, y), text = story_batch(1), lm_batch()
    x[2, 1, 4, 0] = text[1, 3, 0] = wrong
    for function in (lambda: gpt.losses(model, x, m, y, 0.5), lambda: model(x), lambda: lm(text),
                     lambda: gpt.lm_loss(lm, text)):
        with pytest.raises(BadInput, match=f"token ids from .*{wrong}.*expected 0 to"):
            function()
