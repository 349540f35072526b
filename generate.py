"""Continue text with GPT, or turn text into text with T5; or measure GPT's perplexity on a file.

    python generate.py --prompt "She opened the door and"            GPT from model/, 40 tokens
    python generate.py --model gpt --temperature 0.8 --top_p 0.9     asks for prompts until end of input
    python generate.py --perplexity FILE                             perplexity per token of a text file
    python generate.py --prompts FILE --out FILE                     a line of text for each line of prompts
    python generate.py --model t5 --model_dir DIR --beams 4 --prompt "translate English to German: I am here."
    python generate.py --model t5 --model_dir DIR --beams 4 --n_best 3 --prompt ...     lines of score, tab, text

Keys and values of past positions are cached. GPT's position rows are never sampled, and have no part in the
perplexity. A text longer than the context is continued from its second half (with one notice).
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext

import torch

import fast.gpt
import fast.t5
import t5_decoding
from ablations.lstm import load_language_model
from fast.at_rest import WeightsAtRest
from fast.blas import forced_library
from fast.devices import without_cudnn_attention
from fast.known import knows
from fast.matmul import linear
from fast.rates import say_where_bf16_is_slow
from formats import progress, streams
from formats.errors import BadInput, MissingInput, warn_once
from formats.files import read_text, write_atomically
from formats.gpt_files import read_pretrained
from formats.gpt_weights import not_loaded
from formats.hub import local_folder
from formats.initial_values import filled
from formats.lstm_files import holds_lstm
from loss import word_loss
from model_pytorch import ACT_FNS, LMModel, dotdict, load_openai_pretrained_model
from t5_decoding import STOP_EVERY, evaluation_mode, require_sampling, sample, stopped, unwrapped
from t5_pytorch import EOS, PAD, T5, T5_CONFIGS, load_t5_pretrained_model, read_t5_config
from text_utils import SentencePieceEncoder, TextEncoder
from training import corpus, options
from training.precision import dtype_of, for_evaluation
from utils import OneLineParser, require_ranges, run_script, select_device


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="generate.py", description="Generate text with GPT or T5.")
    model = p.add_argument_group("the model")
    model.add_argument("--model", choices=("gpt", "t5"), default="gpt", help="which of the two")
    model.add_argument("--model_dir", default="model/",
                       help="folder with weights and vocabulary, or OWNER/NAME of a repository on the Hugging Face Hub")
    model.add_argument("--n_head", type=int,
                       help="GPT's attention heads, where no config.json says them (OpenAI's weights: 12)")
    model.add_argument("--afn", choices=tuple(ACT_FNS),
                       help="GPT's activation function, where no config.json says it (OpenAI's weights: gelu)")
    model.add_argument("--size", choices=tuple(T5_CONFIGS),
                       help="T5's size (default: what config.json in model_dir says)")
    options.add_device_option(model)
    model.add_argument("--precision", "--dtype", choices=options.PRECISIONS, default="fp32",
                       help="bf16: weights and matrix products in bfloat16, in half of the memory")
    options.add_plain_option(model)
    text = p.add_argument_group("what is read")
    text.add_argument("--prompt", help="the text to start from; without it, prompts are read from standard input")
    text.add_argument("--prompts", metavar="FILE", help="text file in UTF-8 with a prompt on each line")
    text.add_argument("--out", metavar="FILE", help="with --prompts: where the texts go, in the order of the prompts, "
                                                    "each on its line; a blank prompt has blank lines")
    text.add_argument("--n_batch", type=int, default=64, help="texts (samples, beams) that are generated at a time")
    text.add_argument("--perplexity", metavar="FILE", help="print the perplexity of this text file instead (GPT)")
    new = p.add_argument_group("what is generated")
    new.add_argument("--n_tokens", type=int, default=40, help="tokens to generate (T5: at most)")
    new.add_argument("--prefix", help="how every answer begins (T5)")
    new.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="end before the first of these texts")
    new.add_argument("--n_samples", type=int, default=1, help="continuations of each prompt")
    new.add_argument("--temperature", type=float, default=0.0, help="0: always the most probable token")
    new.add_argument("--top_k", type=int, default=0, help="draw from the k most probable tokens only; 0: from all")
    new.add_argument("--top_p", type=float, default=1.0, help="draw from the most probable tokens of this total share")
    new.add_argument("--seed", type=int, default=42, help="fixes the draws")
    new.add_argument("--beams", type=int, default=1, help="beam search with so many beams (T5)")
    new.add_argument("--n_best", type=int, default=1, help="answers of the beam search to print, above 1 with scores: "
                                                           "log probability (nats) / length penalty")
    new.add_argument("--alpha", type=float, default=0.6, help="exponent of the beam search's length penalty")
    args = p.parse_args(argv)
    for name in ("prompt", "prefix"):
        if getattr(args, name) is not None:
            setattr(args, name, streams.argument(getattr(args, name), f"--{name}"))
    args.stop = [streams.argument(text, "--stop") for text in args.stop]
    return args


def check_args(args):
    """Raise BadInput for options out of range or that do not go together, and for a library that does not exist."""
    forced_library()
    require_ranges(args, {"n_tokens": (1, None), "n_samples": (1, None), "temperature": (0, None), "top_k": (0, None),
                          "top_p": (1e-9, 1), "beams": (1, None), "alpha": (0, None), "seed": (0, 2 ** 63),
                          "n_batch": (1, None), "n_best": (1, None)}
                   | ({} if args.n_head is None else {"n_head": (1, None)}))
    if args.beams > 1 and (args.model != "t5" or args.temperature > 0):
        raise BadInput("--beams goes with --model t5 and --temperature 0")
    if args.n_samples > 1 and args.temperature == 0:
        raise BadInput("--n_samples above 1 would print the same text again: give a --temperature above 0")
    if args.n_best > args.beams:
        raise BadInput(f"--n_best is {args.n_best}, allowed is at most --beams, {args.beams}")
    if args.temperature == 0 and (args.top_k or args.top_p < 1):
        raise BadInput("--top_k and --top_p choose what is drawn from: give a --temperature above 0 too")
    if args.prefix is not None and args.model != "t5":
        raise BadInput("--prefix goes with --model t5; GPT goes on from the end of the prompt itself")
    if not all(args.stop):
        raise BadInput("--stop is empty, expected some text")
    if args.perplexity is not None and args.model != "gpt":
        raise BadInput("--perplexity goes with --model gpt")
    if args.prompts is not None and (args.prompt is not None or args.perplexity is not None):
        raise BadInput("--prompts takes the place of --prompt and --perplexity: give one of them")
    if args.out is not None and args.prompts is None:
        raise BadInput("--out goes with --prompts")
    if args.out is not None and os.path.exists(args.out) and os.path.samefile(args.out, args.prompts):
        raise BadInput(f"--out {args.out} is the file of the --prompts, which would be lost; give another name")


def load_gpt(model_dir: str, n_head: int | None, afn: str | None, device: torch.device,
             dtype: torch.dtype | None = None) -> tuple[LMModel, TextEncoder]:
    """Return (LMModel in eval mode with all released positions, TextEncoder) of a folder of weights and vocabulary.

    Args:
        model_dir: of a GPT, or of the LSTM of ablations/lstm.py.
        n_head, afn: for weights without a config.json, which do not tell; None: what config.json says.
        dtype: of a GPT's parameters; None: float32, which an LSTM's always are.
    Raises:
        MissingInput, BadInput: see load_openai_pretrained_model; or vocabulary and weights do not belong together; or
            n_head is not known, or not that of config.json.
    """
    is_lstm = holds_lstm(model_dir)
    model = load_language_model(model_dir) if is_lstm else _load_transformer(model_dir, n_head, afn, dtype)
    encoder = TextEncoder.from_folder(model_dir)
    n_vocab = model.transformer.n_vocab - model.transformer.n_ctx
    if len(encoder) != n_vocab:
        raise BadInput(f"{model_dir}: the vocabulary has {len(encoder)} pieces, the weights {n_vocab} tokens; "
                       "the two do not belong together")
    return model.to(device).eval(), encoder


def _load_transformer(model_dir, n_head, afn, dtype):
    """Return the LMModel of a folder of a GPT's weights; see load_gpt."""
    released = read_pretrained(model_dir)
    _, n_ctx, n_vocab, n_embd, n_layer = released[:5]
    n_head, afn = options.settle_heads(n_head, afn, released, model_dir)
    cfg = dotdict(n_embd=n_embd, n_head=n_head, n_layer=n_layer, afn=afn, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)

    def fill(model):
        return not_loaded(model, load_openai_pretrained_model(model, n_transfer=n_layer, n_embd=n_embd, path=model_dir,
                                                              verbose=False, released=released))

    return filled(lambda: LMModel(cfg, vocab=n_vocab + n_ctx, n_ctx=n_ctx), fill, dtype)


