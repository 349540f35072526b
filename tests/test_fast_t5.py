"""fast.t5 against the plain text: losses, gradients, scores and tokens, in both precisions, with equal masks."""

import pytest
import torch
import torch.nn.functional as F
from dropout_masks import t5_noise_read, t5_noise_written_down
from small_t5 import VERSIONS, close, near, odd_batch, small_model

import loss
import t5_decoding
from fast import known
from fast import t5 as fast_t5
from t5_pytorch import RMSNorm, shift_right


@pytest.fixture(autouse=True)
def only_known_models(monkeypatch):
    """Fail where the plain text takes a fast function's place: it would be compared with itself."""
    monkeypatch.setattr(known, "warn_once", pytest.fail)


def plain_loss(model, src, tgt, z_loss, label_smoothing=0.0):
    return loss.t5_loss(model(src, shift_right(tgt), src != 0, tgt != 0), tgt, z_loss, label_smoothing)


def loss_and_gradients(model, function, precision):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        value = function()
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("precision, limit", [("fp32", 1e-5), ("bf16", 8e-2)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("version", VERSIONS)
def test_loss_and_gradients_are_the_plain_text_s(monkeypatch, version, dropout, precision, limit):
    model = small_model(dropout=dropout, **VERSIONS[version]).train()
    src, tgt = odd_batch()
    with t5_noise_written_down(monkeypatch) as noises:
        ours = loss_and_gradients(model, lambda: fast_t5.training_loss(model, src, tgt, 1e-2), precision)
    assert len(noises) == ((1 + 2 * 4 + 1) + (1 + 3 * 6 + 1) if dropout else 0)  # of the encoder and the decoder
    with t5_noise_read(monkeypatch, noises):
        plain = loss_and_gradients(model, lambda: plain_loss(model, src, tgt, 1e-2), precision)
    assert near(ours[0], plain[0], limit)
    difference, size = (sum(g.square().sum().item() for g in gradients) ** 0.5 for gradients in (
        [ours[1][name] - want for name, want in plain[1].items()], plain[1].values()))
    assert difference <= limit * size
    if precision == "fp32":  # bfloat16 leaves too little of single small entries
        for name, want in plain[1].items():
            assert close(ours[1][name], want, limit * max(want.abs().max().item(), 0.01 * size)), name


@pytest.mark.parametrize("precision, limit", [("fp32", 1e-5), ("bf16", 4e-2)])
@pytest.mark.parametrize("version", VERSIONS)
def test_smoothed_loss_and_gradients_are_the_plain_text_s(version, precision, limit):
    model = small_model(**VERSIONS[version]).train()
    src, tgt = odd_batch()
    ours, plain = (loss_and_gradients(model, lambda f=f: f(model, src, tgt, 1e-2, label_smoothing=0.2), precision)
                   for f in (fast_t5.training_loss, plain_loss))
    assert near(ours[0], plain[0], limit)
    difference, size = (sum(g.square().sum().item() for g in gradients) ** 0.5 for gradients in (
        [ours[1][name] - want for name, want in plain[1].items()], plain[1].values()))
    assert difference <= limit * size
    logits = model(src, shift_right(tgt), src != 0, tgt != 0)
    want = F.cross_entropy(logits[tgt != 0], tgt[tgt != 0], label_smoothing=0.2, reduction="sum") / tgt.numel()
    assert near(plain_loss(model, src, tgt, 0.0, 0.2), want, 1e-5)
    assert near(fast_t5.training_loss(model, src, tgt, label_smoothing=0.2), want, 1e-5)
    assert (want - plain_loss(model, src, tgt, 0.0)).abs() > 0.003 * want


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("z_loss, smoothing", [(0.0, 0.0), (1e-2, 0.0), (1e-2, 0.1)])
def test_targets_that_are_ignored_count_as_padding(inside, z_loss, smoothing):
    model = small_model(**VERSIONS["t5_v1_1"]).train()
    src, tgt = odd_batch()
    labels = tgt.masked_fill(tgt == 0, loss.IGNORED)  # as collators of other libraries pad
    if inside:
        labels[0, 2] = labels[1, 0] = loss.IGNORED    # not only at the end
    ours, plain = (loss_and_gradients(model, lambda f=f: f(model, src, labels, z_loss, label_smoothing=smoothing),
                                      "fp32") for f in (fast_t5.training_loss, plain_loss))
    assert near(ours[0], plain[0], 1e-5)
    for name, want in plain[1].items():
        assert near(ours[1][name], want, 1e-4), name
    if not inside:
        want = loss_and_gradients(model, lambda: plain_loss(model, src, tgt, z_loss, smoothing), "fp32")
        assert near(ours[0], want[0], 1e-5)
        assert all(near(ours[1][name], g, 1e-4) for name, g in want[1].items())
    elif not z_loss:
        logits = model(src, shift_right(labels), src != 0)
        assert near(ours[0], F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / tgt.numel(),
                    1e-5)
    with torch.no_grad():
        want = loss.target_log_probs(model(src, shift_right(labels), src != 0), labels)
        assert near(torch.stack([fast_t5.target_log_probs(model, src[i, None], labels[i, None])[0, 0]
                                 for i in range(3)]), want, 1e-5)


def test_shift_right_reads_an_ignored_label_as_padding():
    assert shift_right(torch.tensor([[5, 6, 1, -100, -100], [-100, 7, -100, 8, 1]])).tolist() == \
        [[0, 5, 6, 1, 0], [0, 0, 7, 0, 8]]
    assert shift_right(torch.tensor([[5, 6, 1, 0, 0]])).tolist() == [[0, 5, 6, 0, 0]]


def test_no_row_and_no_target_have_loss_0():
    model = small_model()
    src, tgt = odd_batch()
    for rows, columns in ((0, 7), (3, 0), (3, 7)):
        part = src[:rows], tgt[:rows, :columns] * 0  # all of it is padding
        for function in (fast_t5.training_loss, plain_loss):
            value, gradients = loss_and_gradients(model, lambda f=function, p=part: f(model, *p, 1e-2), "fp32")
            assert value == 0 and not any(g.any() for g in gradients.values())
        assert fast_t5.target_log_probs(model, src[:rows], tgt[:2, :columns]).shape == (rows, 2)


def test_the_default_device_changes_nothing():
    model, (src, tgt) = small_model(), odd_batch()
    for function in (fast_t5.training_loss, lambda *a: plain_loss(*a, 0.0)):
        want = function(model, src, tgt).item()
        with torch.device("meta"):  # as "cuda" would be where the model is on the CPU
            assert function(model, src, tgt).item() == want


@pytest.mark.parametrize("part, name, value", [
    ("encoder.block.0.layer.0.SelfAttention", "max_distance", 20), ("encoder.final_layer_norm", "epsilon", 0.5),
    ("decoder.block.1.layer.1.layer_norm", "epsilon", 5.0), ("", "scale_logits", False)])
def test_a_setting_changed_afterwards_is_followed(part, name, value):
    model, (src, tgt) = small_model(), odd_batch(s=70)
    usual = plain_loss(model, src, tgt, 0.0)
    setattr(model.get_submodule(part), name, value)
    want = plain_loss(model, src, tgt, 0.0)
    assert near(fast_t5.training_loss(model, src, tgt), want, 1e-6) and (want - usual).abs() > 2e-5 * usual


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-6), (torch.bfloat16, 2 ** -7)])
@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-3, 1.0, 1e4])
def test_the_norm_without_gradients_is_the_plain_text_s(dtype, limit, size):
    norm = RMSNorm(37, epsilon=1e-5).to(dtype)
    torch.nn.init.normal_(norm.scale)
    x = (size * torch.randn(3, 5, 37)).to(dtype)
    with torch.no_grad(), torch.device("meta"):  # where a tensor of its own must not go
        found, wanted = fast_t5.norm(norm, x), norm(x)
    assert found.dtype == wanted.dtype == dtype and found.shape == x.shape
    assert (found - wanted).abs().max() <= limit * wanted.abs().max()
    assert size == 0 or found.any()


