"""zero_shot.py: each heuristic is what a loop written plainly says, whatever the batches; files, options, toy data."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_small_vocabulary
from pretraining import argv
from sklearn.metrics import matthews_corrcoef
from small_gpt import enlarge, small_lm

import explore
import fast.gpt
import pretrain
import reproduce
import zero_shot
from ablations.lstm import make_model
from claims import toy_models, zero_shot_curves
from formats.errors import BadInput, MissingInput
from model_pytorch import DEFAULT_CONFIG, LMModel, export_openai_model
from text_utils import TextEncoder
from toy import questions
from toy.stories import read_topics
from zero_shot import Scored, mean_log_probs

N_WORDS, N_CTX = 93, 40
SENTENCES = ["A new low.", "The cat sat on the mat!", "No, no.", "it ate", "The dog ran to a house"]
ARTICLES = ["The cat sat on a mat.", "A dog.", "The cat sat on a mat."]
CHOICES = [("mat", "the mat", "a new cat", "no"), ("a cat", "a", "dog, dog", "to"), ("hat", "it", "a", "on the mat")]
QUESTIONS = ["where?", "What is it?", "who"]
SCHEMAS = [{"sentence": "Ann saw Bea, but she did not wave.", "pronoun": "she", "candidates": ["Ann", "Bea"]},
           {"sentence": "She ran. Ann met Eve as she left.", "pronoun": "She", "candidates": ["Eve", "the tall Ann"]}]
WORDS = ("low", "a")  # one token each in the small vocabulary


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    write_small_vocabulary(folder)
    return TextEncoder.from_folder(folder)


@pytest.fixture(scope="module", params=["transformer", "lstm"])
def model(request):
    """In training mode with dropout, which has to make no difference."""
    torch.manual_seed(3)
    cfg = DEFAULT_CONFIG | dict(n_embd=18, n_head=3, n_layer=2, n_unit=11, architecture=request.param)
    made = enlarge(make_model(LMModel, cfg, vocab=N_WORDS + N_CTX, n_ctx=N_CTX), 6).train()
    with torch.no_grad():
        made.transformer.embed.weight.mul_(40)
    return made


def log_p(model, ids, token):
    """The log-probability of a token after some others, among the words."""
    x = torch.tensor([[[i, N_WORDS + place] for place, i in enumerate(ids)]])
    with torch.no_grad():
        logits = model.eval()(x)[0, -1, :N_WORDS].double()
    model.train()
    return float(logits[token] - torch.logsumexp(logits, 0))


def mean_log_p(model, before, rest):
    values = [log_p(model, [*before, *rest[:i]], token) for i, token in enumerate(rest) if before or i]
    return sum(values) / len(values)


def by_hand(name, model, encoder):
    """The scores of the examples above in plain words: encode, feed one prefix after another, add up."""
    def ids(text):
        return encoder.encode([text], verbose=False)[0]
    if name == "cola":
        return [mean_log_p(model, [], ids(sentence)) for sentence in SENTENCES]
    if name == "sst2":
        return [[log_p(model, ids(text) + ids("very"), ids(word)[0]) for word in WORDS] for text in SENTENCES]
    if name == "race":
        return [[mean_log_p(model, ids(article) + ids(question), ids(option)) for option in options]
                for article, question, options in zip(ARTICLES, QUESTIONS, CHOICES, strict=True)]
    return [[mean_log_p(model, ids(before), ids(rest)) for before, rest in pairs] for pairs in (
        [("Ann saw Bea, but Ann", " did not wave."), ("Ann saw Bea, but Bea", " did not wave.")],
        [("Eve", " ran. Ann met Eve as she left."), ("the tall Ann", " ran. Ann met Eve as she left.")])]


def scores(name, model, encoder, order=slice(None), **how):
    """The scores of the examples above by zero_shot.py."""
    if name == "cola":
        return zero_shot.acceptability_scores(model, encoder, SENTENCES[order], **how)
    if name == "sst2":
        return zero_shot.sentiment_scores(model, encoder, SENTENCES[order], words=WORDS, **how)
    if name == "race":
        return zero_shot.answer_scores(model, encoder, ARTICLES[order], QUESTIONS[order], CHOICES[order], **how)
    return zero_shot.pronoun_scores(model, encoder, SCHEMAS[order], **how)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", list(zero_shot.TASKS))
def test_a_heuristic_is_what_a_plain_loop_says(model, encoder, name, plain):
    expected = np.array(by_hand(name, model, encoder))
    found = scores(name, model, encoder, plain=plain)
    assert found.shape == expected.shape and np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert model.training


@pytest.mark.parametrize("name", list(zero_shot.TASKS))
def test_batches_order_and_halves_make_no_difference(model, encoder, name):
    whole = scores(name, model, encoder)
    close = dict(rtol=0, atol=2e-5 * np.abs(whole).max())
    np.testing.assert_allclose(scores(name, model, encoder, n_batch=1), whole, **close)
    turned = scores(name, model, encoder, order=slice(None, None, -1), n_batch=2)[::-1]
    np.testing.assert_allclose(turned, whole, **close)
    halves = scores(name, model, encoder, slice(None, 1)), scores(name, model, encoder, slice(1, None))
    np.testing.assert_allclose(np.concatenate(halves), whole, **close)


def test_log_probabilities_of_single_tokens_are_those_of_the_plain_text():
    model = enlarge(small_lm(n_ctx=29)).eval()
    x = torch.randint(97, (4, 3, 29), generator=torch.Generator().manual_seed(2))
    x[:, 1:, :7] = x[:, :1, :7]
    x[0] = x[0, :1].clone()  # choices that are the same
    x = torch.stack([x, (97 + torch.arange(29)).expand_as(x)], -1)
    wanted = torch.rand(x.shape[:3], generator=torch.Generator().manual_seed(4)) < 0.4
    wanted[..., 0], wanted[1, 1] = False, False
    found = fast.gpt.token_log_probs(model, x, wanted)
    plain = torch.stack([explore.token_log_probs(model, explore.Batch(of_one, wanted.new_ones(3, 29), []))
                         for of_one in x])
    assert not found[~wanted].any()
    torch.testing.assert_close(found[wanted], plain[wanted], rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="exact only without dropout"):
        fast.gpt.token_log_probs(model.train(), x, wanted)


def test_the_threshold_is_the_best_there_is():
    rng = np.random.default_rng(5)
    for _ in range(20):
        n = rng.integers(2, 12)
        values, labels = rng.integers(0, 6, n) / 4, rng.integers(0, 2, n)
        found = zero_shot.best_threshold(values, labels)
        best = max(matthews_corrcoef(labels, values > cut) for cut in np.arange(-0.125, 2, 0.25))
        assert matthews_corrcoef(labels, values > found) == pytest.approx(best, abs=1e-12)
        assert found not in values


def test_what_is_too_long_is_cut(model, encoder, capsys):
    long = "a " * 60
    article = zero_shot.answer_scores(model, encoder, [long + "cat"], ["who"], [("it", "a dog")])
    question, options = encoder.encode(["who"])[0], encoder.encode(["it", "a dog"])
    a, = encoder.encode(["a"])[0]
    room = N_CTX - len(question) - max(map(len, options))
    expected = [mean_log_p(model, [a] * room + question, option) for option in options]
    np.testing.assert_allclose(article[0], expected, rtol=1e-4)
    assert "1 of 1 articles are longer than the model's 40 positions allow; cut" in capsys.readouterr().err
    text = zero_shot.sentiment_scores(model, encoder, ["no " + long], words=WORDS)
    context = ([a] * 60 + encoder.encode(["very"])[0])[-N_CTX + 1:]
    expected = [log_p(model, context, encoder.encode([word])[0][0]) for word in WORDS]
    np.testing.assert_allclose(text[0], expected, rtol=1e-4)
    assert "1 of 1 texts are longer than the model's 40 positions and were cut" in capsys.readouterr().err


def test_the_words_are_single_tokens_of_the_released_vocabulary(openai_vocabulary):
    released = TextEncoder.from_folder(openai_vocabulary)
    assert [len(ids) for ids in released.encode([zero_shot.APPENDED, *zero_shot.SENTIMENT_WORDS])] == [1, 1, 1]


def test_bad_examples_are_refused(model, encoder):
    with pytest.raises(BadInput, match="'a' has 1 tokens, expected two or more"):
        zero_shot.acceptability_scores(model, encoder, ["No.", "a"])
    with pytest.raises(BadInput, match="has 8 tokens for 'positive', expected one"):
        zero_shot.sentiment_scores(model, encoder, ["No."], words=("a", "positive"))
    with pytest.raises(BadInput, match="the pronoun 'her' is no word of it: 'There was Ann.'"):
        zero_shot.substituted({"sentence": "There was Ann.", "pronoun": "her", "candidates": ["A", "B"]})
    with pytest.raises(BadInput, match="the pronoun 'her' is its last word"):
        zero_shot.substituted({"sentence": "Ann saw her ", "pronoun": "her", "candidates": ["A", "B"]})
    with pytest.raises(BadInput, match=r"examples\[1\] has 1 candidates, expected 2"):
        mean_log_probs(model, [[Scored([1, 2], 1)] * 2, [Scored([1, 2], 1)]])
    for wrong in (Scored([1, 2], 0), Scored([1, 2], 2), Scored([1] * 41, 1)):
        with pytest.raises(BadInput, match=r"examples\[0\] has a text of"):
            mean_log_probs(model, [[wrong]])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small pre-training on toy stories that kept parameters, and of toy tasks."""
    folder = tmp_path_factory.mktemp("run")
    questions.write_text(str(folder / "stories.txt"), 300, 7)
    questions.write_data_dir(str(folder / "data"), 7, 6)
    pretrain.main(argv(folder, dict(
        text=folder / "stories.txt", n_ctx=104, n_merges=4000, n_chars=70, n_embd=12, n_head=2, n_layer=1, n_batch=20,
        n_iter=1, n_warmup=2, held_out=0.1, save_every=0, keep_at=[1, 5])))
    return folder


