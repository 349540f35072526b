"""What the custom functions of this folder have in common."""

import functools

import torch


def first_derivatives_only(backward):
    """Decorate a backward whose result cannot be differentiated again: asked for that, it refuses.

    torch.autograd.function.once_differentiable would hand out constants in silence where nothing else in the graph
    asks for a second derivative.
    """
    @functools.wraps(backward)
    def checked(ctx, *gradients):
        if torch.is_grad_enabled():  # the engine's word for create_graph=True
            raise RuntimeError("the fast functions have first derivatives only; for higher ones take the plain text "
                               "(model(x) and loss.py, --plain)")
        return backward(ctx, *gradients)

    return checked
