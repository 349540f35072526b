"""What a GPU would run, on a stand-in for one (see standin.py): the same numbers, no mixed devices, few waits."""

import copy

import pytest
import small_t5
import standin
import torch
from cloze_data import options, rows, write_data_dir
from conftest import write_small_vocabulary
from limits import agree
from pretraining import argv, stop_after, stories, write_text
from small_gpt import ALL_DROPOUTS, HEADS, batch_for, enlarge, lm_batch, small_lm, small_model, story_batch
from torch._dynamo.testing import CompileCounter

import explore
import fast.devices
import fast.gpt
import fast.packing
import fast.t5
import fast.t5_answers
import generate
import loss
import opt
import pretrain
import pretrain_t5
import train
import train_t5
from fast import matmul
from formats.errors import BadInput
from model_pytorch import LMModel, dotdict, export_openai_model
from t5_pytorch import PAD, T5, export_t5_model, shift_right
from training import distributed, loop
from utils import device_names, read_log, select_device

# torch sees the stand-in's parameters as meta tensors, and says that to copy into them does nothing
pytestmark = pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")


@pytest.fixture
def gpu():
    """The stand-in for a GPU of NVIDIA's, installed."""
    with standin.installed() as gpu:
        yield gpu


def gradients(model):
    return [p.grad.cpu() for p in model.parameters()]


def same(got, want, share=1e-5):
    """Assert that lists of tensors agree, small ones measured by the largest of all."""
    got, want = [x.cpu() for x in got], [x.cpu() for x in want]
    largest = max(x.abs().max().item() for x in want)
    for a, b in zip(got, want, strict=True):
        agree(a, b, share, floor=0.05 * largest)


def near(model, other, share):
    """Assert that the gradients of one model, taken as one vector, are those of another but for a share of it."""
    got, want = (torch.cat([g.double().flatten() for g in gradients(each)]) for each in (model, other))
    assert (got - want).norm() <= share * want.norm()


# The stand-in itself


def test_tensors_say_where_they_are_and_do_not_mix(gpu):
    x = torch.arange(6.).view(2, 3).to("cuda")
    assert x.device == torch.device("cuda", 0) and x.is_cuda and x.T[1].device.type == "cuda"
    assert (x @ x.T).cpu().tolist() == [[5, 14], [14, 50]]
    x[0].mul_(2)  # a view of the same memory
    assert x.sum().item() == 18 and (x + torch.tensor(1.0)).sum().item() == 24
    for mixed in (lambda: x + torch.ones(3), lambda: torch.cat([x, torch.ones(1, 3)]), lambda: x @ torch.ones(3),
                  lambda: torch.nn.functional.embedding(torch.arange(2), x),
                  lambda: x.index_select(0, torch.arange(1))):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises((TypeError, RuntimeError)):
        x.numpy()


def test_random_numbers_come_from_a_state_of_their_own(gpu):
    torch.manual_seed(1)
    here, there = torch.rand(5), torch.rand(5, device="cuda").cpu()
    assert not torch.equal(here, there)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(5, device="cuda").cpu(), there) and torch.equal(torch.rand(5), here)
    state = torch.cuda.get_rng_state()
    first = torch.rand(5, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(5, device="cuda").cpu(), first.cpu())


def test_waits_are_counted_where_they_happen(gpu):
    x = torch.arange(6.).to("cuda")
    for wait in (lambda: x.sum().item(), lambda: bool((x > 3).any()), lambda: x[x > 2], lambda: x.nonzero(),
                 lambda: x.tolist(), lambda: x[torch.tensor([1, 2])], lambda: torch.ones(2).to("cuda"),
                 lambda: torch.ones(2).to("cuda", non_blocking=True), lambda: x.copy_(torch.ones(6))):
        gpu.forget()
        wait()
        assert gpu.waits.total() == 1
    gpu.forget()
    torch.ones(2).pin_memory().to("cuda", non_blocking=True)
    x[x > 2] = 0.0
    x.cumsum(0).argsort()
    assert not gpu.waits and gpu.copies == 1


