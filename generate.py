"""Continue text with GPT, or turn text into text with T5; or measure GPT's perplexity on a file.

    python generate.py --prompt "She opened the door and"            GPT from model/, 40 tokens
    python generate.py --model gpt --temperature 0.8 --top_p 0.9     asks for prompts until end of input
    python generate.py --perplexity FILE                             perplexity per token of a text file
    python generate.py --model t5 --model_dir DIR --beams 4 --prompt "translate English to German: I am here."

Keys and values of past positions are cached. GPT's position rows are never sampled, and have no part in the
perplexity. A text longer than the context is continued from its second half (with one notice).
"""

import os
import sys

import torch

import fast.gpt
import fast.t5
import t5_decoding
from fast.known import knows
from fast.matmul import linear
from formats import progress
from formats.errors import BadInput, MissingInput, warn
from formats.gpt_files import read_pretrained
from loss import word_loss
from model_pytorch import ACT_FNS, LMModel, dotdict, load_openai_pretrained_model
from t5_decoding import evaluation_mode, sample
from t5_pytorch import EOS, PAD, T5, T5_CONFIGS, load_t5_pretrained_model, read_t5_config
from text_utils import SentencePieceEncoder, TextEncoder
from training import corpus, loop, options
from utils import OneLineParser, require_ranges, run_script, select_device


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="generate.py", description="Generate text with GPT or T5.")
    p.add_argument("--model", choices=("gpt", "t5"), default="gpt", help="which of the two")
    p.add_argument("--model_dir", default="model/", help="folder with weights and vocabulary")
    p.add_argument("--prompt", help="the text to start from; without it, prompts are read from standard input")
    p.add_argument("--n_tokens", type=int, default=40, help="tokens to generate (T5: at most)")
    p.add_argument("--n_samples", type=int, default=1, help="continuations of each prompt")
    p.add_argument("--temperature", type=float, default=0.0, help="0: always the most probable token")
    p.add_argument("--top_k", type=int, default=0, help="draw from the k most probable tokens only; 0: from all")
    p.add_argument("--top_p", type=float, default=1.0, help="draw from the most probable tokens of this total share")
    p.add_argument("--beams", type=int, default=1, help="beam search with so many beams (T5)")
    p.add_argument("--alpha", type=float, default=0.6, help="exponent of the beam search's length penalty")
    p.add_argument("--seed", type=int, default=42, help="fixes the draws")
    p.add_argument("--perplexity", metavar="FILE", help="print the perplexity of this text file instead (GPT)")
    p.add_argument("--n_head", type=int, default=12, help="attention heads, which GPT's files do not tell")
    p.add_argument("--afn", choices=tuple(ACT_FNS), default="gelu", help="GPT's activation function")
    p.add_argument("--size", choices=tuple(T5_CONFIGS), help="T5's size (default: what config.json in model_dir says)")
    options.add_device_option(p)
    p.add_argument("--precision", choices=options.PRECISIONS, default="fp32", help="bf16: matrix products in bfloat16")
    options.add_plain_option(p)
    return p.parse_args(argv)


def check_args(args):
    """Raise BadInput for options out of range or that do not go together."""
    require_ranges(args, {"n_tokens": (1, None), "n_samples": (1, None), "temperature": (0, None), "top_k": (0, None),
                          "top_p": (1e-9, 1), "beams": (1, None), "alpha": (0, None), "n_head": (1, None),
                          "seed": (0, 2 ** 63)})
    if args.beams > 1 and (args.model != "t5" or args.temperature > 0):
        raise BadInput("--beams goes with --model t5 and --temperature 0")
    if args.n_samples > 1 and args.temperature == 0:
        raise BadInput("--n_samples above 1 would print the same text again: give a --temperature above 0")
    if args.perplexity is not None and args.model != "gpt":
        raise BadInput("--perplexity goes with --model gpt")


