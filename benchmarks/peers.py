"""The other side of each row: other libraries in their best usual settings, from our weights where the model is ours.

transformers is padded to the longest of the batch. Its attention may be its own text ("eager") or torch's fused one
("sdpa"), where the model has both; what is called may be passed to torch.compile; a model that only predicts may have
its weights in bfloat16 or convert them on the way (autocast). Which of these is best depends on row and processor:
measure.py tries them. AdamW is torch's fused one. The shapes of training are steady, which suits a compiler best.

CTranslate2 gets as many threads as torch, and sources without padding.
"""

import os
import tempfile
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks import cases, ours
from benchmarks.cases import Work
from t5_pytorch import EOS, PAD, checkpoint_names


class Setting(NamedTuple):
    """How a model of transformers runs.

    Attributes:
        attention: 'eager' or 'sdpa'. compiled: by torch.compile. bf16_weights: converted once, in place of autocast.
    """

    attention: str
    compiled: bool = False
    bf16_weights: bool = False

    def __str__(self):
        return self.attention + ", weights in bf16" * self.bf16_weights + ", compiled" * self.compiled


def settings(*attentions, predicts=False):
    """Return the function from a precision to the settings to try, without torch.compile.

    Args:
        attentions: what the model has. predicts: nothing is trained, so that weights may be in bfloat16.
    """
    def of(precision):
        return [Setting(attention, bf16_weights=weights) for attention in attentions
                for weights in ([False, True] if predicts and precision == "bf16" else [False])]

    return of


def with_compiler(setting):
    """Return the setting with torch.compile, or None where it is not one of transformers."""
    return setting._replace(compiled=True) if isinstance(setting, Setting) else None


def made(case, setting, model, dynamic=None):
    """Return the model on the device, as the setting wants it; dynamic: see torch.compile."""
    model = model.to(case.device, torch.bfloat16 if setting.bf16_weights else torch.float32)
    if setting.compiled:
        model.compile(dynamic=dynamic, backend=case.size["compiler"])
    return model


# --- GPT

