"""The LSTM of the ablations: its equations, causality, padding, the heads, its files, and the whole way of a run."""

import json
import shutil

import numpy as np
import pytest
import torch
from cloze_data import options, write_data_dir
from limits import agree
from pretraining import argv, write_text
from small_gpt import HEADS, N_CTX, N_VOCAB, batch_for, lm_batch, story_batch

import fast.gpt
import generate
import predict
import pretrain
import train
from ablations.lstm import LSTM, export_lstm, load_language_model, load_pretrained_lstm, make_model
from formats.errors import BadInput, MissingInput, warn_once
from formats.gpt_files import read_pretrained
from formats.lstm_files import FILE, read_lstm
from loss import double_head_loss, lm_losses, word_loss
from model_pytorch import DEFAULT_CONFIG, DoubleHeadModel, LMModel, export_hub_model, export_openai_model
from training.finetuned import load_finetuned
from training.precision import for_evaluation
from utils import run_script

CONFIG = DEFAULT_CONFIG | dict(architecture="lstm", n_embd=30, n_unit=43, embd_pdrop=0, resid_pdrop=0, clf_pdrop=0)


def small(head="multiple_choice", seed=0, **settings):
    torch.manual_seed(seed)
    model = make_model(DoubleHeadModel, CONFIG | settings, N_VOCAB + 2, head, vocab=N_VOCAB + 3 + N_CTX, n_ctx=N_CTX)
    return enlarged(model)


def small_lm(seed=0, **settings):
    torch.manual_seed(seed)
    return enlarged(make_model(LMModel, CONFIG | settings, vocab=N_VOCAB + N_CTX, n_ctx=N_CTX))


def enlarged(model):
    """Weights so large that every input matters."""
    with torch.no_grad():
        model.transformer.embed.weight *= 20
        model.transformer.h[0].c_proj.w *= 20
        model.transformer.h[0].c_proj.b.normal_()
    return model


def test_the_equations():
    """Gates i, f, g, o of x W + h U + b, as Hochreiter and Schmidhuber's LSTM with a forget gate has them."""
    torch.manual_seed(3)
    block = LSTM(14, 11, resid_pdrop=0)
    x, w = torch.randn(4, 9, 14), block.lstm
    h, c, outputs = torch.zeros(4, 11), torch.zeros(4, 11), []
    for t in range(9):
        gates = x[:, t] @ w.weight_ih_l0.T + w.bias_ih_l0 + h @ w.weight_hh_l0.T + w.bias_hh_l0
        i, f, g, o = gates.split(11, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h @ block.c_proj.w + block.c_proj.b)
    agree(block(x), torch.stack(outputs, 1), 1e-5)


def test_the_paper_s_size():
    with torch.device("meta"):
        model = make_model(LMModel, DEFAULT_CONFIG | {"architecture": "lstm", "n_unit": 2048})
    assert [list(p.shape) for p in model.transformer.h.parameters()] == [
        [8192, 768], [8192, 2048], [8192], [8192], [2048, 768], [768]]
    assert model.lm_head.decoder.weight is model.transformer.embed.weight


def test_a_position_sees_what_comes_before_it_alone():
    model, x = small_lm(), lm_batch()
    other = x.clone()
    other[:, 9, 0] = (other[:, 9, 0] + 1) % N_VOCAB
    with torch.no_grad():
        a, b = model(x), model(other)
    assert torch.equal(a[:, :9], b[:, :9])
    assert all((a[:, t] - b[:, t]).abs().max() > 1e-3 for t in range(9, 12))


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_padding_changes_nothing(head):
    model, (x, m, y) = small(head), batch_for(head)
    padded = x.clone()
    padded[..., 0] = torch.where(m > 0, x[..., 0], torch.randint(N_VOCAB, m.shape))
    assert not torch.equal(x, padded)
    for lm_coef in (0, 0.5):
        agree(*(double_head_loss(*model(ids), ids, m, y, lm_coef)[0] for ids in (padded, x)), 1e-6)
    row = m.flatten(0, -2).sum(1).argmin()
    n = int(m.flatten(0, -2)[row].sum())
    with torch.no_grad():
        h = model.transformer(x).flatten(0, -3)
        alone = model.transformer(x.flatten(0, -3)[row, None, :n])
    agree(h[row, :n], alone[0], 1e-5)