def load_gpt(model_dir, n_head, afn, device):
    """Return (LMModel in eval mode with all released positions, TextEncoder) of a folder in the released format.

    Raises:
        MissingInput, BadInput: see load_openai_pretrained_model; or vocabulary and weights do not belong together.
    """
    _, n_ctx, n_vocab, n_embd, n_layer, *_ = read_pretrained(model_dir)
    if n_embd % n_head:
        raise BadInput(f"--n_head is {n_head}, which does not divide the width {n_embd} of the weights in {model_dir}")
    encoder = TextEncoder.from_folder(model_dir)
    if len(encoder) != n_vocab:
        raise BadInput(f"{model_dir}: the vocabulary has {len(encoder)} pieces, the weights {n_vocab} tokens; "
                       "the two do not belong together")
    cfg = dotdict(n_embd=n_embd, n_head=n_head, n_layer=n_layer, afn=afn, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    model = LMModel(cfg, vocab=n_vocab + n_ctx, n_ctx=n_ctx)
    load_openai_pretrained_model(model, n_transfer=n_layer, n_embd=n_embd, path=model_dir, verbose=False)
    return model.to(device).eval(), encoder


def with_positions(ids, first, n_vocab):
    """int [b, t] -> int [b, t, 2]: the ids with positions first, first + 1, ..., whose rows start at n_vocab."""
    positions = n_vocab + first + torch.arange(ids.size(1), device=ids.device)
    return torch.stack([ids, positions.expand_as(ids)], -1)


def generate_gpt(model, ids, n_tokens, temperature=0.0, top_k=0, top_p=1.0, generator=None, cached=True):
    """Continue each row of ids by n_tokens. Nothing is dropped, whatever the model's mode.

    Args:
        model: an LMModel. ids: int64 [b, t], t at least 1.
        temperature, top_k, top_p, generator: see t5_decoding.sample.
        cached: False runs the plain text over the whole past at every token.
    Returns:
        int64 [b, n_tokens], the new tokens. They are never position rows.
    """
    cached = cached and knows(model)
    n_ctx = model.transformer.n_ctx
    n_vocab = model.transformer.n_vocab - n_ctx
    start = ids.size(1) - n_ctx // 2 if ids.size(1) > n_ctx else 0
    if ids.size(1) + n_tokens - 1 > n_ctx:
        warn(f"the text is longer than the context of {n_ctx} tokens; it is continued from its last {n_ctx // 2}")
    with evaluation_mode(model):
        words = model.transformer.embed.weight[:n_vocab]
        if torch.is_autocast_enabled(ids.device.type):
            words = words.to(torch.get_autocast_dtype(ids.device.type))  # once, not for every token
        cache = None
        for _ in range(n_tokens):
            if ids.size(1) - start > n_ctx:      # the window is full: go on from its second half
                start, cache = ids.size(1) - n_ctx // 2, None
            if cached:
                cache = cache or fast.gpt.empty_cache(model.transformer, n_ctx)
                read = cache[0].length
                h, _ = fast.gpt.hidden_states(model.transformer, with_positions(ids[:, start + read:], read, n_vocab),
                                              cache=cache)
                logits = linear(h[:, -1], words)     # [b, d] x [d, n_vocab] -> [b, n_vocab]
            else:
                h = model.transformer(with_positions(ids[:, start:], 0, n_vocab))
                logits = model.lm_head(h[:, -1:])[:, 0, :n_vocab]
            token = sample(logits.float(), temperature, top_k, top_p, generator)
            ids = torch.cat([ids, token[:, None]], 1)
    return ids[:, -n_tokens:].clone()  # outside of inference mode: a tensor that a loss accepts


@torch.no_grad()
def perplexity(model, ids, plain=False):
    """Return exp of the mean loss of ids[1:], read in windows of n_ctx tokens that overlap by one.

    Args:
        model: an LMModel in eval mode. ids: list of at least 2 ids. plain: without fast.gpt.
    """
    n_ctx = model.transformer.n_ctx
    n_vocab = model.transformer.n_vocab - n_ctx
    device, total = model.transformer.embed.weight.device, 0.0
    for start in progress.bar(range(0, len(ids) - 1, n_ctx - 1), unit="window"):
        x = with_positions(torch.tensor([ids[start:start + n_ctx]], device=device), 0, n_vocab)     # [1, t, 2]
        total += (word_loss(model(x), x, n_vocab) if plain else fast.gpt.lm_word_loss(model, x)).item()
    return corpus.perplexity_of(total / (len(ids) - 1))


def print_perplexity(args, model, encoder):
    """Print tokens and perplexity of the file --perplexity, which is read as pretrain.py reads text."""
    if not os.path.isfile(args.perplexity):
        raise MissingInput(f"{args.perplexity}: not found; --perplexity expects a text file in UTF-8")
    ids = [i for words in corpus.read_words(encoder.tokenizer, [args.perplexity])
           for word in words for i in encoder.word_ids(word)]
    if len(ids) < 2:
        raise BadInput(f"{args.perplexity}: has {len(ids)} tokens, at least 2 are needed")
    with loop.autocast(model.transformer.embed.weight.device, args.precision):
        print(f"{len(ids)} tokens, perplexity {perplexity(model, ids, args.plain):.2f} per token")


def prompts(args):
    """Yield --prompt, or lines from standard input until its end."""
    if args.prompt is not None:
        yield args.prompt
        return
    while True:
        try:
            prompt = input("prompt> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except UnicodeDecodeError:
            raise BadInput("standard input is not UTF-8") from None
        if prompt.strip():
            yield prompt


def continue_prompt(args, model, encoder, prompt, generator):
    """Return the list of texts that GPT makes of one prompt."""
    ids = encoder.encode([prompt], verbose=False)[0]
    if not ids:
        raise BadInput("the prompt is empty: GPT needs at least one word to start from")
    device = model.transformer.embed.weight.device
    rows = torch.tensor([ids] * args.n_samples, device=device)
    new = generate_gpt(model, rows, args.n_tokens, args.temperature, args.top_k, args.top_p, generator,
                       cached=not args.plain)
    return [encoder.decode([*ids, *row]) for row in new.tolist()]


def answer_prompt(args, model, encoder, prompt, generator):
    """Return the list of texts that T5 makes of one prompt."""
    device = model.logits_weight().device
    src = torch.tensor([[*encoder.encode([prompt], verbose=False)[0], EOS]] * args.n_samples, device=device)
    decoding = t5_decoding if args.plain else fast.t5
    if args.beams > 1:
        rows = decoding.beam_search(model, src, src != PAD, args.n_tokens, args.beams, args.alpha)
    else:
        rows = decoding.generate(model, src, src != PAD, args.n_tokens, args.temperature, args.top_k, args.top_p,
                                 generator)
    return [encoder.decode([i for i in row if i not in (PAD, EOS)]) for row in rows.tolist()]


def main(argv=None):
    """Run what the options ask for; see the top of this file."""
    args = parse_args(argv)
    check_args(args)
    device = select_device(args.device)
    if args.model == "gpt":
        model, encoder = load_gpt(args.model_dir, args.n_head, args.afn, device)
        respond = continue_prompt
    else:
        encoder = SentencePieceEncoder.from_folder(args.model_dir)
        config = T5_CONFIGS[args.size] if args.size else read_t5_config(args.model_dir)
        if encoder.n_tokens > config["enc_num_tokens"]:
            raise BadInput(f"{args.model_dir}: the vocabulary has {encoder.n_tokens} ids with the sentinels, but the "
                           f"model only {config['enc_num_tokens']}; the two do not belong together")
        model = T5(**config)
        load_t5_pretrained_model(model, args.model_dir)
        model.to(device).eval()
        respond = answer_prompt
    if args.perplexity is not None:
        print_perplexity(args, model, encoder)
        return
    generator = torch.Generator(device).manual_seed(args.seed)
    for prompt in prompts(args):
        with loop.autocast(device, args.precision):
            for text in respond(args, model, encoder, prompt, generator):
                print(text)


if __name__ == "__main__":
    sys.exit(run_script(main))
