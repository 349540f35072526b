"""explore: what it reads out of the models is what passes through them, and padding changes nothing."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import write_small_vocabulary
from matplotlib.figure import Figure
from pretraining import stories
from small_gpt import ALL_DROPOUTS, enlarge, small_lm
from small_gpt import small_model as small_double
from small_t5 import odd_batch, small_model

import analysis
import explore
from formats.errors import BadInput
from model_pytorch import LMModel, dotdict, export_openai_model
from pretrain_t5 import learn_vocabulary
from t5_decoding import beam_search
from t5_pytorch import EOS, T5, export_t5_model, shift_right

TEXTS = ["A new low.", "The cat sat on the mat!", "No"]
ROWS = [[5, 9, 3, 3, 80, 41, 7], [8, 2], [96, 1, 4, 4, 0, 13, 22, 9, 30, 5, 1]]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """(model in training mode with dropout, encoder), read from a folder as a user has it."""
    folder = tmp_path_factory.mktemp("gpt")
    write_small_vocabulary(folder)
    torch.manual_seed(3)
    cfg = dotdict(n_embd=18, n_head=3, n_layer=2, afn="gelu", embd_pdrop=0.3, attn_pdrop=0.3, resid_pdrop=0.3)
    export_openai_model(enlarge(LMModel(cfg, vocab=93 + 40, n_ctx=40)), str(folder))
    model, encoder = explore.load_gpt(folder)
    assert not model.training
    return model.train(), encoder


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """(model in training mode with dropout, encoder), read from a folder."""
    folder = tmp_path_factory.mktemp("t5")
    (folder / "spiece.model").write_bytes(learn_vocabulary(stories(100), 60))
    torch.manual_seed(5)
    both = dict(num_tokens=256, depth=2, heads=3, dim_head=5)
    model = T5(dim=12, d_ff=20, dropout=0.3, **{f"{side}_{k}": v for side in ("enc", "dec") for k, v in both.items()})
    export_t5_model(model, str(folder))
    model, encoder = explore.load_t5(folder)
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.3
    return model.train(), encoder


def alone(model, rows):
    """Each row as a batch of its own."""
    return [explore.batch_of_ids(model, [row]) for row in rows]


def same(ours, plain):
    assert ours.shape == plain.shape
    torch.testing.assert_close(ours, plain, atol=1e-5 * max(plain.abs().max().item(), 1), rtol=1e-4)


def test_a_batch_holds_ids_positions_mask_and_pieces(gpt, t5):
    model, encoder = gpt
    texts = explore.batch(model, encoder, TEXTS)
    rows = encoder.encode(TEXTS, verbose=False)
    longest = max(map(len, rows))
    assert texts.x.shape == (3, longest, 2) and texts.x.dtype == torch.int64
    assert [row[:len(ids)] for row, ids in zip(texts.x[..., 0].tolist(), rows, strict=True)] == rows
    assert texts.mask.sum(1).tolist() == [len(row) for row in rows]
    assert texts.x[1, :, 1].tolist() == list(range(93, 93 + longest))
    assert "".join(texts.tokens[0]) == "anewlow." and repr(texts) == f"Batch(3 texts of 2 to {longest} tokens)"
    model, encoder = t5
    texts = explore.batch(model, encoder, ["Ann wanted a cake.", "Tom"])
    assert [row[-1] for row in (r[m].tolist() for r, m in zip(texts.x, texts.mask, strict=True))] == [EOS, EOS]
    assert len(texts.tokens[1]) == texts.mask[1].sum() and texts.x[1, -1] == 0


def test_gpt_s_hidden_states_are_those_of_the_plain_text_and_padding_changes_nothing():
    model = enlarge(small_lm(**ALL_DROPOUTS)).train()
    modes = [module.training for module in model.modules()]
    texts = explore.batch_of_ids(model, ROWS)
    states = explore.hidden_states(model, texts)
    assert states.shape == (3, 3, 11, 36) and not states.requires_grad and not states.is_inference()
    assert [module.training for module in model.modules()] == modes and not any(
        module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.eval()
    for i, one in enumerate(alone(model, ROWS)):
        x, n = one.x, one.x.size(1)
        h = model.transformer.embed(x).sum(2)
        same(states[0, i, :n], h[0])
        for layer, block in enumerate(model.transformer.h, 1):
            h = block(h)
            same(states[layer, i, :n], h[0])
        same(explore.means(states, texts.mask)[-1, i], h[0].mean(0))
    same(explore.hidden_states(model.transformer, texts.x), states)


@pytest.mark.parametrize("of", [small_lm, small_double])
def test_gpt_s_attention_makes_the_model_s_output(of):
    model = enlarge(of(**ALL_DROPOUTS))
    texts = explore.batch_of_ids(model, ROWS)
    weights = explore.attention(model, texts)
    assert weights.shape == (2, 3, 3, 11, 11)
    assert weights.triu(1).abs().max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 3, 11))
    states = explore.hidden_states(model, texts)
    model.eval()
    for layer, block in enumerate(model.transformer.h):  # the output, computed again from the weights
        v = block.attn.c_attn(states[layer])[..., 72:].unflatten(-1, (3, 12)).transpose(1, 2)
        a = block.attn.c_proj((weights[layer] @ v).transpose(1, 2).flatten(2))
        n = block.ln_1(states[layer] + a)
        same(states[layer + 1], block.ln_2(n + block.mlp(n)))


def test_gpt_s_log_probabilities_are_the_loss_among_words_and_padding_changes_nothing():
    model = enlarge(small_lm(**ALL_DROPOUTS), 3).train()
    texts = explore.batch_of_ids(model, ROWS)
    log_p = explore.token_log_probs(model, texts)
    model.eval()
    assert log_p[:, 0].isnan().all() and torch.equal(log_p[:, 1:].isnan(), ~texts.mask[:, 1:])
    for i, row in enumerate(ROWS):
        logits = model(alone(model, [row])[0].x)[0, :-1, :97]
        same(log_p[i, 1:len(row)], -F.cross_entropy(logits, torch.tensor(row[1:]), reduction="none"))


def test_surprisal_and_next_words_are_tables(gpt):
    model, encoder = gpt
    table = explore.surprisal(model, encoder, TEXTS, n_batch=2)
    rows = encoder.encode(TEXTS, verbose=False)
    assert table["text"].tolist() == [i for i, row in enumerate(rows) for _ in row]
    assert list(table.columns) == ["text", "position", "token", "surprisal"]
    want = -explore.token_log_probs(model, explore.batch(model, encoder, TEXTS[2:]))[0]
    assert table[table["text"] == 2]["surprisal"].tolist()[1:] == pytest.approx(want.tolist()[1:], rel=1e-4)
    words = explore.next_words(model, encoder, TEXTS, n=4)
    assert words["text"].tolist() == [text for text in TEXTS for _ in range(4)]
    assert explore.next_words(model, encoder, TEXTS, n=93)["probability"].sum() == pytest.approx(3, rel=1e-4)
    for text, found in words.groupby("text"):
        alone_words = explore.next_words(model, encoder, [text], n=4)
        assert found["token"].tolist() == alone_words["token"].tolist()
        assert found["probability"].tolist() == pytest.approx(alone_words["probability"].tolist(), rel=1e-4)
        greedy = explore.continue_texts(model, encoder, [text], n_tokens=1)[0]
        assert greedy.replace(" ", "").endswith(found["token"].tolist()[0])
    with pytest.raises(BadInput, match=r"^n is 94, expected 1 to 93"):
        explore.next_words(model, encoder, TEXTS, n=94)


def test_each_row_of_a_padded_batch_goes_on_from_its_own_end(gpt):
    model, encoder = gpt
    together = explore.continue_texts(model, encoder, TEXTS, n_tokens=9)
    assert together == [explore.continue_texts(model, encoder, [text], n_tokens=9)[0] for text in TEXTS]
    texts = explore.batch(model, encoder, TEXTS)
    new = explore.continue_batch(model, texts, 9)
    assert new.shape == (3, 9) and new.unique().numel() > 2 and new.max() < 93
    one = explore.batch(model, encoder, TEXTS[2:])
    assert torch.equal(explore.continue_batch(model, one.x, 9)[0], new[2])


def test_sentence_vectors_do_not_depend_on_their_neighbours(gpt, t5):
    for model, encoder in (gpt, t5):
        texts = TEXTS if model is gpt[0] else stories(3)
        vectors = explore.sentence_vectors(model, encoder, texts, n_batch=2)
        for i, text in enumerate(texts):
            same(vectors[i], explore.sentence_vectors(model, encoder, [text])[0])
        cosines = explore.similarities(vectors)
        assert cosines.diagonal().tolist() == pytest.approx([1] * 3)
        assert cosines[0, 1] == pytest.approx(F.cosine_similarity(vectors[0], vectors[1], 0).item(), abs=1e-5)


def test_means_leave_out_padding_whatever_stands_there():
    states, mask = torch.randn(2, 3, 4, 5), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    states[:, 0, 2:] = math.nan
    torch.testing.assert_close(explore.means(states, mask)[1, 0], states[1, 0, :2].mean(0))
    with pytest.raises(BadInput, match=r"mask is \[3, 5\]"):
        explore.means(states, torch.ones(3, 5).bool())
    with pytest.raises(BadInput, match="row 1"):
        explore.means(states, torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool())


@pytest.mark.parametrize("version", [{}, dict(feed_forward="gated-gelu", tie_logits=False)])
def test_t5_finds_its_padding_and_gives_states_attention_and_log_probabilities(version):
    model, (src, tgt) = small_model(dropout=0.3, **version).train(), odd_batch()
    states = explore.hidden_states(model, src, tgt)
    weights = explore.attention(model, src, tgt)
    log_p = explore.token_log_probs(model, src, tgt)
    model.eval()
    same(states.encoder[-1], model.encode(src, src != 0))
    logits = model(src, shift_right(tgt), src != 0, tgt != 0)
    same(model.logits(states.decoder[-1]), logits)
    assert states.encoder.shape == (3, 3, 11, 20) and states.decoder.shape == (4, 3, 7, 20)
    assert weights.encoder.shape == (2, 3, 3, 11, 11) and weights.decoder.shape == (3, 3, 3, 7, 7)
    assert weights.cross.shape == (3, 3, 3, 7, 11)
    padding = (src == 0)[:, None, None]
    for of_source in (weights.encoder, weights.cross):
        assert of_source.masked_select(padding.expand_as(of_source[0])).abs().max() == 0
        torch.testing.assert_close(of_source.sum(-1), torch.ones(of_source.shape[:-1]))
    assert weights.decoder.triu(1).abs().max() == 0
    want = logits.log_softmax(-1).gather(-1, tgt[..., None])[..., 0]
    assert torch.equal(log_p.isnan(), tgt == 0)
    same(log_p[tgt != 0], want[tgt != 0])
    for i in range(3):  # and each row alone, without padding
        s, t = src[i][src[i] != 0][None], tgt[i][tgt[i] != 0][None]
        same(explore.token_log_probs(model, s, t)[0], log_p[i][tgt[i] != 0])
        one = explore.hidden_states(model, s, t)
        same(one.encoder[:, 0], states.encoder[:, i, :s.size(1)])
        same(one.decoder[:, 0], states.decoder[:, i, :t.size(1)])
        same(explore.attention(model, s, t).cross[:, 0], weights.cross[:, i, :, :t.size(1), :s.size(1)])
    assert explore.hidden_states(model, src).decoder is None and explore.attention(model, src).cross is None
    assert repr(weights) == ("T5Attention(encoder=[2, 3, 3, 11, 11], decoder=[3, 3, 3, 7, 7], "
                             "cross=[3, 3, 3, 7, 11])")


def test_answers_have_scores_and_come_from_the_best_down(t5):
    model, encoder = t5
    texts = ["Ann wanted a cake.", "Tom looked for it. \"A kite!\" said Tom.", "Zoë"]
    table = explore.answers(model, encoder, texts, n_best=3, max_length=6)
    some = explore.batch(model, encoder, texts)
    ids, scores = beam_search(model, some.x, some.mask, 6, n_best=3, return_scores=True)
    assert table["text"].tolist() == [text for text in texts for _ in range(3)]
    assert table["answer"].tolist() == [encoder.decode(row) for rows in ids for row in rows]
    assert table["score"].tolist() == pytest.approx(scores.flatten().tolist(), rel=1e-4)
    assert explore.answers(model, encoder, texts, max_length=6)["answer"].tolist() == table["answer"].tolist()[::3]
    assert len(explore.answers(model, encoder, texts, n_best=7, max_length=3)) >= 3 * 4


def test_what_does_not_fit_is_refused_in_the_words_of_the_caller(gpt, t5):
    model, encoder = gpt
    answers = {
        r"^encode takes a list of texts, but got str 'A cat'": lambda: explore.batch(model, encoder, "A cat"),
        r"^texts is the string 'A cat', expected a list": lambda: explore.surprisal(model, encoder, "A cat"),
        r"^texts\[1\] is NoneType 'None', expected a string": lambda: explore.batch(model, encoder, ["A", None]),
        r"^texts\[0\] is float 'nan', expected a string": lambda: explore.batch(model, encoder, [math.nan]),
        r"^texts\[1\] has no tokens": lambda: explore.batch(model, encoder, ["A", " "]),
        r"^there are no texts": lambda: explore.batch(model, encoder, []),
        r"^texts\[1\] has 41 tokens, but the model has 40 positions \(n_ctx\)":
            lambda: explore.batch(model, encoder, ["a", "a " * 41]),
        r"^texts\[0\] has token ids from 5 to 93, but the model's are 0 to 92":
            lambda: explore.batch_of_ids(model, [[5, 93]]),
        r"^targets are for a T5": lambda: explore.attention(model, alone(model, [[1]])[0], torch.ones(1, 1).long()),
        r"^texts is torch.int64 \[1, 1\], expected a Batch .*, or int \[b, t, 2\]":
            lambda: explore.hidden_states(model, torch.ones(1, 1).long()),
        r"^targets is None": lambda: explore.token_log_probs(t5[0], torch.ones(1, 1).long()),
        r"^model is Linear, expected a GPT": lambda: explore.batch(torch.nn.Linear(2, 2), encoder, ["a"]),
        r"^model is T5, expected a GPT with a": lambda: explore.continue_texts(*t5, ["a"]),
        r"^model is LMModel, expected a T5; a GPT continues texts": lambda: explore.answers(model, encoder, ["a"]),
        r"^model is TransformerModel, expected a GPT with a language-model head":
            lambda: explore.next_words(model.transformer, encoder, ["a"]),
    }
    for message, call in answers.items():
        with pytest.raises(BadInput, match=message):
            call()


def drawn(figure):
    """That this is a picture which a notebook shows: its PNG is not small."""
    assert isinstance(figure, Figure) and figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    return figure


def test_what_is_read_can_be_drawn(gpt, t5, tmp_path):
    model, encoder = gpt
    texts = explore.batch(model, encoder, TEXTS)
    weights = explore.attention(model, texts)
    figure = drawn(analysis.draw_attention(weights[:, 2], texts.tokens[2], out=str(tmp_path / "a.png")))
    assert len(figure.axes) == 6 and (tmp_path / "a.png").stat().st_size > 1000
    image = figure.axes[4].images[0].get_array()
    assert image.shape == (2, 2) and image.tolist() == pytest.approx(weights[1, 2, 1, :2, :2].numpy())
    with pytest.raises(BadInput, match=r"^weights are \[2, 3, 3, \d+, \d+\], expected \[layers, heads, 2 or more"):
        analysis.draw_attention(weights, texts.tokens[2])
    table = explore.surprisal(model, encoder, TEXTS)
    figure = drawn(analysis.draw_surprisal(table))
    heights = [bar.get_height() for axes in figure.axes for bar in axes.patches]
    assert heights == pytest.approx(table["surprisal"].fillna(0).tolist())
    cosines = explore.similarities(explore.sentence_vectors(model, encoder, TEXTS))
    figure = drawn(analysis.draw_similarities(cosines, TEXTS))
    assert [text.get_text() for text in figure.axes[0].texts][1] == f"{cosines[0, 1]:.2f}"
    model, encoder = t5
    source, target = (explore.batch(model, encoder, [text]) for text in stories(2))
    cross = explore.attention(model, source, target).cross
    drawn(analysis.draw_attention(cross[:, 0], source.tokens[0], target.tokens[0]))