def test_no_state_passes_from_a_sequence_to_the_next():
    """Each choice of an example, and each example of a batch, is read as if it were alone."""
    model, (x, _, _) = small().eval(), story_batch(4, examples=4, choices=3)
    with torch.no_grad():
        together = fast.gpt.task_logits(model, x)
        alone = torch.stack([torch.cat([model(example[None, k:k + 1])[1][0] for k in range(3)])
                             for example in x])
        backwards = model.task_logits(x.flip(0, 1)).flip(0, 1)
    agree(together, alone, 1e-5)
    agree(together, backwards, 1e-5)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_two_half_batches_are_one(head):
    model, (x, m, y) = small(head), batch_for(head)
    x, m, y = x[:4], m[:4], y[:4]

    def gradients(*parts):
        model.zero_grad()
        for rows in parts:
            loss = fast.gpt.losses(model, x[rows], m[rows], y[rows], 0.5)[0] / len(parts)
            loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    for half, whole in zip(gradients(slice(2), slice(2, 4)), gradients(slice(4)), strict=True):
        agree(half, whole, 1e-4)
        assert whole.abs().max() > 0 or whole.shape == (1,)  # the bias of multiple choice has no gradient


def test_the_fast_functions_take_the_plain_text_and_say_so(capsys):
    warn_once.cache_clear()
    model, (x, m, y) = small(), story_batch(5)
    lm, ids = small_lm(), lm_batch()
    plain = double_head_loss(*model(x), x, m, y, 0.5)
    assert torch.equal(fast.gpt.losses(model, x, m, y, 0.5)[0], plain[0])
    assert torch.equal(fast.gpt.lm_loss(lm, ids), lm.loss(ids))
    assert torch.equal(fast.gpt.lm_word_loss(lm, ids), word_loss(lm(ids), ids, N_VOCAB))
    err = capsys.readouterr().err
    assert err.count("transformer.h.0 is a LSTM, which the fast functions do not know; the plain text runs") == 2


@pytest.mark.parametrize("dropout", ["embd_pdrop", "resid_pdrop", "clf_pdrop"])
def test_dropout_acts_in_training_alone(dropout):
    model, (x, m, y) = small(**{dropout: 0.3}), story_batch(6)
    losses = {double_head_loss(*model(x), x, m, y, 0.5)[0].item() for _ in range(2)}
    assert len(losses) == 2
    model.eval()
    assert len({double_head_loss(*model(x), x, m, y, 0.5)[0].item() for _ in range(2)}) == 1


def test_evaluation_in_bfloat16():
    model, ids = small_lm(), lm_batch()
    short = for_evaluation(model, "bf16")
    assert short.transformer.h[0].lstm.weight_hh_l0.dtype == torch.bfloat16
    with torch.no_grad():
        agree(short(ids).float(), model(ids), 0.03)


# ---- files


def test_what_is_exported_is_loaded_bit_for_bit(tmp_path):
    model, ids = small_lm(embd_pdrop=0.2, resid_pdrop=0.1), lm_batch()
    export_lstm(model, str(tmp_path))
    loaded = load_language_model(str(tmp_path))
    assert not loaded.training and loaded.transformer.embd_dropout.p == 0.2 and loaded.transformer.h[0].dropout.p == 0.1
    with torch.no_grad():
        assert torch.equal(loaded(ids), model.eval()(ids))
    for n_transfer, n_loaded in ((1, 7), (0, 1), (-1, 0)):
        torch.manual_seed(1)
        fresh, np_state = small(seed=8), np.random.RandomState(2).get_state()
        before = [p.clone() for p in fresh.transformer.parameters()]
        np.random.set_state(np_state)
        report = load_pretrained_lstm(fresh, str(tmp_path), n_ctx=N_CTX, n_special=3, n_transfer=n_transfer,
                                      verbose=False)
        after = list(fresh.transformer.parameters())
        assert (len(report["loaded"]), len(report["fresh"])) == (n_loaded, 7 - n_loaded)
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [i >= n_loaded for i in range(7)]
        if n_transfer >= 0:
            we, special = fresh.transformer.embed.weight, np.random.RandomState(2).randn(3, 30) * 0.02
            trained = model.transformer.embed.weight
            assert torch.equal(we[:N_VOCAB], trained[:N_VOCAB]) and torch.equal(we[-N_CTX:], trained[-N_CTX:])
            agree(we[N_VOCAB:N_VOCAB + 3], torch.from_numpy(special).float(), 1e-6)
            assert fresh.lm_head.decoder.weight is we
        if n_transfer == 1:
            for name, p in fresh.transformer.h.named_parameters():
                assert torch.equal(p, model.transformer.h.get_parameter(name)), name