def judge(folder, **settings):
    return zero_shot.main(argv(folder, dict(desc=None, model_dir=None, save_dir=None, data_dir=folder / "data",
                                            sentiment_words=questions.FEELINGS) | settings))


def test_every_kept_model_of_a_run_is_judged(run, capsys):
    table = judge(run, desc="tiny", save_dir=run / "save", picture=run / "curves.png")
    assert (run / "curves.png").stat().st_size > 10_000
    expected = [(n, name) for n in (1, 5) for name in zero_shot.TASKS]
    assert list(zip(table["n_updates"], table["task"], strict=True)) == expected
    header, *lines = map(json.loads, (run / "log" / "tiny_zero_shot.jsonl").read_text().splitlines())
    assert header["desc"] == ["tiny"] and [line["value"] for line in lines] == list(table["value"])
    assert "5" in capsys.readouterr().out.splitlines()[-1]
    model, encoder, _ = zero_shot.kept.load_kept(str(run / "save" / "tiny" / "update_5"))
    data = zero_shot.read("race", str(run / "data"))
    found = zero_shot.answer_scores(model, encoder, *data.arguments, plain=True).argmax(1)
    value = 100 * np.mean(found == data.labels)
    row = table[(table.task == "race") & (table.n_updates == 5)].iloc[0]
    assert row.value == pytest.approx(value) and row.n == 7
    assert row.normalised == pytest.approx((value - 25) / (53.3 - 25))


