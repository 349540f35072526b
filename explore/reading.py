"""How a model is run to be read: nothing dropped, no gradients, hooks that take what passes its modules."""

import contextlib

import torch

from t5_decoding import evaluation_mode
from t5_pytorch import shift_right


@contextlib.contextmanager
def reading(model):
    """Evaluation mode without gradients; what is computed are ordinary tensors."""
    with evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
        yield


@contextlib.contextmanager
def hooks(modules_and_lists, before=False):
    """Append what passes each module to its list: what it returns or, with `before`, what it is given."""
    handles = []
    try:
        for module, values in modules_and_lists:
            def take(module, args, *returned, values=values):
                values.append(returned[0] if returned else args[0])
            handles.append(module.register_forward_pre_hook(take) if before else module.register_forward_hook(take))
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_t5(model, texts, targets):
    """Run a T5 on sources and, where there are some, targets; return the logits [b, t, v], or None."""
    if targets is None:
        model.encode(texts.x, texts.mask)
        return None
    return model(texts.x, shift_right(targets.x), texts.mask, targets.mask)


def shapes(tensors):
    """A NamedTuple of tensors, told by their shapes."""
    parts = (f"{name}={None if value is None else list(value.shape)}" for name, value in tensors._asdict().items())
    return f"{type(tensors).__name__}({', '.join(parts)})"
