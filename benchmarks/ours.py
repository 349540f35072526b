"""Our side of each row, as our scripts run it; plain: as they run it with --plain."""

from functools import partial

import torch

import fast.gpt
import fast.t5
import fast.t5_answers
import loss
import opt
import t5_decoding
from benchmarks import cases
from benchmarks.cases import Work
from fast.at_rest import WeightsAtRest
from generate import generate_gpt
from model_pytorch import DEFAULT_CONFIG, DoubleHeadModel, LMModel, dotdict
from t5_pytorch import EOS, PAD, T5, shift_right
from training.answering import ROWS
from training.precision import for_evaluation

LM_COEF, Z_LOSS = 0.5, 1e-4


def gpt(case, n_ctx=None, kind=None):
    """A GPT of the case's sizes, always with the same weights: for stories, or a language model of n_ctx positions.

    Args:
        kind: a key of cases.KINDS, for the model of such a task.
    """
    torch.manual_seed(0)
    size = case.size
    cfg = dotdict(DEFAULT_CONFIG | {name: size[name] for name in ("n_embd", "n_head", "n_layer")})
    if kind:
        n_ctx = cases.KINDS[kind].n_ctx
        model = DoubleHeadModel(cfg, size["n_vocab"] + 2, cases.KINDS[kind].head,
                                size["n_vocab"] + cases.N_SPECIAL + n_ctx, n_ctx)
    elif n_ctx:
        model = LMModel(cfg, size["n_vocab"] + n_ctx, n_ctx)
    else:
        model = DoubleHeadModel(cfg, size["n_vocab"] + 2, "multiple_choice",
                                size["n_vocab"] + cases.N_SPECIAL + cases.STORY_CTX, cases.STORY_CTX)
    return _strengthened(case, model, model.transformer.h)


def at_rest(run):
    """Decorate a function to have one WeightsAtRest for all its calls, as generate.py has for all its texts."""
    rest = WeightsAtRest()

    def run_at_rest():
        with rest:
            return run()

    return run_at_rest


def _strengthened(case, model, *parts):
    """The model on the device, the matrices of some parts times the size's gain."""
    with torch.no_grad():
        for p in (p for part in parts for p in part.parameters() if p.ndim > 1):
            p *= case.size["gain"]
    return model.to(case.device)


def t5(case):
    """A T5 of the case's sizes, always with the same weights. EOS never wins: every decoding runs its length."""
    torch.manual_seed(0)
    model = T5(**cases.t5_config(case.size))
    with torch.no_grad():
        model.shared.weight[EOS] = 0
    return _strengthened(case, model, model.encoder.block, model.decoder.block)


def gpt_train(case, plain=False, towers=1):
    """One update of train.py: `towers` passes over a batch of stories with gradients, and the optimizer."""
    batches, model = cases.story_batches(case, towers), gpt(case).train()
    optimizer = opt.OpenAIAdam(model.parameters(), 6.25e-5, "warmup_linear", 0.002, 100_000, l2=0.01, max_grad_norm=1)

    def loss_of(x, m, y):
        if plain:
            return loss.double_head_loss(*model(x), x, m, y, LM_COEF)[0]
        return fast.gpt.losses(model, x, m, y, LM_COEF)[0]

    losses = [partial(loss_of, *batch) for batch in batches]
    tokens = sum(int(m.sum()) for _, m, _ in batches)
    return Work(cases.update(case, optimizer, losses, ours=True), cases.without_dropout(model, losses[0]),
                6 * cases.gpt_weights(case.size) * tokens)


def gpt_evaluate(case, plain=False):
    """The logits of the endings of 4 batches of stories, as an evaluation of train.py computes them."""
    batches, model = cases.story_batches(case, 4), for_evaluation(gpt(case).eval(), case.precision)

    @torch.no_grad()
    def run():
        return torch.cat([model(x)[1] if plain else fast.gpt.choice_logits(model, x) for x, _, _ in batches])

    tokens = sum(int(m.sum()) for _, m, _ in batches)
    return Work(run, run, 2 * cases.gpt_weights(case.size, head=False) * tokens)