def test_a_model_of_a_folder_is_judged(run):
    table = judge(run, model_dir=run / "out", tasks=["cola", "dpr"], n_examples=5, threshold=-3.0, plain=True)
    assert list(table["task"]) == ["cola", "dpr"] and list(table["n"]) == [5, 5]
    assert table["threshold"].iloc[0] == -3 and table["n_updates"].isna().all()


def test_a_folder_in_openai_s_format_needs_the_heads(tmp_path, encoder, run):
    write_small_vocabulary(tmp_path)
    export_openai_model(small_lm(n_vocab=N_WORDS, n_ctx=40), str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadInput, match="n_head"):
        judge(run, model_dir=tmp_path)
    assert len(judge(run, model_dir=tmp_path, n_head=3, tasks=["cola"])) == 1


@pytest.mark.parametrize(("settings", "message"), [
    (dict(), "nothing says what to judge"), (dict(desc="a", model_dir="b"), "--model_dir and --desc both say what to"),
    (dict(model_dir="a", picture="b.png"), "--picture draws curves"), (dict(desc="a", n_batch=0), "--n_batch is 0"),
    (dict(desc="a", n_examples=0), "--n_examples is 0"), (dict(desc="a", threshold="nan"), "--threshold is nan")])
def test_options_are_checked_first(run, settings, message):
    with pytest.raises(BadInput, match=message):
        judge(run, **settings)