def openai_gpt(case, setting, kind, source, dynamic=None):
    """transformers' GPT-1 with the weights of ours. Its softmax has the rows of positions too, as the original's.

    Args:
        kind: name of the class. source: our model.
    """
    import transformers
    size, we = case.size, source.transformer.embed.weight
    n_ctx = source.transformer.n_ctx
    model = getattr(transformers, kind)(transformers.OpenAIGPTConfig(
        vocab_size=len(we), n_positions=n_ctx, n_embd=size["n_embd"], n_layer=size["n_layer"], n_head=size["n_head"],
        summary_first_dropout=0.1, attn_implementation=setting.attention))
    weights = {"transformer.tokens_embed.weight": we, "transformer.positions_embed.weight": we[-n_ctx:]}
    for name, p in source.transformer.h.named_parameters():
        *parts, last = name.split(".")
        matrix = p.squeeze(0) if "c_" in name else p
        weights[".".join(["transformer.h", *parts, {"w": "weight", "g": "weight", "b": "bias"}[last]])] = matrix
    if kind == "OpenAIGPTDoubleHeadsModel":
        linear = source.task_head.linear
        weights |= {f"multiple_choice_head.summary.{name}": p for name, p in linear.named_parameters()}
    missing = model.load_state_dict(weights, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
        raise RuntimeError(f"weights do not fit transformers' GPT: {missing}")
    return made(case, setting, model, dynamic)


def gpt_train(case, setting):
    """One update over a batch of stories."""
    x, m, y = cases.story_batches(case, 1)[0]
    ids, m = cases.padded_to_longest(x, m)
    labels, at = ids.masked_fill(m == 0, -100), _classify_at(case, ids)
    model = openai_gpt(case, setting, "OpenAIGPTDoubleHeadsModel", ours.gpt(case)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 6.25e-5, weight_decay=0.01, fused=True)

    def loss_of(rows=slice(None)):
        out = model(ids[rows], mc_token_ids=at[rows], labels=labels[rows], mc_labels=y[rows])
        return out.mc_loss + ours.LM_COEF * out.loss

    def numbers():  # the original's mean is over sequences, theirs over tokens: here one sequence a time
        task = model(ids, mc_token_ids=at, mc_labels=y).mc_loss
        words = [model(ids[i:i + 1, k:k + 1], mc_token_ids=at[i:i + 1, k:k + 1], labels=labels[i:i + 1, k:k + 1]).loss
                 for i in range(len(ids)) for k in range(2)]
        return task + ours.LM_COEF * torch.stack(words).mean()

    clip = list(model.parameters())
    return Work(cases.update(case, optimizer, [loss_of], ours=False, clip=clip), cases.without_dropout(model, numbers))


def _classify_at(case, ids):
    return (ids == case.size["n_vocab"] + 2).int().argmax(-1)


def gpt_evaluate(case, setting, with_words=True):
    """The logits of the endings of 4 batches of stories; with_words: and of all words, as the model computes them."""
    batches = [cases.padded_to_longest(x, m)[0] for x, m, _ in cases.story_batches(case, 4)]
    model = openai_gpt(case, setting, "OpenAIGPTDoubleHeadsModel", ours.gpt(case)).eval()

    def logits(ids):
        at = _classify_at(case, ids)
        if with_words:
            return model(ids, mc_token_ids=at).mc_logits
        return model.multiple_choice_head(model.transformer(ids)[0], at).squeeze(-1)

    if setting.compiled and not with_words:
        model.transformer.compile(backend=case.size["compiler"])

    @torch.inference_mode()
    def run():
        with case.autocast(not setting.bf16_weights):
            return torch.cat([logits(ids) for ids in batches])

    return Work(run, run)


class WithTaskHead(torch.nn.Module):
    """transformers' GPT-1 with its language-model head, and the paper's task head of torch's own layers beside it.

    transformers has the head of a multiple choice alone; its classifier learns no words. This is what a user of it
    writes for the paper's other tasks.
    """

    def __init__(self, gpt, linear, kind):
        super().__init__()
        self.gpt, self.linear, self.kind, self.drop = gpt, linear, kind, torch.nn.Dropout(0.1)

    def forward(self, ids, at, with_words):
        """ids, at int [b, t], [b] of single sequences -> task logits [n, k], and of words [b, t, v] or None."""
        h = self.gpt.transformer(ids)[0]
        pooled = h[torch.arange(len(ids), device=ids.device), at]
        if self.kind == "similarity":
            pooled = pooled.unflatten(0, (-1, 2)).sum(1)
        logits = self.linear(self.drop(pooled))
        if self.kind == "race":
            logits = logits.view(-1, 4)
        return logits, self.gpt.lm_head(h) if with_words else None


def with_task_head(case, setting, kind):
    """WithTaskHead with the weights of ours."""
    source = ours.gpt(case, kind=kind)
    gpt = openai_gpt(case, setting._replace(compiled=False), "OpenAIGPTLMHeadModel", source)
    return made(case, setting, WithTaskHead(gpt, source.task_head.linear, kind))


def _padded_task(case, kind):
    """Return ids [b, t], mask [b, t] and classify positions [b] of the sequences of a task's batch, and y [n]."""
    x, m, y = cases.task_batch(case, kind)
    ids, m = x[..., 0].reshape(-1, x.size(-2)), m.reshape(-1, m.size(-1))
    return ids, m, _classify_at(case, ids), y


def task_train(case, setting, kind):
    """One update over a batch of a task."""
    ids, m, at, y = _padded_task(case, kind)
    labels = ids.masked_fill(m == 0, -100)
    model = with_task_head(case, setting, kind).train()
    optimizer = torch.optim.AdamW(model.parameters(), 6.25e-5, weight_decay=0.01, fused=True)

    def word_losses(words, reduction):
        return F.cross_entropy(words[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction=reduction)

    def loss_of():
        logits, words = model(ids, at, True)
        return F.cross_entropy(logits.float(), y) + ours.LM_COEF * word_losses(words, "mean")

    def numbers():  # the original's mean is over sequences, theirs over tokens
        logits, words = model(ids, at, True)
        of_sequences = word_losses(words, "none").view(len(ids), -1).sum(1) / m[:, 1:].sum(1)
        return F.cross_entropy(logits, y) + ours.LM_COEF * of_sequences.mean()

    return Work(cases.update(case, optimizer, [loss_of], ours=False, clip=list(model.parameters())),
                cases.without_dropout(model, numbers))


def task_evaluate(case, setting, kind):
    """The task logits of a batch; words are left out."""
    ids, _, at, _ = _padded_task(case, kind)
    model = with_task_head(case, setting, kind).eval()

    @torch.inference_mode()
    def run():
        with case.autocast(not setting.bf16_weights):
            return model(ids, at, False)[0].float()

    return Work(run, run)


def gpt_generate(case, setting, batch):
    """Greedy continuation of prompts. The model has no cache of keys and values; it grows, whence dynamic shapes."""
    model = openai_gpt(case, setting, "OpenAIGPTLMHeadModel", ours.gpt(case, cases.TEXT_CTX), dynamic=True).eval()
    words = case.size["n_vocab"]
    model.generation_config.suppress_tokens = list(range(words, words + cases.TEXT_CTX))  # the rows of positions
    return _continues(case, setting, model, batch)


def gpt2(case, setting, dynamic=None):
    """transformers' GPT-2 of the case's sizes, with weights of its own: its norms come first."""
    import transformers
    size = case.size
    torch.manual_seed(0)
    return made(case, setting, transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=size["n_vocab"], n_positions=cases.TEXT_CTX, n_embd=size["n_embd"], n_layer=size["n_layer"],
        n_head=size["n_head"], bos_token_id=None, eos_token_id=None, attn_implementation=setting.attention)), dynamic)