def task_train(case, plain=False, kind=None):
    """One update of train.py on one batch of a task, a key of cases.KINDS."""
    (x, m, y), model = cases.task_batch(case, kind), gpt(case, kind=kind).train()
    optimizer = opt.OpenAIAdam(model.parameters(), 6.25e-5, "warmup_linear", 0.002, 100_000, l2=0.01, max_grad_norm=1)

    def loss_of():
        if plain:
            return loss.double_head_loss(*model(x), x, m, y, LM_COEF)[0]
        return fast.gpt.losses(model, x, m, y, LM_COEF)[0]

    return Work(cases.update(case, optimizer, [loss_of], ours=True), cases.without_dropout(model, loss_of),
                6 * cases.gpt_weights(case.size) * int(m.sum()))


def task_evaluate(case, plain=False, kind=None):
    """The task logits of a batch, as an evaluation of train.py computes them."""
    (x, m, _), model = cases.task_batch(case, kind), for_evaluation(gpt(case, kind=kind).eval(), case.precision)

    @torch.no_grad()
    def run():
        return model.task_logits(x) if plain else fast.gpt.task_logits(model, x)

    return Work(run, run, 2 * cases.gpt_weights(case.size, head=False) * int(m.sum()))


def gpt_generate(case, plain=False, batch=1):
    """Greedy continuation of prompts of 20 tokens."""
    size, ids = case.size, cases.prompts(case, batch)
    model = for_evaluation(gpt(case, n_ctx=cases.TEXT_CTX).eval(), case.precision)

    @at_rest
    def run():
        return generate_gpt(model, ids, size["new_tokens"], cached=not plain)

    new, head = size["new_tokens"], size["n_vocab"] * size["n_embd"]
    operations = 2 * batch * (cases.gpt_weights(size, head=False) * (20 + new) + head * new)
    return Work(run, run, operations, _bytes_read(case, batch, cases.gpt_weights(size) * new))


def gpt_pretrain(case, plain=False):
    """One update of pretrain.py over sequences of text."""
    ids, model = cases.text_ids(case), gpt(case, n_ctx=cases.TEXT_CTX).train()
    positions = case.size["n_vocab"] + torch.arange(ids.size(1), device=case.device)
    x = torch.stack([ids, positions.expand_as(ids)], -1)                              # [b, t] -> [b, t, 2]
    optimizer = opt.OpenAIAdam(model.parameters(), 2.5e-4, "warmup_cosine", 0.02, 100_000, l2=0.01, max_grad_norm=1)
    loss_of = partial(model.loss, x) if plain else partial(fast.gpt.lm_loss, model, x)
    return Work(cases.update(case, optimizer, [loss_of], ours=True), cases.without_dropout(model, loss_of),
                6 * cases.gpt_weights(case.size) * ids.numel())


def gpt_three_epochs(case, plain=False):
    """A whole fine-tuning: 3 epochs of 1,497 examples, 32 an update in 4 towers of 8."""
    x, m, y = (part.to(case.device) for part in cases.cloze_batch(case.size["examples"], case.size["n_vocab"]))
    stories, updates = case.size["stories"], case.size["updates"]

    def run():
        model = gpt(case).train()
        optimizer = opt.OpenAIAdam(model.parameters(), 6.25e-5, "warmup_linear", 0.002, updates, l2=0.01,
                                   max_grad_norm=1)
        for _ in range(updates):
            losses = [partial(loss_of, model, torch.randint(len(x), (stories,))) for _ in range(4)]
            cases.update(case, optimizer, losses, ours=True)()

    def loss_of(model, rows):
        if plain:
            return loss.double_head_loss(*model(x[rows]), x[rows], m[rows], y[rows], LM_COEF)[0]
        return fast.gpt.losses(model, x[rows], m[rows], y[rows], LM_COEF)[0]

    tokens = updates * 4 * stories * float(m.sum()) / len(x)
    return Work(run, None, 6 * cases.gpt_weights(case.size) * tokens)


