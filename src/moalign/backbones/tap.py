"""A tap on the transformer's blocks: one block's output, taken from outside, so that the model stays the stock one."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn


class Tap:
    """Forward hooks on every block, idle but for one block during one forward pass.

    Gradient checkpointing calls a block again during backward. The hook is idle by then: the tensor that was caught is
    the one that the loss saw, and no tensor outlives the step in here. The hooks are installed once, since a compiled
    model does not notice hooks that come and go.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.layer: int | None = None  # the block listened to, from 1
        self.output: Any = None
        for number, block in enumerate(blocks, 1):
            block.register_forward_hook(partial(self._hook, number))

    def _hook(self, number: int, _block: nn.Module, _inputs: tuple, output: Any) -> None:
        if number == self.layer:
            self.output = output
            self.layer = None  # its first call alone

    def catch(self, layer: int, forward: Callable[[], Any]) -> tuple[Any, Any]:
        """What `forward()` returns, and what block `layer` (from 1) returned to it on the way."""
        self.layer = layer
        try:
            result = forward()
            if self.layer is not None:
                raise RuntimeError(
                    f"block {layer} was not called: the model's forward pass does not use its own blocks"
                )
            return result, self.output
        finally:
            self.layer = self.output = None
