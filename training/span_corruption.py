"""Span corruption, the task T5 is pre-trained on (T5 paper, 3.1.4), with the names of the `t5` package's preprocessors.

    tokens         Thank you for inviting me to your party last week
    inputs         Thank you <extra_id_0> me to your party <extra_id_1> week
    targets        <extra_id_0> for inviting <extra_id_1> last

The numbers of noise tokens and spans are the original's for every length; the random draws are our own.
"""

import numpy as np


def random_spans_helper(inputs_length, noise_density=0.15, mean_noise_span_length=3.0, extra_tokens_per_span_inputs=1,
                        extra_tokens_per_span_targets=1):
    """Return how many raw tokens fill an input of inputs_length tokens after corruption, EOS included.

    The original rounds in double precision here and in single precision in random_spans_noise_mask, so that for
    some lengths (190 raw tokens, for one) the mask has one noise token more than this function counts.

    Args:
        inputs_length: tokens of the corrupted input, sentinels and EOS included.
        noise_density: share of the raw tokens that are noise. mean_noise_span_length: tokens of a span, on average.
        extra_tokens_per_span_inputs, extra_tokens_per_span_targets: sentinels for each span.
    Returns:
        tokens_length, targets_length: raw tokens, and tokens of the targets with sentinels and EOS. 512 -> 568, 114.
    """
    def corrupted(tokens_length):
        n_noise = round(tokens_length * noise_density)
        n_spans = round(n_noise / mean_noise_span_length)
        return (tokens_length - n_noise + n_spans * extra_tokens_per_span_inputs + 1,
                n_noise + n_spans * extra_tokens_per_span_targets + 1)

    tokens_length = inputs_length - 1
    while corrupted(tokens_length + 1)[0] <= inputs_length:
        tokens_length += 1
    targets_length = corrupted(tokens_length)[1]
    if noise_density == 0.5 and targets_length > inputs_length:  # keeps the two lengths equal at half noise
        tokens_length, targets_length = tokens_length - 1, targets_length - 1
    return tokens_length, targets_length


def random_spans_noise_mask(length, noise_density=0.15, mean_noise_span_length=3.0, rng=None):
    """Draw which tokens are noise: spans of random lengths, with spans of kept tokens before and between them.

    Args:
        length: raw tokens. noise_density, mean_noise_span_length: see random_spans_helper.
        rng: numpy.random.Generator.
    Returns:
        bool [length], True at noise. It begins with a kept token and ends with a noise token; the number of noise
        tokens and of spans depends on the arguments alone.
    """
    if noise_density == 0:
        return np.zeros(length, dtype=bool)
    rng = np.random.default_rng() if rng is None else rng
    n = max(length, 2)  # one token is too few for both kinds of spans
    n_noise = min(max(int(np.rint(np.float32(n) * np.float32(noise_density))), 1), n - 1)
    n_spans = max(int(np.rint(np.float32(n_noise) / np.float32(mean_noise_span_length))), 1)
    lengths = np.stack([_random_lengths(n - n_noise, n_spans, rng), _random_lengths(n_noise, n_spans, rng)], 1)
    return np.repeat(np.tile([False, True], n_spans), lengths.ravel())[:length]


def _random_lengths(total, n, rng):
    """Split `total` into n whole numbers above 0, every way equally likely: int [n]."""
    if n > total:
        raise ValueError(f"{total} tokens cannot make {n} spans; lower noise_density or raise mean_noise_span_length")
    ends = np.sort(rng.permutation(total - 1)[:n - 1]) + 1
    return np.diff(np.concatenate([[0], ends, [total]]))


def noise_span_to_unique_sentinel(tokens, noise_mask, first_sentinel):
    """Replace every run of noise by one sentinel: the input of span corruption.

    Args:
        tokens: int [length]. noise_mask: bool [length].
        first_sentinel: id of the first span's sentinel (`<extra_id_0>`); the next ones count down.
    Returns:
        int [tokens kept + spans].
    """
    tokens, noise_mask = np.asarray(tokens), np.asarray(noise_mask, dtype=bool)
    after_noise = np.concatenate([[False], noise_mask[:-1]])
    starts = noise_mask & ~after_noise
    return np.where(starts, first_sentinel + 1 - np.cumsum(starts), tokens)[~(noise_mask & after_noise)]


def nonnoise_span_to_unique_sentinel(tokens, noise_mask, first_sentinel):
    """Replace every run of kept tokens by one sentinel: the targets of span corruption; see above."""
    return noise_span_to_unique_sentinel(tokens, ~np.asarray(noise_mask, dtype=bool), first_sentinel)


def corrupt(tokens, first_sentinel, eos, noise_density, mean_noise_span_length, rng):
    """Return the inputs and the targets of span corruption, both with EOS.

    Args:
        tokens: int [n, length], one raw sequence a row; each gets its own mask.
        first_sentinel, noise_density, mean_noise_span_length, rng: see above.
    Returns:
        inputs: int [n, s], targets: int [n, t]; the lengths are those of every row, as the counts do not vary.
    """
    masks = [random_spans_noise_mask(tokens.shape[1], noise_density, mean_noise_span_length, rng) for _ in tokens]
    return tuple(np.stack([np.append(replace(row, mask, first_sentinel), eos)
                           for row, mask in zip(tokens, masks, strict=True)])
                 for replace in (noise_span_to_unique_sentinel, nonnoise_span_to_unique_sentinel))