def t5_loss(model, src, targets, plain, z_loss, padded=True):
    """The loss of train_t5.py (padded) or pretrain_t5.py."""
    if not plain:
        return fast.t5.training_loss(model, src, targets, z_loss, padded)
    masks = (src != PAD, targets != PAD) if padded else (None, None)
    return loss.t5_loss(model(src, shift_right(targets), *masks), targets, z_loss)


def t5_train(case, plain=False):
    """One update of train_t5.py."""
    src, targets = cases.t5_batch(case, case.size["t5_batch"])
    return _t5_update(case, plain, src, targets, lr=1e-3, padded=True)


def t5_pretrain(case, plain=False):
    """One update of pretrain_t5.py over text after span corruption."""
    return _t5_update(case, plain, *cases.corrupted_batch(case), lr=opt.rsqrt_schedule, padded=False)


def _t5_update(case, plain, src, targets, lr, padded):
    model = t5(case).train()
    optimizer = opt.Adafactor(model.parameters(), lr=lr)

    def numbers():  # over the real targets, where the original's mean is over all positions
        value = t5_loss(model, src, targets, plain, 0.0, padded)
        return value * targets.numel() / (targets != PAD).sum()

    losses = [partial(t5_loss, model, src, targets, plain, Z_LOSS, padded)]
    return Work(cases.update(case, optimizer, losses, ours=True),
                cases.without_dropout(model, numbers), cases.t5_operations(case, src, targets))


def t5_decode(case, plain=False, batch=1, beams=1):
    """Greedy decoding, or a beam search, of new_tokens tokens."""
    src, _ = cases.t5_batch(case, batch)
    model, new = for_evaluation(t5(case).eval(), case.precision), case.size["new_tokens"]
    decoding = t5_decoding if plain else fast.t5

    @at_rest
    def run():
        if beams > 1:
            return decoding.beam_search(model, src, src != PAD, new, beams)
        return decoding.generate(model, src, src != PAD, new)

    source, target = cases.t5_weights(case.size)
    operations = 2 * (source * int((src != PAD).sum()) + target * batch * beams * new)
    return Work(run, run, operations, _bytes_read(case, batch, source + target * new))


class EndingDecoder(fast.t5.Decoder):
    """A Decoder whose rows end after so many tokens each, as random weights end nowhere; lengths: int [b]."""

    def __init__(self, lengths, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lengths = lengths

    def step(self, tokens, parents=None):
        """As Decoder.step."""
        return cases.ended(super().step(tokens, parents), self.lengths == self.position)

    def keep(self, rows):
        """As Decoder.keep."""
        super().keep(rows)
        self.lengths = self.lengths[rows]


def t5_answers(case, plain=False, kind="labels", beams=1, leave=True):
    """The answers to a file of inputs as train_t5.py's evaluation and predict.py find them; see cases.answered.

    plain: of no use here. leave: False keeps rows that have ended in their batch.
    """
    sources, lengths = cases.answered(case, kind)
    model, longest = for_evaluation(t5(case).eval(), case.precision), int(lengths.max())
    decoding = fast.t5_answers if leave else t5_decoding

    def run():
        answers, rest = torch.zeros(len(sources), longest, dtype=torch.int64), WeightsAtRest()
        n_most, steps = ROWS // beams if leave else 0, {}
        if leave and beams == 1:
            steps["states_for"] = fast.t5_answers.STATES_FOR  # as generate has it by default
        for rows, src, of_rows in cases.answered_batches(case, sources, lengths, ordered=True, n_most=n_most):
            given = dict(max_length=longest, decoder=partial(EndingDecoder, of_rows, **steps))
            with rest:
                ids = (decoding.generate(model, src, src != PAD, **given) if beams == 1 else
                       decoding.beam_search(model, src, src != PAD, beams=beams, alpha=0.6, **given))
            answers[rows, :ids.size(1)] = ids.cpu()
        return answers

    source, target = cases.t5_weights(case.size)
    return Work(run, run, 2 * (source * sum(map(len, sources)) + target * beams * int(lengths.sum())))


def _bytes_read(case, batch, weights):
    """Bytes of so many weights in the case's precision, where one sequence is decoded; else 0."""
    return (2 if case.precision == "bf16" else 4) * weights if batch == 1 else 0