def test_afterwards_torch_is_as_it_was():
    before = torch.save, torch.load, torch.Generator, torch.cuda.is_available, torch.accelerator.is_available
    with standin.installed():
        pass
    assert before == (torch.save, torch.load, torch.Generator, torch.cuda.is_available, torch.accelerator.is_available)
    assert "device" not in vars(torch.Tensor) and torch.ones(1).device.type == "cpu"


# The models


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
@pytest.mark.parametrize("head", HEADS)
def test_gpt_s_losses_and_gradients_are_the_cpu_s(head, kind):
    model, (x, m, y) = enlarge(small_model(head=head)), batch_for(head)
    want, want_each = fast.gpt.losses(model, x, m, y, 0.5)
    want.backward()
    want_logits = fast.gpt.task_logits(model.eval(), x)
    with standin.installed(kind):
        there = copy.deepcopy(model).to(kind)
        for batch in ((x, m, y), [value.to(kind) for value in (x, m, y)]):
            there.train().zero_grad()
            value, each = fast.gpt.losses(there, *batch, 0.5)
            value.backward()
            agree(value.cpu(), want, 1e-5)
            agree(each.cpu(), want_each, 1e-5)
            same(gradients(there), gradients(model))
            agree(fast.gpt.task_logits(there.eval(), batch[0]).cpu(), want_logits, 1e-5)
        moved = [value.to(kind) for value in (x, m, y)]
        plain = loss.double_head_loss(*there(moved[0]), *moved, 0.5)[0]
        agree(plain.cpu(), want, 1e-5)


def test_a_batch_on_the_cpu_is_never_waited_for(gpu):
    model, (x, m, y) = small_model(**ALL_DROPOUTS).to("cuda"), story_batch(1)
    lm, ids = small_lm().to("cuda"), lm_batch()
    t5, (src, tgt) = small_t5.small_model().to("cuda"), small_t5.odd_batch()
    gpu.forget()
    fast.gpt.losses(model, x, m, y, 0.5)[0].backward()
    fast.gpt.task_logits(model.eval(), x)
    fast.gpt.lm_loss(lm, ids).backward()
    fast.gpt.lm_word_loss(lm.eval(), ids)
    fast.t5.training_loss(t5, src, tgt, 1e-4).backward()
    fast.t5.training_loss(t5, src[:1], tgt[:1], padded=False).backward()
    fast.t5.target_log_probs(t5, src, tgt)
    assert not gpu.waits and gpu.copies > 20


@pytest.mark.parametrize("precision, limit", [("fp32", 1e-5), ("bf16", 0.05)])
@pytest.mark.parametrize("name", small_t5.VERSIONS)
def test_t5_s_losses_and_gradients_are_the_cpu_s(gpu, name, precision, limit):
    model, (src, tgt) = small_t5.small_model(**small_t5.VERSIONS[name]), small_t5.odd_batch()
    want = fast.t5.training_loss(model, src, tgt, 1e-4)
    want.backward()
    scores = fast.t5.target_log_probs(model, src, tgt)
    there = copy.deepcopy(model).to("cuda")
    there.zero_grad()
    with loop.autocast(torch.device("cuda"), precision):
        value = fast.t5.training_loss(there, src, tgt, 1e-4)
    value.backward()
    agree(value.cpu(), want.detach(), limit)
    near(there, model, limit)
    with loop.autocast(torch.device("cuda"), precision):
        agree(fast.t5.target_log_probs(there, src, tgt).detach().cpu(), scores.detach(), limit)


