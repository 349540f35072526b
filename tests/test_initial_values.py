"""formats.initial_values: what a file fills is not drawn, and what it does not fill gets the numbers it always got."""

import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_gpt import HEADS
from torch import nn

import generate
import predict
from ablations.lstm import make_model
from formats.initial_values import InitialValues, filled
from model_pytorch import DEFAULT_CONFIG, DoubleHeadModel, LMModel, dotdict, export_openai_model
from t5_pytorch import T5, export_t5_model
from training.precision import for_evaluation

GPT = DEFAULT_CONFIG | dict(n_embd=36, n_head=3, n_layer=2)
T5_SIZE = dict(dim=20, d_ff=29, enc_num_tokens=53, dec_num_tokens=53, enc_depth=2, dec_depth=3)
BUILDS = {"gpt": lambda: LMModel(GPT, 123, 23), "v1.0": lambda: T5(**T5_SIZE),
          "v1.1": lambda: T5(**T5_SIZE, feed_forward="gated-gelu", tie_logits=False)}
BUILDS |= {f"gpt, {head}": lambda head=head: DoubleHeadModel(GPT, 99, head, 123, 23) for head in HEADS}
LSTM = dict(GPT, architecture="lstm", n_unit=19)
BUILDS["lstm"] = lambda: make_model(LMModel, dotdict(LSTM), 123, 23)
PARTS = {"all": lambda name: True, "a head": lambda name: name.startswith(("task_head", "decoder.logits")),
         "the last": lambda name: name.startswith(("transformer.h.1", "decoder")), "a few": lambda name: "1" in name}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", BUILDS)
def test_what_is_drawn_is_what_was_always_drawn(kind, part):
    torch.manual_seed(3)
    always, state = BUILDS[kind](), torch.get_rng_state()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with InitialValues() as initial:
        model = BUILDS[kind]()
    assert torch.equal(torch.get_rng_state(), before)
    always, found = dict(always.named_parameters()), dict(model.named_parameters())
    names = [name for name in found if PARTS[part](name)]
    with torch.no_grad():
        for name, p in found.items():
            if name not in names and p.dim() > 1:
                p.fill_(7)
    initial.draw([found[name] for name in names])
    for name, p in found.items():
        if name in names or p.dim() < 2 and "bias" not in name:
            assert torch.equal(p, always[name]), name
        elif p.dim() > 1:
            assert (p == 7).all(), name
    if part == "all" or kind.startswith("gpt, ") and part == "a head":
        assert torch.equal(torch.get_rng_state(), state)  # nothing comes after these


@pytest.mark.parametrize("kind", BUILDS)
def test_in_a_type_the_model_stays_tied_and_fresh_values_are_rounded(kind):
    always = BUILDS[kind]
    torch.manual_seed(4)
    always = dict(always().to(torch.bfloat16).named_parameters())
    torch.manual_seed(4)
    model = filled(BUILDS[kind], lambda model: [name for name, _ in model.named_parameters()], torch.bfloat16)
    found = dict(model.named_parameters())
    assert found.keys() == always.keys()
    assert all(p.dtype == torch.bfloat16 and p.requires_grad and torch.equal(p, always[name])
               for name, p in found.items())
    if kind == "lstm":
        lstm = model.transformer.h[0].lstm
        assert all(p is q for p, q in zip(lstm.parameters(), lstm._flat_weights, strict=True))
    if not kind.startswith("v1"):
        assert model.lm_head.decoder.weight is model.transformer.embed.weight


class WithAdapter(DoubleHeadModel):
    """With a parameter of its own among those of the transformer."""

    def __init__(self, *args):
        super().__init__(*args)
        self.transformer.h[1].adapter = nn.Linear(36, 5)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_and_parameters_of_ones_own_beside_loaded_weights_are_what_they_always_were(tmp_path, head):
    export_openai_model(LMModel(GPT, 123, 23), str(tmp_path))
    torch.manual_seed(8)
    always = dict(WithAdapter(GPT, 102, head, 126, 23).named_parameters())
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(8)
        model = WithAdapter.from_pretrained(tmp_path, head, dtype=dtype)
        names = [name for name, _ in model.named_parameters() if "task_head" in name or "adapter" in name]
        assert len(names) == 4
        for name in names:
            assert torch.equal(dict(model.named_parameters())[name], always[name].to(dtype or torch.float32)), name


def test_the_decoder_beside_a_loaded_encoder_is_what_it_always_was(tmp_path):
    export_t5_model(T5(**T5_SIZE), tmp_path)
    tensors = {name: tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()
               if not name.startswith("decoder.")}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(8)
    always = T5(**T5_SIZE)
    torch.manual_seed(8)
    model = T5.from_pretrained(tmp_path)
    for p, q in zip(model.decoder.parameters(), always.decoder.parameters(), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(model.shared.weight, tensors["shared.weight"])


@pytest.mark.parametrize("kind", ["gpt", "v1.0", "v1.1"])
def test_a_model_loaded_in_bfloat16_is_one_that_is_converted_for_evaluation(tmp_path, kind):
    built = BUILDS[kind]()
    (export_openai_model if kind == "gpt" else export_t5_model)(built, str(tmp_path))
    model = type(built).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert for_evaluation(model, "bf16") is model
    converted = for_evaluation(type(built).from_pretrained(tmp_path), "bf16")
    for (name, p), q in zip(model.named_parameters(), converted.parameters(), strict=True):
        assert p.dtype == torch.bfloat16 and torch.equal(p, q), name
    assert generate.parse_args(["--dtype", "bf16"]).precision == "bf16"
    assert predict.parse_args(["--dtype", "bf16", "--desc", "a", "--file", "b"]).precision == "bf16"


def test_values_that_are_read_while_the_model_is_built_are_right():
    def build():
        first, other = nn.Linear(5, 7), nn.Linear(7, 3)
        with torch.no_grad():
            first.weight *= 3
            other.weight[:, :5] += first.weight[:3]   # reads what waits
        nn.init.orthogonal_(first.weight)             # draws into a tensor of its own
        return nn.Sequential(first, other, nn.Linear(3, 2))

    torch.manual_seed(5)
    always = build()
    torch.manual_seed(5)
    found = filled(build, lambda model: ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"])
    for p, q in zip(always.parameters(), found.parameters(), strict=True):
        assert torch.equal(p, q)


def test_other_devices_threads_and_generators_are_left_alone():
    torch.manual_seed(6)
    wanted = nn.init.trunc_normal_(torch.empty(4, 5))
    drawn, generator = [], torch.Generator().manual_seed(9)
    _, expected = (torch.empty(2, 55).normal_(generator=generator) for _ in range(2))
    generator.manual_seed(9)
    torch.manual_seed(6)
    with InitialValues() as initial:
        thread = threading.Thread(target=lambda: drawn.append(nn.init.trunc_normal_(torch.empty(4, 5))))
        thread.start()
        thread.join()
        nn.init.trunc_normal_(torch.empty(3, device="meta"))
        nn.Linear(3, 4, device="meta")
        _, second = (torch.empty(2, 55).normal_(generator=generator) for _ in range(2))
    assert nn.init.trunc_normal_.__module__ == "torch.nn.init"
    state = torch.get_rng_state()
    initial.draw([second])
    assert torch.equal(drawn[0], wanted) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(second, expected)
