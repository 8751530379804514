"""Objects of which there is no second one in memory."""

from __future__ import annotations

from typing import Any, NoReturn

from feature_gan_kd.utils.errors import UserError


class Uncopyable:
    """Refuses `copy` and `pickle`, and so does what holds it: optimisers know their parameters by identity."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Is what both ask for.

        Raises:
            UserError: always.
        """
        raise UserError(
            "distiller: it cannot be copied or pickled: write it with save_checkpoint, and build another with "
            "from_checkpoint"
        )