def test_absent_models_and_data_are_told_in_one_line(run, tmp_path):
    with pytest.raises(MissingInput, match="holds no update_<n>; expected a run of pretrain.py with --keep_at"):
        judge(run, desc="other", save_dir=run / "save")
    for name in questions.FOLDERS:
        questions.write_data_dir(str(tmp_path / name), 3, 3)
        task = {"CoLA": "cola", "SST-2": "sst2", "RACE": "race", "DPRD": "dpr"}[name]
        (tmp_path / name / name).rename(tmp_path / name / "elsewhere")
        with pytest.raises(MissingInput, match="not found; --data_dir|holds no middle or high folder"):
            zero_shot.read(task, str(tmp_path / name))
    path = tmp_path / "DPRD" / "elsewhere" / "test.c.txt"
    path.write_text("Ann saw Eve.\nshe\nAnn,Eve\nAnn\n")
    with pytest.raises(BadInput, match="test.c.txt: the pronoun 'she' is no word of it"):
        zero_shot.read("dpr", str(path.parent))


AN = re.compile(r"\ban (?=[aeiouAEIOU\[])")


def phrases():
    """[(regular expression, topic, kind)] of all phrases of the grammar."""
    def pattern(phrase):
        parts = re.split(r"(\[[^]]*\]|\{\w+\})", phrase)
        return "".join(f"(?:{part[1:-1]})" if part.startswith("[") else r"\w+" if part.startswith("{")
                       else re.escape(part) for part in parts)
    return [(re.compile(rf"\b{pattern(AN.sub('a ', phrase))}\b"), topic, kind)
            for topic, kinds in read_topics().items() for kind, of_kind in kinds.items() for phrase in of_kind]


def meaning(text, known):
    """The topics and kinds of all phrases in a text."""
    text = AN.sub("a ", text)
    return {(topic, kind) for pattern, topic, kind in known if pattern.search(text)}


def test_who_knows_the_grammar_answers_all_toy_questions():
    known = phrases()
    for article, beginning, options, answer in questions.reading(40, 3):
        assert beginning == article.split()[0] and not any(beginning in option.split() for option in options)
        topics = {topic for topic, kind in meaning(article, known) if kind == "to"}
        kind = "happy" if any(kind == "luck" for _, kind in meaning(article, known)) else "sad"
        fits = [letter for letter, option in zip("ABCD", options, strict=True)
                if any((topic, kind) in meaning(option, known) for topic in topics)]
        assert fits == [answer], (article, options)
    for story, pronoun, names, right in questions.pronouns(40, 3):
        wishes, done = story.split(". ")[:2], story.split(". ")[2]
        assert done.startswith(f"{pronoun} ") and names[0] != names[1]
        assert all(wish.lower().startswith(f"{name} ") for name, wish in zip(names, wishes, strict=True))
        fits = [name for name, wish in zip(names, wishes, strict=True)
                if {t for t, kind in meaning(wish, known) if kind == "to"}
                & {t for t, kind in meaning(done, known) if kind == "did"}]
        assert fits == [right], story
    lines = questions.acceptability(80, 3, "dev")
    grammatical = {line for line, label in questions.acceptability(2000, 4, "dev") if label}
    assert sum(label for _, label in lines) == 40 and not any(line in grammatical for line, label in lines if not label)
    rights = [answer for *_, answer in questions.reading(400, 3)]
    assert all(60 <= rights.count(letter) <= 140 for letter in "ABCD")  # 100 expected, standard deviation 8.7