def with_positions(ids: torch.Tensor, first: int, n_vocab: int) -> torch.Tensor:
    """int [b, t] -> int [b, t, 2]: the ids with positions first, first + 1, ..., whose rows start at n_vocab."""
    positions = n_vocab + first + torch.arange(ids.size(1), device=ids.device)
    return torch.stack([ids, positions.expand_as(ids)], -1)


def generate_gpt(model: LMModel, ids: torch.Tensor, n_tokens: int, temperature: float = 0.0, top_k: int = 0,
                 top_p: float = 1.0, generator: torch.Generator | None = None, cached: bool = True,
                 stop: Callable | None = None) -> torch.Tensor:
    """Continue each row of ids by n_tokens. Nothing is dropped, whatever the model's mode.

    Args:
        model: an LMModel, or one in a wrapper, see t5_decoding.unwrapped. ids: int64 [b, t], t at least 1.
        temperature, top_k, top_p, generator: see t5_decoding.sample.
        cached: False runs the plain text over the whole past at every token.
        stop: function of a row's new ids (a list) returning whether it needs no more; see t5_decoding.generate. The
            rows end together, when all need no more.
    Returns:
        int64 [b, n_tokens] (with `stop`: at most), the new tokens. They are never position rows.
    Raises:
        BadInput: an argument out of range, or rows without ids.
    """
    require_sampling(temperature, top_k, top_p)
    model = unwrapped(model)
    if not len(ids):
        return ids.new_zeros(0, n_tokens)
    if not ids.size(1):
        raise BadInput("the prompt is empty: GPT needs at least one word to start from")
    t, done = ids.size(1), False
    cached = cached and knows(model)
    n_ctx = model.transformer.n_ctx
    n_vocab = model.transformer.n_vocab - n_ctx
    start = ids.size(1) - n_ctx // 2 if ids.size(1) > n_ctx else 0
    if ids.size(1) + n_tokens - 1 > n_ctx:
        warn_once(f"the text is longer than the context of {n_ctx} tokens; it is continued from its last {n_ctx // 2}")
    with evaluation_mode(model), WeightsAtRest():
        words = model.transformer.embed.weight  # and positions, which are few: the matrix itself may be at rest
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
                logits = linear(h[:, -1], words)[:, :n_vocab]        # [b, d] x [d, rows] -> [b, n_vocab]
            else:
                h = model.transformer(with_positions(ids[:, start:], 0, n_vocab))
                logits = model.lm_head(h[:, -1:])[:, 0, :n_vocab]
            token = sample(logits.float(), temperature, top_k, top_p, generator)
            ids = torch.cat([ids, token[:, None]], 1)
            if stop is not None and (ids.size(1) - t) % STOP_EVERY == 0:
                done = stopped(stop, ids[:, t:]) | done  # a row that has ended may not look so later
                if done.all():
                    break
    return ids[:, t:].clone()  # outside of inference mode: a tensor that a loss accepts