def changed(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path):
    export_lstm(small_lm(), str(tmp_path / "good"))

    def refused(match, change, kind=BadInput):
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        change(folder)
        with pytest.raises(kind, match=match) as error:
            read_lstm(str(folder))
        assert "\n" not in str(error.value)

    refused("not found; expected a folder that pretrain.py", lambda f: (f / FILE).unlink(), MissingInput)
    refused("config.json: not found", lambda f: (f / "config.json").unlink(), MissingInput)
    refused('model_type is "bert"', lambda f: changed(f, model_type="bert"))
    refused(r"h.0.lstm.weight_ih_l0 is \[172, 30\], expected \[176, 30\]", lambda f: changed(f, n_unit=44))
    refused("n_embd is null", lambda f: changed(f, n_embd=None))
    refused("resid_pdrop is 1.5", lambda f: changed(f, resid_pdrop=1.5))
    refused("lstm.safetensors", lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-4]))


def test_lstm_and_transformer_are_not_mistaken_for_each_other(tmp_path):
    lstm, gpt = small_lm(), LMModel(DEFAULT_CONFIG | dict(n_embd=30, n_head=3, n_layer=1), N_VOCAB + N_CTX, N_CTX)
    export_lstm(lstm, str(tmp_path / "lstm"))
    export_openai_model(gpt, str(tmp_path / "gpt"))
    for call, match in ((lambda: read_pretrained(str(tmp_path / "lstm")), "holds an LSTM, no GPT"),
                        (lambda: LMModel.from_pretrained(str(tmp_path / "lstm")), "holds an LSTM, no GPT"),
                        (lambda: export_openai_model(lstm, str(tmp_path / "no")), "a LSTM in the place of its blocks"),
                        (lambda: export_lstm(gpt, str(tmp_path / "no")), "the model is no LSTM"),
                        (lambda: load_pretrained_lstm(gpt, str(tmp_path / "lstm")), "the model is no LSTM"),
                        (lambda: make_model(LMModel, CONFIG | {"architecture": "gru"}), "architecture is 'gru'")):
        with pytest.raises(BadInput, match=match):
            call()
    encoder = type("Encoder", (), {"encoder": {str(i): i for i in range(N_VOCAB)}, "bpe_ranks": {}})
    with pytest.raises(BadInput, match="a LSTM in the place of its blocks"):
        export_hub_model(lstm, str(tmp_path / "no"), encoder)
    with pytest.raises(MissingInput, match=FILE):
        load_pretrained_lstm(lstm, str(tmp_path / "gpt"))
    assert not (tmp_path / "no").exists()
    for wrong, match in ((dict(n_unit=44), "n_unit 44, but"), (dict(n_embd=33), "n_embd is 33")):
        with pytest.raises(BadInput, match=match):
            load_pretrained_lstm(small_lm(**wrong), str(tmp_path / "lstm"))
    for wrong, match in ((dict(n_ctx=N_CTX + 1), "n_ctx is 24"), (dict(n_special=2), "has 120 rows, but"),
                         (dict(n_transfer=2), "n_transfer is 2")):
        with pytest.raises(BadInput, match=match):
            load_pretrained_lstm(lstm, str(tmp_path / "lstm"), **wrong)


# ---- the whole way

