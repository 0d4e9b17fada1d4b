"""From a method's row to its L_align: the second term of Eq. 2 and of Eq. 9, before lambda.

The training step then reads as the paper does, whatever the method:

    loss = mse(prediction, target) + method.lam * alignment(Y, M)
"""

import torch
from torch import Tensor

from moalign.align.losses import LOSSES
from moalign.align.projector import Projector
from moalign.config import Method
from moalign.errors import Problem
from moalign.interfaces import Alignment


def alignment(method: Method, projector: Projector | None) -> Alignment:
    """L_align(Y, target) of a method's row. Fine-tuning alone (loss `zero`) has one too: it is 0, and needs neither."""
    if method.loss == "zero":
        return lambda Y, target: torch.zeros(())
    if projector is None:
        raise Problem(f"the loss {method.loss!r} aligns projected tokens; make a Projector for it")
    loss = LOSSES[method.loss]

    def align(Y: Tensor, target: Tensor) -> Tensor:
        Z = projector(Y)
        if Z.shape != target.shape:
            raise Problem(
                f"targets are {list(target.shape)} where the student's tokens are {list(Z.shape)};"
                " make the targets again for this backbone and teacher"
            )
        return loss(Z.flatten(2, 3), target.flatten(2, 3), method)  # [B, Fm, P, D]

    return align