@torch.no_grad()
def perplexity(model: LMModel, ids: torch.Tensor, plain: bool = False) -> float:
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
    print(f"{len(ids)} tokens, perplexity {perplexity(model, ids, args.plain):.2f} per token")


def prompts(args):
    """Yield --prompt, or lines from standard input until its end."""
    if args.prompt is not None:
        yield args.prompt
        return
    for prompt in streams.input_lines("prompt> "):
        if prompt.strip():
            yield prompt


def encode_prompts(args, encoder, texts):
    """Return a list of ids for each prompt, as the model reads it.

    Raises:
        BadInput: a prompt without a word, for GPT.
    """
    encoded = encoder.encode(texts, verbose=len(texts) > 1)
    if args.model == "t5":
        return [[*ids, EOS] for ids in encoded]
    for text, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise BadInput(f"the prompt {text!r} is empty: GPT needs at least one word to start from")
    return encoded


def stop_texts(args, encoder):
    """Return the texts of --stop as the encoder writes them: GPT's are in lower case, with blanks between words."""
    if args.model == "t5":
        return args.stop
    written = [encoder.decode(ids) for ids in encoder.encode(args.stop, verbose=False)]
    return [new if new and "<unk>" not in new else text for text, new in zip(args.stop, written, strict=True)]