def gpt2_generate(case, setting, batch):
    """Greedy continuation of prompts by GPT-2, which has a cache."""
    work = _continues(case, setting, gpt2(case, setting, dynamic=True).eval(), batch)
    return work._replace(numbers=None)  # another model


def _continues(case, setting, model, batch):
    ids, new = cases.prompts(case, batch), case.size["new_tokens"]

    def run():
        with case.autocast(not setting.bf16_weights):
            return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                                  do_sample=False, pad_token_id=0)[:, ids.size(1):]

    return Work(run, run)


def gpt2_pretrain(case, setting):
    """One update over sequences of text, by GPT-2: as many weights as ours, dropouts of 0.1, softmax over the words."""
    ids, model = cases.text_ids(case), gpt2(case, setting).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2.5e-4, weight_decay=0.01, fused=True)
    return Work(cases.update(case, optimizer, [lambda: model(ids, labels=ids).loss], ours=False,
                             clip=list(model.parameters())))


# --- T5

def their_t5(case, setting, dynamic=None):
    """transformers' T5 with the weights of ours."""
    import transformers
    config, source = cases.t5_config(case.size), ours.t5(case)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=config["enc_num_tokens"], d_model=config["dim"], d_ff=config["d_ff"], d_kv=config["enc_dim_head"],
        num_heads=config["enc_heads"], num_layers=config["enc_depth"], dropout_rate=config["dropout"],
        decoder_start_token_id=0, attn_implementation=setting.attention))
    model.load_state_dict({checkpoint_names(n)[1]: p for n, p in source.named_parameters()}, strict=False)
    return made(case, setting, model, dynamic)


def t5_train(case, setting):
    """One update over a padded batch."""
    src, targets = cases.t5_batch(case, case.size["t5_batch"])
    inputs = dict(attention_mask=(src != PAD).long(), labels=targets.masked_fill(targets == PAD, -100))
    return _t5_update(case, setting, dict(input_ids=src, **inputs))


def t5_pretrain(case, setting):
    """One update over text after span corruption."""
    src, targets = cases.corrupted_batch(case)
    return _t5_update(case, setting, dict(input_ids=src, labels=targets))


