"""A tap on the transformer's blocks: outputs of some, taken from outside, so that the model stays the stock one."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import nn


class Tap:
    """Forward hooks on every block, idle but for the wanted blocks during one forward pass.

    Gradient checkpointing calls a block again during backward. Its hook is idle by then: the tensor that was caught is
    the one that the loss saw, and no tensor outlives the step in here. The hooks are installed once, since a compiled
    model does not notice hooks that come and go.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.wanted: set[int] = set()  # blocks listened to, from 1
        self.outputs: dict[int, Any] = {}
        for number, block in enumerate(blocks, 1):
            block.register_forward_hook(partial(self._hook, number))

    def _hook(self, number: int, _block: nn.Module, _inputs: tuple, output: Any) -> None:
        if number in self.wanted:
            self.outputs[number] = output
            self.wanted.remove(number)  # its first call alone

    def catch(self, layers: Collection[int], forward: Callable[[], Any]) -> tuple[Any, list[Any]]:
        """What `forward()` returns, and what each of the blocks `layers` (from 1) returned to it on the way."""
        self.wanted = set(layers)
        try:
            result = forward()
            if self.wanted:
                raise RuntimeError(
                    f"block {min(self.wanted)} was not called: the model's forward pass does not use its own blocks"
                )
            return result, [self.outputs[layer] for layer in layers]
        finally:
            self.wanted, self.outputs = set(), {}