SIZES = dict(architecture="lstm", n_embd=12, n_unit=17)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a pre-training run of a tiny LSTM."""
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain.main(argv(folder, dict(text=write_text(folder), n_merges=60, n_ctx=40, n_batch=8, n_iter=12, n_warmup=3,
                                    held_out=0.05, lr=3e-2, init_std=0.1, **SIZES)))
    return folder


def test_pre_training_learns_and_writes_our_format(pretrained):
    lines = [json.loads(line) for line in (pretrained / "log" / "tiny.jsonl").read_text().splitlines()]
    assert lines[0]["n_unit"] == 17 and lines[0]["n_layer"] == 1 and lines[0]["plain"] is True
    costs = [line["va_cost"] for line in lines[1:]]
    assert costs[-1] < costs[0] and lines[-1]["va_ppl"] < 0.8 * lines[-1]["unigram_ppl"]
    assert {path.name for path in (pretrained / "out").iterdir()} == {
        "config.json", FILE, "encoder_bpe_40000.json", "vocab_40000.bpe"}
    model, encoder = generate.load_gpt(str(pretrained / "out"), None, None, torch.device("cpu"))
    ids = torch.tensor(encoder.encode(["ann wanted a"], verbose=False))
    new = generate.generate_gpt(model, ids, 5)
    one_by_one = ids
    for _ in range(5):
        logits = model(generate.with_positions(one_by_one, 0, len(encoder)))[:, -1, :len(encoder)]
        one_by_one = torch.cat([one_by_one, logits.argmax(1)[:, None]], 1)
    assert torch.equal(new, one_by_one[:, ids.size(1):])


def test_fine_tuning_from_it_resuming_and_predicting(pretrained, tmp_path, monkeypatch):
    data_dir = write_data_dir(tmp_path / "data")
    vocabulary = [str(pretrained / "out" / name) for name in pretrain.VOCABULARY]

    def line(**changes):
        settings = dict(n_transfer=1, n_head=None, n_layer=None, n_ctx=40, model_dir=pretrained / "out", **SIZES)
        return options(tmp_path, data_dir, vocabulary, **settings | changes)

    whole = train.main(line(submit=True))
    assert whole.model.transformer.h[0].lstm.hidden_size == 17 and set(whole.accuracies) == {"valid", "test"}
    start = load_language_model(str(pretrained / "out")).transformer.h.state_dict()
    unchanged = train.main(line(desc="unchanged", n_iter=1, lr=0)).model.transformer.h.state_dict()
    trained = whole.model.transformer.h.state_dict()
    assert all(torch.equal(start[name], unchanged[name]) and not torch.equal(start[name], trained[name])
               for name in start)
    train.main(line(desc="first", n_iter=1))
    train.main(line(desc="first", n_iter=1, resume=True))  # finished: nothing to do
    again = train.main(line(desc="again"))
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    found = load_finetuned(str(tmp_path / "save" / "tiny"))
    assert "an LSTM of 17 units" in repr(found)
    rows = [{"context": "a cat sat on the mat", "choice1": "it was glad", "choice2": "low low new"}]
    table = predict.predict(found, rows)
    assert table["label"][0] in ("1", "2") and table[["p_1", "p_2"]].sum(axis=1)[0] == pytest.approx(1)


@pytest.mark.parametrize(("changes", "said"), [
    (dict(n_layer=3), "--n_layer is 3, but an LSTM has one layer"), (dict(n_head=2), "--n_head is 2, but an LSTM"),
    (dict(compile=True), "--compile is for the Transformer's blocks"), (dict(n_unit=0), "--n_unit is 0"),
    (dict(n_transfer=2), "--n_transfer is 2"), (dict(n_unit=18), "--n_unit is 18, but the LSTM in"),
    (dict(architecture="transformer"), "--n_unit is 17, but it is for an LSTM"),
    (dict(n_embd=13), "--n_embd is 13, but the weights in"), (dict(n_ctx=41), "--n_ctx is 41, allowed is 6 to 40")])
def test_options_that_do_not_fit_get_one_line(pretrained, tmp_path, capfd, changes, said):
    settings = dict(n_transfer=12, n_head=None, n_layer=None, n_ctx=40, model_dir=pretrained / "out") | SIZES | changes
    vocabulary = [str(pretrained / "out" / name) for name in pretrain.VOCABULARY]
    capfd.readouterr()
    assert run_script(train.main, options(tmp_path, write_data_dir(tmp_path / "data"), vocabulary, **settings)) == 2
    err = capfd.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "log").exists()


def test_pre_training_goes_on_from_a_folder(pretrained, tmp_path, capfd):
    settings = dict(text=write_text(tmp_path), n_ctx=40, n_batch=16, n_iter=1, n_warmup=1, held_out=0.05, lr=0,
                    init_dir=pretrained / "out", **SIZES)
    pretrain.main(argv(tmp_path, settings))
    before, after = (read_lstm(str(folder / "out")).arrays for folder in (pretrained, tmp_path))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    capfd.readouterr()
    assert run_script(pretrain.main, argv(tmp_path, settings | dict(n_unit=18, model_dir=tmp_path / "b"))) == 2
    assert "--n_unit 18 do not fit" in capfd.readouterr().err


def test_lm_losses_are_the_mean_over_each_sequence():
    model, (x, m, _) = small(), story_batch(7)
    whole = lm_losses(model(x)[0], x.flatten(0, 1), m.flatten(0, 1))
    n = int(m[0, 1].sum())
    alone = x[0, 1, :n][None]
    with torch.no_grad():
        logits = model(alone[None])[0]
    agree(whole[1], lm_losses(logits, alone, torch.ones(1, n))[0], 1e-5)