def _t5_update(case, setting, inputs):
    from transformers import Adafactor
    model = their_t5(case, setting).train()
    optimizer = Adafactor(model.parameters(), lr=1e-3, scale_parameter=True, relative_step=False)

    def loss_of():
        return model(**inputs).loss

    return Work(cases.update(case, optimizer, [loss_of], ours=False), cases.without_dropout(model, loss_of))


def t5_decode(case, setting, batch, beams):
    """Greedy decoding or a beam search by transformers; compiled it has a cache of fixed size and steady shapes."""
    src, _ = cases.t5_batch(case, batch)
    model, new = their_t5(case, setting).eval(), case.size["new_tokens"]
    cache = dict(cache_implementation="static") if setting.compiled else {}

    def run():
        with case.autocast(not setting.bf16_weights):
            return model.generate(src, attention_mask=(src != PAD).long(), max_new_tokens=new, min_new_tokens=new,
                                  num_beams=beams, do_sample=False, **cache)[:, 1:]

    return Work(run, run)


def t5_answers(case, setting, kind, beams, ordered):
    """The answers to a file of inputs by transformers' generate; see ours.t5_answers.

    Args:
        ordered: with the longest sources first; else in the file's order, as its Trainer does.
    """
    sources, lengths = cases.answered(case, kind)
    model, longest = their_t5(case, setting).eval(), int(lengths.max())
    cache = dict(cache_implementation="static") if setting.compiled else {}

    def run():
        answers = torch.zeros(len(sources), longest, dtype=torch.int64)
        for rows, src, of_rows in cases.answered_batches(case, sources, lengths, ordered):
            of_beams = of_rows.repeat_interleave(beams)

            def ended(ids, scores, of_beams=of_beams):
                return cases.ended(scores, of_beams == ids.shape[1])

            with case.autocast(not setting.bf16_weights):
                ids = model.generate(src, attention_mask=(src != PAD).long(), max_new_tokens=longest, num_beams=beams,
                                     do_sample=False, logits_processor=[ended], **cache)[:, 1:]
            after = (ids == EOS).cumsum(1) - (ids == EOS).int() > 0  # which a beam search fills with EOS
            answers[rows, :ids.size(1)] = ids.masked_fill(after, PAD).cpu()
        return answers

    return Work(run, run)


def ctranslate2_t5(case, setting, batch, beams, compute_type):
    """Greedy decoding or a beam search by CTranslate2, converted from transformers' model with the weights of ours.

    Args:
        setting: '', there is no choice.
        compute_type: 'float32', or 'int8': weights of 8 bits, so that the numbers are others.
    """
    import ctranslate2
    from transformers.utils import logging
    logging.disable_progress_bar()  # of saving and loading
    src, _ = cases.t5_batch(case, batch)
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "transformers"), os.path.join(folder, "ctranslate2")
        their_t5(case, Setting("eager")).save_pretrained(source)
        numbered_tokenizer(cases.t5_config(case.size)["enc_num_tokens"]).save_pretrained(source)
        ctranslate2.converters.TransformersConverter(source).convert(target)
        translator = ctranslate2.Translator(target, device=case.device, compute_type=compute_type, inter_threads=1,
                                            intra_threads=torch.get_num_threads())
    rows = [[str(i) for i in row if i != PAD] for row in src.tolist()]
    new = case.size["new_tokens"]

    def run():
        return translator.translate_batch(rows, beam_size=beams, max_decoding_length=new, min_decoding_length=new)

    def numbers():
        return torch.tensor([[int(token) for token in result.hypotheses[0]] for result in run()])

    return Work(run, numbers if compute_type == "float32" else None)


def numbered_tokenizer(n_tokens):
    """A tokenizer of transformers whose piece i is written as the number i, which the converter asks for."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    words = models.WordLevel({str(i): i for i in range(n_tokens)}, unk_token="2")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="0", eos_token="1", unk_token="2")
