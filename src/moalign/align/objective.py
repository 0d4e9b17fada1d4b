"""From a method's row to its L_align: the second term of Eq. 2 and of Eq. 9, before lambda.

The training step then reads as the paper does, whatever the method:

    loss = mse(prediction, target) + method.lam * alignment(Ys, M)
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moalign.align.losses import LOSSES, zero_tokens
from moalign.config import Method
from moalign.errors import Problem

Alignment = Callable[[list[Tensor], Tensor], tuple[Tensor, Tensor]]
"""Y of the aligned blocks [B, Ft, Ht, Wt, D], the target [B, Fm, Hm, Wm, D'] -> L_align, zero tokens per clip."""


def alignment(method: Method, projectors: nn.ModuleList) -> Alignment:
    """L_align of a method's row, a mean over the aligned blocks, a projector for each; and zero tokens per clip.

    Fine-tuning alone (loss `zero`) has one too: it is 0, and needs no projector.
    """
    if method.loss == "zero":
        return lambda Ys, target: (torch.zeros(()), torch.zeros(()))
    if not len(projectors):
        raise Problem(f"the loss {method.loss!r} aligns projected tokens; make a Projector for it")
    loss = LOSSES[method.loss]

    def align(Ys: list[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        M, values, zeros = target.flatten(2, 3), [], zero_tokens(target)  # [B, Fm, P, D]
        for projector, Y in zip(projectors, Ys, strict=True):
            Z = projector(Y)
            if Z.shape != target.shape:
                raise Problem(
                    f"targets are {list(target.shape)} where the student's tokens are {list(Z.shape)};"
                    " make the targets again for this backbone and teacher"
                )
            values.append(loss(Z.flatten(2, 3), M, method))
            zeros = zeros + zero_tokens(Z)
        return torch.stack(values).mean(), zeros / len(target)

    return align
