"""Every task head, its loss and its gradients against a loop written plainly, and what a head refuses."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gpt_golden import no_dropout
from limits import agree
from small_gpt import N_VOCAB, batch_for, enlarge, small_model, story_batch

import fast.gpt
import loss
from formats.errors import BadInput
from model_pytorch import ClfHead, DoubleHeadModel, SimilarityHead

KINDS = ["multiple_choice", "inference", ("classification", 2), ("classification", 7), "similarity", ("similarity", 2),
         ("similarity", 6)]
SCORES = [3.6, 0.0, 5.0, 2.0, 4.25]


def distribution(score):
    """The weights of the six whole scores: a score of 3.6 is 0.4 on 3 and 0.6 on 4."""
    weights = [0.0] * 6
    weights[math.floor(score)] += 1 - (score - math.floor(score))
    weights[math.ceil(score)] += score - math.floor(score)
    return weights


def batch(kind):
    if kind == ("similarity", 6):
        return *story_batch(1)[:2], torch.tensor([distribution(score) for score in SCORES])
    if kind in ("multiple_choice", "similarity"):
        return batch_for(kind)
    x, m, _ = story_batch(1, choices=2 if kind[0] == "similarity" else 1)
    y = torch.arange(len(x)) % (3 if kind == "inference" else kind[1])
    return (x, m, y) if kind[0] == "similarity" else (x[:, 0], m[:, 0], y)


def written_plainly(model, kind, x, m, y, lm_coef):
    """L3 = mean of the examples' L2 + lm_coef * mean of the sequences' L1, one sequence at a time, without padding."""
    x, m = (x, m) if x.dim() == 4 else (x[:, None], m[:, None])
    weight, bias = model.task_head.linear.weight, model.task_head.linear.bias
    task, language = [], []
    for example in range(len(x)):
        states = []
        for sequence in range(x.size(1)):
            length = int(m[example, sequence].sum())
            row = x[example, sequence, :length]
            h = model.transformer(row[None])[0]                             # [t, d]
            tokens = row[:, 0].tolist()
            states.append(h[tokens.index(N_VOCAB + 2)])
            log_p = (h @ model.transformer.embed.weight.T).float().log_softmax(-1)
            language.append(-sum(log_p[i - 1, tokens[i]] for i in range(1, length)) / (length - 1))
        if kind == "multiple_choice":
            logits = torch.stack([(weight[0] * state).sum() + bias[0] for state in states])
        else:
            logits = weight @ sum(states) + bias                            # of a single state, or of both orders
        target = y[example]
        if kind == "similarity":
            p = logits[0].float().sigmoid()
            task.append(-p.log() if target == 1 else -(1 - p).log())
        elif target.dim():
            task.append(-sum(float(w) * value for w, value in zip(target, logits.float().log_softmax(0), strict=True)))
        else:
            task.append(-logits.float().log_softmax(0)[int(target)])
    return sum(task) / len(task) + lm_coef * sum(language) / len(language), torch.stack(task)


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("precision, limit", [("fp32", 3e-5), ("bf16", 5e-2)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_loss_and_gradients_are_those_of_a_plain_loop(kind, precision, limit):
    model = enlarge(small_model(head=kind), 4)
    x, m, y = batch(kind)
    want, want_task = written_plainly(model, kind, x, m, y, 0.5)
    want_gradients = gradients(model, want)
    largest = max(g.abs().max() for g in want_gradients.values())
    for losses in (lambda: loss.double_head_loss(*model(x), x, m, y, 0.5),
                   lambda: fast.gpt.losses(model, x, m, y, 0.5)):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            total, task, *_ = losses()
        agree(total, want, limit)
        agree(task, want_task, limit)
        for name, gradient in gradients(model, total).items():
            assert (gradient - want_gradients[name]).abs().max() <= limit * largest, name


def test_a_pair_s_language_model_loss_counts_both_orders_and_once():
    model = enlarge(small_model(head=("similarity", 2)), 4)
    x, m, y = batch(("similarity", 2))
    without, both = (fast.gpt.losses(model, x, m, y, lm_coef)[0] for lm_coef in (0, 0.5))
    lm = loss.lm_losses(model(x)[0], x.flatten(0, 1), m.flatten(0, 1))
    assert lm.shape == (10,) and lm.unique().numel() == 10
    agree(both - without, 0.5 * lm.mean(), 1e-5)


def test_dropout_of_a_pair_drops_the_sum_and_not_the_states():
    torch.manual_seed(0)
    head = SimilarityHead(5, no_dropout(n_embd=12, clf_pdrop=0.5), 3)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(12)[:3])
    logits = head.train().classify(torch.ones(400, 2, 12))
    assert set(logits.unique().tolist()) == {0.0, 4.0}  # one mask for the sum: never one state of the two, which were 2
    assert logits.eq(0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(head.eval().classify(torch.ones(4, 2, 12)), torch.full((4, 3), 2.0))


@pytest.mark.parametrize("n_class", [2, 6])
def test_a_pair_s_logits_are_those_of_the_added_states(n_class):
    model = enlarge(small_model(head=("similarity", n_class)), 4).eval()
    x, _, _ = story_batch(3)
    head = model.task_head
    with torch.no_grad():
        logits = model(x)[1]
        at = head.position(x)
        apart = [head.linear(model.transformer(x[:, i])[torch.arange(5), at[:, i]]) for i in (0, 1)]
    assert logits.shape == (5, n_class)
    agree(logits, apart[0] + apart[1] - head.linear.bias, 1e-5)  # linear, but its bias counts once
    agree(fast.gpt.task_logits(model, x), logits, 1e-5)
    agree(model(x.flip(1))[1], logits, 1e-5)


def test_names_of_heads_and_their_sizes():
    for kind, n_out in (("similarity", 1), ("inference", 3), (("classification", 2), 2), (("similarity", 1), 1),
                        (["similarity", 6], 6)):
        assert small_model(head=kind).task_head.linear.out_features == n_out
    assert isinstance(small_model(head=("classification", 4)).task_head, ClfHead)
    for wrong in (("classification", 1), ("similarity", 0), ("similarity", True), ("similarity", 2.0),
                  ("multiple_choice", 2), (["similarity"], 2), "regression"):
        with pytest.raises(BadInput, match=r"^task_head_type is .*, allowed are 'multiple_choice', 'similarity', "
                                           r"'inference', .*\('similarity', n_class from 1 on\)$"):
            small_model(head=wrong)


REFUSED = {
    "a mask of another shape": ("inference", lambda x, m, y: (x, m[:, 1:], y),
                                r"m is \[5, 22\], expected \[5, 23\] for x \[5, 23, 2\]"),
    "a mask without the choices": ("multiple_choice", lambda x, m, y: (x, m[:, 0], y),
                                   r"m is \[5, 23\], expected \[5, 2, 23\]"),
    "a negative mask": ("multiple_choice", lambda x, m, y: (x, m - 1, y), "m has the value -1, expected 0 or more"),
    "a mask that is no number": ("similarity", lambda x, m, y: (x, m * math.nan, y), "m has the value nan"),
    "one choice": ("multiple_choice", lambda x, m, y: (x[:, :1], m[:, :1], y * 0),
                   r"x is \[5, 1, 23, 2\]: a single choice"),
    "choices as single texts": ("multiple_choice", lambda x, m, y: (x[:, 0], m[:, 0], y),
                                r"x is \[5, 23, 2\], but a MultipleChoiceHead takes int \[b, c, t, 2\]"),
    "a pair of one order": (("similarity", 4), lambda x, m, y: (x[:, :1], m[:, :1], y),
                            r"x is \[5, 1, 23, 2\], but a SimilarityHead takes int \[b, 2, t, 2\]"),
    "a pair laid out as one text": ("similarity", lambda x, m, y: (x[:, 0], m[:, 0], y),
                                    r"x is \[5, 23, 2\], but a SimilarityHead"),
    "two texts for a classifier": (("classification", 7), lambda x, m, y: (x[:, None].expand(-1, 2, -1, -1), m, y),
                                   r"x is \[5, 2, 23, 2\], but a ClfHead takes int \[b, t, 2\]"),
    "one target less": ("inference", lambda x, m, y: (x, m, y[1:]), r"y is \[4\], expected int \[5\], classes 0 to 2"),
    "targets as a column": (("classification", 7), lambda x, m, y: (x, m, y[:, None]),
                            r"y is \[5, 1\], expected int \[5\], classes 0 to 6 .*or float \[5, 7\]"),
    "a class too many": ("inference", lambda x, m, y: (x, m, y * 0 + 3), r"y\[0\] is 3, expected int \[5\], classes"),
    "a negative class": (("similarity", 4), lambda x, m, y: (x, m, y - 4), r"y\[0\] is -\d, expected"),
    "a score as a class": (("similarity", 4), lambda x, m, y: (x, m, y + 0.5), r"y\[0\] is \d.5, expected"),
    "a score for a truth": ("similarity", lambda x, m, y: (x, m, y + 1.5), r"y\[0\] is .*, how true each is, 0 to 1"),
    "a negative truth": ("similarity", lambda x, m, y: (x, m, y * 0 - 0.5), r"y\[0\] is -0.5, expected .*, how true"),
    "shares that do not sum to 1": (("similarity", 4), lambda x, m, y: (x, m, torch.full((5, 4), 0.5)),
                                    r"y\[0\] is \[0.5, 0.5, 0.5, 0.5\], expected .*distributions"),
    "a negative share": (("similarity", 4), lambda x, m, y: (x, m, torch.tensor([[-1.0, 1.0, 0.5, 0.5]] * 5)),
                         r"y\[0\] is \[-1.0,"),
    "distributions over other classes": (("similarity", 4), lambda x, m, y: (x, m, torch.full((5, 5), 0.2)),
                                         r"y is \[5, 5\], expected .*float \[5, 4\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_a_head_is_named_in_one_line(case):
    kind, change, message = REFUSED[case]
    model = small_model(head=kind)
    x, m, y = change(*batch_for(kind))
    for losses in (lambda: loss.double_head_loss(*model(x), x, m, y, 0.5),
                   lambda: fast.gpt.losses(model, x, m, y, 0.5),
                   lambda: fast.gpt.losses(model, x.numpy(), m.numpy(), y.numpy(), 0.5)):
        with pytest.raises(BadInput, match=message) as error:
            losses()
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("task_logits", [lambda model, x: model.task_logits(x), fast.gpt.task_logits])
def test_a_single_choice_is_no_choice(task_logits):
    """Its own logit is still to be had."""
    model, x = small_model(head="multiple_choice").eval(), batch_for("multiple_choice")[0]
    with pytest.raises(BadInput, match=r"^x is \[5, 1, 23, 2\]: a single choice for each example, so that nothing is"):
        task_logits(model, x[:, :1])
    agree(model(x[:, :1])[1], task_logits(model, x)[:, :1], 1e-5)
    pairs = batch_for(("classification", 7))[0][:, None]
    classifier = small_model(head=("classification", 7)).eval()
    agree(task_logits(classifier, pairs), task_logits(classifier, pairs[:, 0]), 1e-5)


def test_losses_from_logits_name_the_argument_too():
    x, m, y = story_batch(1)
    logits = torch.randn(220, 120)
    with pytest.raises(BadInput, match=r"^lm_logits are \[219, 120\], expected \[220, v\] for x \[10, 23, 2\]"):
        loss.lm_losses(logits[1:], x.flatten(0, 1), m.flatten(0, 1))
    with pytest.raises(BadInput, match=r"^x is \[10, 23\], expected int"):
        loss.lm_losses(logits, x.flatten(0, 1)[..., 0], m.flatten(0, 1))
    with pytest.raises(BadInput, match=r"^logits are \[5\], expected \[b, n\]"):
        loss.task_losses(torch.randn(5), y)
    model = small_model(head="inference").eval()
    with pytest.raises(BadInput, match=r"^x is \[5, 2, 23, 2\], but a ClfHead"):
        fast.gpt.task_logits(model, x)


def test_targets_of_every_kind_of_number_are_taken():
    logits = torch.randn(5, 4)
    classes = torch.tensor([0, 3, 2, loss.IGNORED, 1])
    want = F.cross_entropy(logits, classes, reduction="none")
    for y in (classes, classes.float(), classes.int()):
        assert torch.equal(loss.task_losses(logits, y), want)
    one_hot = F.one_hot(classes.clamp(min=0), 4)
    rest = [0, 1, 2, 4]
    agree(loss.task_losses(logits, one_hot)[rest], want[rest], 1e-6)
    truth = torch.tensor([0, 1, 1, 0, 1])
    for y in (truth, truth.bool(), truth.double(), truth[:, None]):
        agree(loss.task_losses(logits[:, :1], y), F.binary_cross_entropy_with_logits(
            logits[:, 0], truth.float(), reduction="none"), 1e-6)


def test_a_pair_head_saved_with_its_classes_loads_again(tmp_path):
    model = small_model(head=("similarity", 6))
    torch.save(model.state_dict(), tmp_path / "saved")
    again = small_model(1, head=("similarity", 6))
    assert isinstance(again, DoubleHeadModel) and not torch.equal(again.task_head.linear.weight,
                                                                 model.task_head.linear.weight)
    again.load_state_dict(torch.load(tmp_path / "saved", weights_only=True))
    x, _, _ = story_batch(1)
    np.testing.assert_array_equal(again.eval()(x)[1].detach(), model.eval()(x)[1].detach())
