"""Refuses parameters that change their nature after the optimisers were built."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from feature_gan_kd.utils.errors import UserError


class ParameterWatch:
    """Knows the parameters of modules as the optimisers got them; the optimisers keep the old ones alive.

    Args:
        modules: by name for messages.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = dict(modules)
        self._known = self._state()

    def check(self) -> None:
        """Refuses a parameter that was replaced, frozen or unfrozen since then.

        Raises:
            UserError: naming it.
        """
        now = self._state()
        if now == self._known:
            return
        if len({dtype for *_, dtype in now}) == 1 and [one[:2] for one in now] == [one[:2] for one in self._known]:
            self._known = now  # all were converted to one type, which optimisers follow
            return
        pairs = zip(self._names(), self._known, now, strict=False)
        differing = [(name, before, after) for name, before, after in pairs if before != after]
        name, before, after = differing[0] if differing else ("models: a number of parameters", None, None)
        what = "was replaced"
        if before is None or after is None or before[1] != after[1]:
            what = "changed requires_grad"
        elif before[2] != after[2]:
            what = f"changed from {before[2]} to {after[2]}"
        raise UserError(
            f"{name}: {what} after the distiller was built, and the optimisers cannot follow: change the models first, "
            "then build the distiller"
        )

    def _state(self) -> list[tuple[int, bool, torch.dtype]]:
        """Identity, `requires_grad` and type of every parameter."""
        return [(id(p), p.requires_grad, p.dtype) for module in self.modules.values() for p in module.parameters()]

    def _names(self) -> list[str]:
        """For each entry of `_state`, the parameter's name in messages."""
        return [f"{where}: {name}" for where, module in self.modules.items() for name, _ in module.named_parameters()]