def stop_at(encoder, stops):
    """Return the function that generate_gpt and t5_decoding.generate ask whether a row holds one of some texts."""
    return (lambda row: any(stop in encoder.decode(row) for stop in stops)) if stops else None


def cut_at(stops, text, begin):
    """The text up to the first of some texts that occurs in it from `begin` on."""
    found = [at for at in (text.find(stop, begin) for stop in stops) if at >= 0]
    return text[:min(found)].rstrip() if found else text


def in_groups(texts, n):
    """[b * n] -> b lists of n."""
    return [texts[i:i + n] for i in range(0, len(texts), n)]


def continue_prompts(args, model, encoder, prompts, generator):
    """Return the texts [n_samples] that GPT makes of each prompt.

    Args:
        prompts: lists of ids, all of one length.
    """
    stops, texts = stop_texts(args, encoder), []
    rows = torch.tensor(prompts, device=model.transformer.embed.weight.device).repeat_interleave(args.n_samples, 0)
    for part in rows.split(args.n_batch):
        new = generate_gpt(model, part, args.n_tokens, args.temperature, args.top_k, args.top_p, generator,
                           cached=not args.plain, stop=stop_at(encoder, stops))
        texts += [cut_at(stops, encoder.decode([*old, *row]), len(encoder.decode(old)))
                  for old, row in zip(part.tolist(), new.tolist(), strict=True)]
    return in_groups(texts, args.n_samples)


def answer_prompts(args, model, encoder, prompts, generator):
    """Return the texts [n_samples or n_best] that T5 makes of each prompt; several best ones with scores in front.

    Args:
        prompts: lists of ids with EOS.
    """
    decoding = t5_decoding if args.plain else fast.t5
    prefix = encoder.encode([args.prefix or ""], verbose=False)[0]

    def texts_of(rows):
        return [cut_at(args.stop, encoder.decode([i for i in row if i not in (PAD, EOS)]), len(encoder.decode(prefix)))
                for row in rows.tolist()]

    longest, texts = max(map(len, prompts)), []
    src = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids in prompts], device=model.logits_weight().device)
    if args.beams > 1:
        ids, scores = decoding.beam_search(model, src, src != PAD, args.n_tokens, args.beams, args.alpha,
                                           n_best=args.n_best, return_scores=True, prefix=prefix)
        texts = texts_of(ids.flatten(0, -2))
        if args.n_best > 1:
            texts = [f"{score:.4f}\t{text}" for score, text in zip(scores.flatten().tolist(), texts, strict=True)]
        return in_groups(texts, args.n_best)
    for part in src.repeat_interleave(args.n_samples, 0).split(args.n_batch):
        texts += texts_of(decoding.generate(model, part, part != PAD, args.n_tokens, args.temperature, args.top_k,
                                            args.top_p, generator, prefix=prefix, stop=stop_at(encoder, args.stop)))
    return in_groups(texts, args.n_samples)