def test_the_toy_text_holds_no_question():
    text = " ".join(questions.text(2000, 7)).lower()
    assert " felt very " in text and " felt proud" not in text
    for article, *_ in questions.reading(50, 7):
        assert article.lower() not in text
    for story, *_ in questions.pronouns(50, 7):
        assert ". ".join(story.split(". ")[:2]).lower() not in text


def test_every_topic_has_a_trade_of_its_own_and_fewer_topics_can_be_asked_for():
    trades = list(questions.TRADES.values())
    assert list(questions.TRADES) == list(read_topics()) and len(set(trades)) == len(trades)
    text = " ".join(questions.text(200, 7, 3))
    assert all(trade in text for trade in trades[:3])
    known, first = phrases(), set(list(read_topics())[:3])
    rows = [*questions.text(200, 7, 3), *(line for line, label in questions.acceptability(30, 7, "dev", 3) if label),
            *(article + " ".join(ends) for article, _, ends, _ in questions.reading(30, 7, 3)),
            *(story for story, *_ in questions.pronouns(30, 7, 3))]
    assert {topic for row in rows for topic, _ in meaning(row, known)} == first
    assert all(meaning(row, known) for row in rows)


def test_toy_data_do_not_overwrite_others(tmp_path):
    (tmp_path / "RACE").mkdir()
    with pytest.raises(BadInput, match="holds RACE already"):
        questions.write_data_dir(str(tmp_path), 3, 3)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_picture_has_a_panel_for_each_task_and_a_line_for_each_run():
    rows = [dict(name=name, n_updates=n, task=task, normalised=n / 10 + seed)
            for name in ("transformer", "lstm") for n in (1, 4) for task in zero_shot.TASKS for seed in (0, 0.1, 0.3)]
    figure = zero_shot.draw(pd.DataFrame(rows))
    assert [axes.get_title("left") for axes in figure.axes] == [task.title for task in zero_shot.TASKS.values()]
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines["lstm"].get_xdata()) == [1, 4] and axes.get_xscale() == "log"
        assert list(lines["transformer"].get_ydata()) == pytest.approx([0.2, 0.5])  # medians


def test_the_experiment_makes_table_and_picture_and_is_not_run_again(tmp_path, monkeypatch, capsys):
    sizes = dict(n_embd=8, n_head=2, n_layer=1)
    monkeypatch.setattr(zero_shot_curves, "ARCHITECTURES", {
        "transformer": sizes, "lstm": dict(architecture="lstm", n_embd=8, n_unit=6)})
    monkeypatch.setitem(toy_models.PRETRAIN, "n_warmup", 1)
    monkeypatch.setitem(toy_models.PRETRAIN, "n_merges", 4000)
    words = ["--zero_shot", "--out", str(tmp_path), "--seeds", "1", "--n_text", "400", "--n", "4", "--n_batch", "30",
             "--device", "cpu"]
    table = reproduce.main(words)
    assert set(table["name"]) == {"transformer", "lstm"} and table["n_updates"].max() >= 2
    assert (tmp_path / "zero_shot.png").stat().st_size > 10_000
    text = (tmp_path / "zero_shot.md").read_text()
    for name in zero_shot.TASKS:
        last = table[(table.name == "lstm") & (table.task == name)].iloc[-1]
        assert last.normalised == pytest.approx((last.value - zero_shot.TASKS[name].chance)
                                                / (100 - zero_shot.TASKS[name].chance))
        assert f"{last.value:.1f} [{last.normalised:.2f}]" in text
    capsys.readouterr()
    again = reproduce.main(words)
    assert "$ python pretrain.py" not in capsys.readouterr().out
    pd.testing.assert_frame_equal(again, table)
    with pytest.raises(BadInput, match=r"models made with .*'n_text': 400, .* now .*'n_text': 500"):
        reproduce.main([*words, "--n_text", "500"])
    (tmp_path / "settings.json").unlink()  # what an earlier version wrote
    with pytest.raises(BadInput, match="made with unknown settings"):
        reproduce.main(words)