def test_the_encoder_s_output_is_0_at_padding():
    model, (src, _) = small_model(), odd_batch()
    with torch.no_grad():
        hidden = fast_t5.encode(model, src, src != 0)
        assert near(hidden, model.encode(src, src != 0), 1e-5) and not hidden[src == 0].any()


def test_a_batch_without_padding_needs_no_mask():
    model = small_model()
    src, tgt = (torch.randint(2, 53, (3, n)) for n in (11, 7))
    assert near(fast_t5.training_loss(model, src, tgt, 1e-2, padded=False), plain_loss(model, src, tgt, 1e-2), 1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_target_log_probs_are_the_plain_text_s(version):
    model = small_model(**VERSIONS[version])
    src, _ = odd_batch()
    candidates = torch.tensor([[5, 6, 1], [7, 1, 0]])
    with torch.no_grad():
        got = fast_t5.target_log_probs(model, src, candidates)
        for row, source in enumerate(src):
            for column, target in enumerate(candidates):
                target = target[target != 0][None]
                log_p = model(source[None, source != 0], shift_right(target)).log_softmax(-1)
                assert near(got[row, column], log_p.gather(2, target[..., None]).sum(), 1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_packed_batch_has_the_gradients_of_its_rows_alone(version):
    model = small_model(**VERSIONS[version])
    src, tgt = odd_batch()

    def gradients(rows):
        model.zero_grad()
        for s, t, mask, tgt_mask in rows:
            hidden = fast_t5.hidden_states(model, s, shift_right(t), mask, tgt_mask)
            logits = F.linear(hidden, model.logits_weight())
            F.cross_entropy(logits[t != 0], t[t != 0], reduction="sum").backward()
        return [p.grad.clone() for p in model.parameters()]

    packed = gradients([(src, tgt, src != 0, tgt != 0)])
    alone = gradients([(s[None, s != 0], t[None, t != 0], None, None) for s, t in zip(src, tgt, strict=True)])
    for a, b in zip(packed, alone, strict=True):
        assert near(a, b, 1e-5)



@pytest.mark.parametrize("version", VERSIONS)
def test_weights_in_bfloat16_train(version):
    src, tgt = odd_batch()
    model = small_model(**VERSIONS[version]).train()
    want = loss_and_gradients(model, lambda: fast_t5.training_loss(model, src, tgt), "fp32")
    model.bfloat16()
    got = loss_and_gradients(model, lambda: fast_t5.training_loss(model, src, tgt), "fp32")
    assert near(got[0], want[0], 2e-2)
    norms = [sum(g.float().square().sum() for g in gradients.values()) ** 0.5 for _, gradients in (got, want)]
    assert abs(norms[0] / norms[1] - 1) < 0.1


@pytest.mark.parametrize("change", ["eval", "p"])
def test_a_change_of_mode_before_backward_changes_nothing(change):
    src, tgt = odd_batch()
    gradients = []
    for changed in (False, True):
        model = small_model(dropout=0.3).train()
        torch.manual_seed(3)
        value = fast_t5.training_loss(model, src, tgt)
        if changed and change == "eval":
            model.eval()
        elif changed:
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.9
        value.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_decoded_ids_are_the_plain_text_s(version, masked):
    model = small_model(**VERSIONS[version])
    src, _ = odd_batch()
    mask = src != 0 if masked else None
    draws = [dict(), dict(temperature=0.8), dict(temperature=1.0, top_k=5), dict(temperature=1.0, top_p=0.7)]
    runs = []
    for decoding in (fast_t5, t5_decoding):
        ids = [decoding.generate(model, src, mask, 19, generator=torch.Generator().manual_seed(4), **d) for d in draws]
        runs.append(ids + [decoding.beam_search(model, src, mask, 19, beams=n) for n in (1, 2, 3)])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
    assert len({tuple(ids.flatten().tolist()) for ids in runs[0]}) > 3  # they are not all the same text