def read_prompts(path):
    """Return the lines of a text file.

    Raises:
        MissingInput, BadInput: not there, not UTF-8, or nothing but blank lines.
    """
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; --prompts expects a text file in UTF-8")
    text = read_text(path, "save it as UTF-8").removeprefix("\ufeff")
    lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    if not any(line.strip() for line in lines):
        raise BadInput(f"{path}: nothing but blank lines, expected a prompt on each line")
    return lines


def batches_of(prompts, n, equal):
    """Return lists of numbers of prompts, at most n in each, the longest prompts first.

    Args:
        prompts: lists of ids. equal: only prompts of one length in a batch, as GPT wants them; T5 pads.
    """
    groups = defaultdict(list)
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        groups[len(prompts[i]) if equal else None].append(i)
    return [group[i:i + n] for group in groups.values() for i in range(0, len(group), n)]


def work_off(args, lines, encoder, respond):
    """Answer the lines of --prompts, many at a time, and write --out when all are done, or print them.

    Args:
        lines: what read_prompts returns.
        respond: function of a list of prompts (lists of ids) returning their lists of texts.
    """
    numbers = [i for i, line in enumerate(lines) if line.strip()]
    prompts = encode_prompts(args, encoder, [lines[i] for i in numbers])
    texts = [[""] * (args.n_best if args.beams > 1 else args.n_samples) for _ in lines]
    with write_atomically(args.out) if args.out else nullcontext() as temporary:  # fails before the work
        with progress.bar(total=len(prompts), unit="prompt", desc="generate") as bar:
            n = max(args.n_batch // max(args.beams, args.n_samples), 1)
            for batch in batches_of(prompts, n, equal=args.model == "gpt"):
                for i, answers in zip(batch, respond([prompts[i] for i in batch]), strict=True):
                    texts[numbers[i]] = [" ".join(answer.split("\n")) for answer in answers]
                bar.update(len(batch))
        with open(temporary, "w", encoding="utf-8") if args.out else nullcontext(sys.stdout) as f:
            f.writelines(text + "\n" for answers in texts for text in answers)


@without_cudnn_attention()
def main(argv=None):
    """Run what the options ask for; see the top of this file."""
    args = parse_args(argv)
    check_args(args)
    lines = None if args.prompts is None else read_prompts(args.prompts)
    device = select_device(args.device)
    say_where_bf16_is_slow(device, args.precision)
    args.model_dir, dtype = local_folder(args.model_dir), dtype_of(args.precision)
    if args.model == "gpt":
        model, encoder = load_gpt(args.model_dir, args.n_head, args.afn, device, dtype)
        respond_to = continue_prompts
    else:
        encoder = SentencePieceEncoder.from_folder(args.model_dir)
        config = T5_CONFIGS[args.size] if args.size else read_t5_config(args.model_dir)
        if encoder.n_tokens > config["enc_num_tokens"]:
            raise BadInput(f"{args.model_dir}: the vocabulary has {encoder.n_tokens} ids with the sentinels, but the "
                           f"model only {config['enc_num_tokens']}; the two do not belong together")
        model = filled(lambda: T5(**config), lambda model: load_t5_pretrained_model(model, args.model_dir)["fresh"],
                       dtype).to(device).eval()
        respond_to = answer_prompts
    model = for_evaluation(model, args.precision)
    generator = torch.Generator(device).manual_seed(args.seed)

    def respond(encoded):
        return respond_to(args, model, encoder, encoded, generator)

    with WeightsAtRest():
        if args.perplexity is not None:
            print_perplexity(args, model, encoder)
        elif args.prompts is not None:
            work_off(args, lines, encoder, respond)
        else:
            for prompt in prompts(args):
                for text in respond(encode_prompts(args, encoder, [prompt]))[0]:
                    print(text)


if __name__ == "__main__":
    sys.exit(run_script(main, prints=True))