def test_gpt_in_bf16_is_near_and_converts_the_words_once(gpu):
    model, (x, m, y) = small_model(), story_batch(1)
    fast.gpt.losses(model, x, m, y, 0.5)[0].backward()
    there = copy.deepcopy(model).to("cuda")
    there.zero_grad()
    words, converted = there.transformer.embed.weight.shape, []
    dispatch = gpu._run

    def noting(op, args, kwargs, there):
        if "_to_copy" in str(op) and kwargs.get("dtype") == torch.bfloat16 and args[0].shape == words:
            converted.append(op)
        return dispatch(op, args, kwargs, there)

    gpu._run = noting
    with torch.autocast("cuda", dtype=torch.bfloat16):
        value = fast.gpt.losses(there, x, m, y, 0.5)[0]
    value.backward()
    near(there, model, 0.05)
    assert len(converted) == 1


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_what_is_computed_again_drops_the_same(kind, monkeypatch):
    with standin.installed(kind):
        model, (x, m, y) = enlarge(small_model(**ALL_DROPOUTS)).to(kind).train(), story_batch(1)
        found = []
        for keeps in (False, True):
            with monkeypatch.context() as patch:
                if keeps:
                    patch.setattr(matmul, "_keeps_everything", lambda x: True)
                torch.manual_seed(5)
                model.zero_grad()
                fast.gpt.losses(model, x, m, y, 0.5)[0].backward()
                found.append(gradients(model) + [torch.rand(2, device=kind).cpu(), torch.rand(2)])
        same(*found)


def test_where_nothing_is_pinned_copies_wait():
    with standin.installed("mps"):
        assert not fast.devices.has_pinned_memory("mps")


def test_decoding_chooses_the_cpu_s_ids(gpu):
    lm, ids = enlarge(small_lm(), 4).eval(), lm_batch()[..., 0]
    t5, (src, _) = small_t5.small_model(), small_t5.odd_batch()
    want = generate.generate_gpt(lm, ids, 9)
    want_t5 = [fast.t5.generate(t5, src, src != PAD, 9), fast.t5.beam_search(t5, src, src != PAD, 9, prefix=[3, 4])]
    lm, t5, ids, src = lm.to("cuda"), t5.to("cuda"), ids.to("cuda"), src.to("cuda")
    for cached in (True, False):
        assert torch.equal(generate.generate_gpt(lm, ids, 9, cached=cached).cpu(), want)
    assert torch.equal(fast.t5.generate(t5, src, src != PAD, 9).cpu(), want_t5[0])
    assert torch.equal(fast.t5.beam_search(t5, src, src != PAD, 9, prefix=[3, 4]).cpu(), want_t5[1])
    with pytest.raises(BadInput, match="^prefix has token ids from 3 to 53, expected 0 to 52"):
        fast.t5.generate(t5, src, src != PAD, 9, prefix=[3, 53])


def test_decoding_waits_no_more_than_stated(gpu):
    lm, ids = enlarge(small_lm(), 4).eval().to("cuda"), lm_batch()[..., 0].to("cuda")
    t5, src = small_t5.small_model().to("cuda"), small_t5.odd_batch()[0].to("cuda")
    generator = torch.Generator("cuda").manual_seed(3)

    def more(work):  # waits for each of 4 tokens more
        counts = []
        for n in (2, 6):
            gpu.forget()
            work(n)
            counts.append(gpu.waits.total())
        return (counts[1] - counts[0]) / 4

    with torch.no_grad():
        t5.shared.weight[1] = 0  # no EOS
    assert more(lambda n: generate.generate_gpt(lm, ids, n)) == 0
    assert more(lambda n: generate.generate_gpt(lm, ids, n, 1.0, generator=generator)) == 2
    assert more(lambda n: fast.t5.generate(t5, src, src != PAD, n)) == 1
    assert more(lambda n: fast.t5.beam_search(t5, src, src != PAD, n)) == 1
    assert more(lambda n: fast.t5_answers.generate(t5, src, src != PAD, n)) == 1


# The optimizers


@pytest.mark.parametrize("limit", [-1, 0.01, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_openai_adam_steps_as_on_the_cpu_in_one_call_a_decay(gpu, limit, dtype):
    model, (x, m, y) = enlarge(small_model()), story_batch(1)
    fast.gpt.losses(model, x, m, y, 0.5)[0].backward()
    model.to(dtype)
    there = copy.deepcopy(model).to("cuda")
    for p, q in zip(there.parameters(), model.parameters(), strict=True):
        p.grad = q.grad.to(dtype).to("cuda")
        q.grad = q.grad.to(dtype)
    steps = [opt.OpenAIAdam(each.parameters(), 1e-3, "warmup_constant", 0, 9, l2=0.01, max_grad_norm=limit)
             for each in (model, there)]
    gpu.forget()
    for _ in range(2):
        for optimizer in steps:
            optimizer.step()
    assert not gpu.waits
    assert gpu.calls["_fused_adamw_"] == (4 if dtype == torch.float32 else 0)  # 2 steps, with and without decay
    same(there.parameters(), model.parameters(), 1e-6 if dtype == torch.float32 else 1e-2)
    same(gradients(there), gradients(model), 1e-6 if dtype == torch.float32 else 1e-2)


def test_adafactor_steps_as_on_the_cpu(gpu):
    model, (src, tgt) = small_t5.small_model(), small_t5.odd_batch()
    there = copy.deepcopy(model).to("cuda")
    steps = [opt.Adafactor(each.parameters(), 1e-2, min_dim_size_to_factor=16) for each in (model, there)]
    for _ in range(3):
        for each, optimizer in zip((model, there), steps, strict=True):
            optimizer.zero_grad()
            fast.t5.training_loss(each, src, tgt, 1e-4).backward()
            waits = gpu.waits.total()
            optimizer.step()
            assert gpu.waits.total() == waits
    same(there.parameters(), model.parameters())


# The scripts


def parameters_of(folder, desc, file="checkpoint"):
    return list(torch.load(folder / "save" / desc / file, weights_only=True)["model"].values())


def costs_of(folder, desc):
    return [line["va_cost"] for line in read_log(folder / "log" / f"{desc}.jsonl")[1:]]


def waits_before_steps(monkeypatch, gpu, optimizer):
    """Return a list that will hold how often the host had waited when each update's optimizer began its step."""
    step, counts = optimizer.step, []

    def counted(self, closure=None):
        counts.append(gpu.waits.total())
        return step(self, closure)

    monkeypatch.setattr(optimizer, "step", counted)
    return counts


def cloze_run(folder, vocabulary, **changes):
    """The command line of train.py for a tiny run without dropout, of two towers."""
    data_dir = write_data_dir(folder / "data", n_valid_file=30)
    return options(folder, data_dir, vocabulary, **dict(embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, clf_pdrop=0,
                                                       submit=True, save_every=0) | changes)


@pytest.mark.parametrize("kind, extra", [("cuda", {}), ("cuda", dict(plain=True)), ("cuda", dict(precision="bf16")),
                                         ("mps", {}), ("xpu", {})])
def test_train_ends_where_the_cpu_does(tmp_path, small_vocabulary, monkeypatch, kind, extra):
    train.main(cloze_run(tmp_path, small_vocabulary, desc="cpu", **extra))
    predicted = (tmp_path / "submission" / "ROCStories.tsv").read_text()
    trims = []
    monkeypatch.setattr(loop, "give_back_free_pages", lambda: trims.append(0))
    with standin.installed(kind) as gpu:
        counts = waits_before_steps(monkeypatch, gpu, opt.OpenAIAdam)
        found = train.main(cloze_run(tmp_path, small_vocabulary, desc="there", device="auto", **extra))
        assert found.model.transformer.embed.weight.device.type == kind
    assert not trims
    if kind != "mps" and not extra.get("plain"):
        assert counts[1] - counts[0] == 1  # the loss; nothing for each of the towers
    limit = 0.1 if extra.get("precision") else 1e-5
    same(parameters_of(tmp_path, "there"), parameters_of(tmp_path, "cpu"), limit)
    agree(costs_of(tmp_path, "there"), costs_of(tmp_path, "cpu"), limit)
    if not extra.get("precision"):
        assert (tmp_path / "submission" / "ROCStories.tsv").read_text() == predicted


def test_a_run_on_a_gpu_goes_on_bit_for_bit_and_on_a_cpu_too(tmp_path, small_vocabulary, monkeypatch):
    dropouts = dict(embd_pdrop=0.2, attn_pdrop=0.2, resid_pdrop=0.2, clf_pdrop=0.2, device="auto", save_every=1)
    with standin.installed():
        train.main(cloze_run(tmp_path, small_vocabulary, desc="whole", **dropouts))
        with monkeypatch.context() as patch:
            stop_after(patch, opt.OpenAIAdam, 3)
            with pytest.raises(KeyboardInterrupt):
                train.main(cloze_run(tmp_path, small_vocabulary, desc="parts", **dropouts))
        train.main(cloze_run(tmp_path, small_vocabulary, desc="parts", resume=True, **dropouts))
    for a, b in zip(parameters_of(tmp_path, "parts"), parameters_of(tmp_path, "whole"), strict=True):
        assert torch.equal(a, b)
    with monkeypatch.context() as patch:
        stop_after(patch, opt.OpenAIAdam, 3)
        with pytest.raises(KeyboardInterrupt):
            train.main(cloze_run(tmp_path, small_vocabulary, desc="cpu", save_every=1))
    with standin.installed():
        train.main(cloze_run(tmp_path, small_vocabulary, desc="cpu", resume=True, device="auto", save_every=1))
    train.main(cloze_run(tmp_path, small_vocabulary, desc="all_cpu"))
    same(parameters_of(tmp_path, "cpu"), parameters_of(tmp_path, "all_cpu"))


@pytest.mark.parametrize("plain", [False, True])
def test_train_t5_ends_where_the_cpu_does(tmp_path, monkeypatch, plain):
    data_dir = write_data_dir(tmp_path / "data", n_valid_file=30)
    lines = [" ".join(row[1:7]) for row in rows(150)] + ["rocstories choice1: b choice2: c sentence: a"] * 20
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "spiece.model").write_bytes(pretrain_t5.learn_vocabulary(lines, 60))

    def line(**changes):
        return argv(tmp_path, dict(data_dir=data_dir, model_dir=tmp_path / "t5", from_scratch=True, n_valid=9,
                                   n_batch=4, n_gpu=2, n_iter=2, d_model=18, d_ff=30, n_head=3, d_kv=5, n_layer=2,
                                   dropout=0, save_every=0, submit=True, submission_dir=tmp_path / "submission",
                                   plain=plain)
                    | changes)

    train_t5.main(line(desc="cpu"))
    with standin.installed() as gpu:
        counts = waits_before_steps(monkeypatch, gpu, opt.Adafactor)
        train_t5.main(line(desc="there", device="auto"))
    assert plain or counts[1] - counts[0] == 1
    same(parameters_of(tmp_path, "there"), parameters_of(tmp_path, "cpu"))
    agree(costs_of(tmp_path, "there"), costs_of(tmp_path, "cpu"), 1e-5)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("script, optimizer, settings", [
    (pretrain, opt.OpenAIAdam, dict(n_merges=60, n_ctx=10, n_batch=16, n_warmup=3, n_embd=12, n_head=2, n_layer=2,
                                    embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)),
    # At a rate of 1 / sqrt(20) the training is unstable: on the CPU alone, parameters that begin a ten millionth apart
    # end 0.66 apart (the largest is 6), those that MKL and oneDNN multiply 0.97. At 1 / sqrt(2000) all agree.
    (pretrain_t5, opt.Adafactor, dict(n_pieces=60, n_ctx=40, n_batch=8, n_warmup=2000, d_model=12, d_ff=20, n_head=2,
                                      d_kv=5, n_layer=2, dropout=0))])
def test_pre_training_ends_where_the_cpu_does(tmp_path, monkeypatch, script, optimizer, settings, plain):
    text = write_text(tmp_path, 150)

    def line(desc, device):
        return argv(tmp_path, settings | dict(text=text, held_out=0.1, n_iter=1, save_every=0, desc=desc, plain=plain,
                                              device=device, model_dir=tmp_path / f"out-{desc}"))

    script.main(line("cpu", "cpu"))
    with standin.installed() as gpu:
        counts = waits_before_steps(monkeypatch, gpu, optimizer)
        script.main(line("there", "cuda"))
    assert plain or counts[1] - counts[0] == 1
    same(parameters_of(tmp_path, "there"), parameters_of(tmp_path, "cpu"))
    agree(costs_of(tmp_path, "there"), costs_of(tmp_path, "cpu"), 1e-5)


def test_generate_and_explore_answer_as_on_the_cpu(tmp_path, capsys):
    folders = tmp_path / "gpt", tmp_path / "t5"
    for folder in folders:
        folder.mkdir()
    write_small_vocabulary(folders[0])
    torch.manual_seed(3)
    cfg = dotdict(n_embd=18, n_head=3, n_layer=2, afn="gelu", embd_pdrop=0.3, attn_pdrop=0.3, resid_pdrop=0.3)
    export_openai_model(enlarge(LMModel(cfg, vocab=93 + 40, n_ctx=40)), str(folders[0]))
    (folders[1] / "spiece.model").write_bytes(pretrain_t5.learn_vocabulary(stories(100), 60))
    both = dict(num_tokens=256, depth=2, heads=2, dim_head=5)
    export_t5_model(T5(dim=12, d_ff=20, **{f"{side}_{k}": v for side in ("enc", "dec") for k, v in both.items()}),
                    str(folders[1]))
    (tmp_path / "text").write_text("a new low cat sat.\n" * 9)
    gpt, t5 = (["--model", name, "--model_dir", str(folder), "--n_tokens", "7"]
               for name, folder in zip(("gpt", "t5"), folders, strict=True))
    gpt += ["--n_head", "3"]
    commands = [[*gpt, "--prompt", "A new low"], [*gpt, "--plain", "--prompt", "A new low"],
                [*t5, "--prompt", "Ann wanted"], [*t5, "--beams", "3", "--n_best", "2", "--prompt", "Ann wanted"],
                [*gpt, "--perplexity", str(tmp_path / "text")]]
    sampled = [[*gpt, "--temperature", "1", "--prompt", "A new low"],
               [*t5, "--temperature", "1", "--stop", "zz", "--prompt", "Ann"]]

    def looks():
        model, encoder = explore.load_gpt(folders[0])
        texts, there = ["A new low.", "a cat"], select_device("auto")
        model = model.to(there)
        some = explore.batch(model, encoder, texts)
        found = [explore.hidden_states(model, some), explore.attention(model, some),
                 explore.token_log_probs(model, some).nan_to_num(), explore.sentence_vectors(model, encoder, texts),
                 torch.tensor(explore.surprisal(model, encoder, texts)["surprisal"]).nan_to_num().float(),
                 torch.tensor(explore.next_words(model, encoder, texts)["probability"]).float(),
                 explore.continue_batch(model, some, 3).float()]
        model, encoder = explore.load_t5(folders[1])
        model = model.to(there)
        some = explore.batch(model, encoder, ["Ann wanted a cake.", "a kite"])
        found += [*explore.hidden_states(model, some, some), *explore.attention(model, some, some),
                  explore.token_log_probs(model, some, some).nan_to_num()]
        explore.answers(model, encoder, ["Ann wanted a cake.", "a kite"])
        return [value.cpu() for value in found]

    def outputs(commands):
        for command in commands:
            generate.main([*command, "--device", "auto"])
        return capsys.readouterr().out

    want, want_looks = outputs(commands), looks()
    with standin.installed():
        assert outputs(commands) == want
        assert outputs(sampled) == outputs(sampled)
        for got, wanted in zip(looks(), want_looks, strict=True):
            agree(got, wanted, 1e-5)


# The choice of the device, and what is set for it


def test_auto_takes_the_accelerator_that_torch_sees():
    assert select_device("auto") == select_device("cpu") == torch.device("cpu")
    for kind in ("cuda", "mps", "xpu"):
        with pytest.raises(BadInput, match=f"^--device {kind}: this torch sees no {kind.upper()} device; use --device "
                                           "cpu$"):
            select_device(kind)
        with standin.installed(kind):
            assert select_device("auto").type == select_device(kind).type == distributed.join().device.type == kind
            assert select_device("cpu").type == "cpu" and kind in device_names()
            other = "xpu" if kind == "cuda" else "cuda"
            with pytest.raises(BadInput, match=f"use --device {kind}$"):
                select_device(other)


def test_a_device_that_torch_learns_to_name_may_be_asked_for(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("hpu"))
    assert "hpu" in device_names() and select_device("auto") == torch.device("hpu")


def test_cudnn_s_attention_is_off_while_a_run_lasts(tmp_path, small_vocabulary, monkeypatch):
    seen, losses = [], fast.gpt.losses

    def noting(*args):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return losses(*args)

    monkeypatch.setattr(fast.gpt, "losses", noting)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    train.main(cloze_run(tmp_path, small_vocabulary, n_iter=1, submit=False))
    assert seen and not any(seen) and torch.backends.cuda.cudnn_sdp_enabled() == before
    with pytest.raises(KeyError), fast.devices.without_cudnn_attention():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        raise KeyError
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_one_process_asks_no_device_whether_to_stop():
    with standin.installed() as gpu:
        world = distributed.World(0, 1, torch.device("cuda"))
        assert world.any(True) and not world.any(False) and world.wait() is None and not gpu.calls


def test_compiled_blocks_of_t5_are_four_graphs_whatever_the_lengths():
    torch._dynamo.reset()
    model, counter = small_t5.small_model(enc_depth=3, dec_depth=3, dropout=0.1), CompileCounter()
    for block in (*model.encoder.block, *model.decoder.block):
        block.compile(dynamic=True, backend=counter)
    for seed, (s, t) in enumerate([(11, 7), (12, 8), (17, 6), (19, 9)]):
        for training in (True, False):
            src, tgt = small_t5.odd_batch(seed, 3, s, t)
            with torch.set_grad_enabled(training):
                model.train(training)(src, shift_right(tgt), src != PAD, tgt != PAD)
    assert counter.frame_count == 4  # a block of each stack, in training and in evaluation


# Faults that were planted: each has to be found


def test_a_batch_that_is_not_moved_is_found(gpu, monkeypatch):
    model, (x, m, y) = small_model().to("cuda"), story_batch(1)
    for module, forgetful in ((fast.gpt, lambda value, device: value), (fast.packing, lambda value, device: value)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "moved", forgetful)
            with pytest.raises(RuntimeError, match="same device"):
                fast.gpt.losses(model, x, m, y, 0.5)


def test_a_range_made_on_the_cpu_is_found(gpu, monkeypatch):
    t5, (src, tgt) = small_t5.small_model().to("cuda"), small_t5.odd_batch()
    monkeypatch.setattr(fast.packing.Packing, "_head_rows", lambda self, parts, n_head: [
        torch.arange(parts * n_head * n) for n in (len(self.index), len(self.index))])
    with pytest.raises(RuntimeError, match="same device"):
        fast.t5.training_loss(t5, src, tgt)


def test_a_step_number_on_the_cpu_is_found(gpu, monkeypatch):
    p = torch.nn.Parameter(torch.ones(3, 2).to("cuda"))
    p.grad = torch.ones_like(p)
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *args, device, **kwargs: full(*args, **kwargs))
    with pytest.raises(RuntimeError, match="same device"):
        opt.OpenAIAdam([p], 1e-3, "warmup_constant", 0, 9).step()
