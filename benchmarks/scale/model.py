"""The time of an update by the number of devices: computation, two reductions of known bytes, their overlap."""

from __future__ import annotations

from collections.abc import Mapping


def step_seconds(
    devices: int,
    *,
    forward_and_first: float,
    second: float,
    fixed: float,
    megabytes: float,
    bandwidth: float,
    wait: float,
) -> float:
    """Seconds of an update on so many devices that divide one batch.

    A ring exchanges 2 (n - 1) / n of the bytes through every link, in 2 (n - 1) hops. The first exchange, of the logit
    gradients, runs while the second backward pass does; the second one, of the feature gradients, is waited for.

    Args:
        devices: n.
        forward_and_first: seconds of forward and first backward pass of the whole batch on one device.
        second: seconds of the second backward pass, likewise.
        fixed: seconds that do not depend on the batch: optimisers, launches.
        megabytes: of one kind of gradient.
        bandwidth: of a link in MB/s.
        wait: seconds of one hop.
    """
    exchange = 0.0 if devices == 1 else 2 * (devices - 1) / devices * megabytes / bandwidth + 2 * (devices - 1) * wait
    return forward_and_first / devices + max(second / devices, exchange) + exchange + fixed


def prediction(
    alone: Mapping[str, float], two_threads: Mapping[str, float], several: Mapping[str, float], processes: int
) -> float:
    """What the model says of processes that share this machine's two cores.

    Args:
        alone: what one process with one thread measured.
        two_threads: what one with two did: how much slower a core is while the other one works.
        several: what the processes measured, of which the bare exchange's seconds are taken.
        processes: their number; those beyond two take turns.
    """
    slower = max(1.0, 2 * two_threads["step"] / alone["step"]) if processes > 1 else 1.0
    turns = slower * max(1.0, processes / 2)
    first = (alone["step"] - alone["second"] - alone["fixed"]) * turns / processes
    second = alone["second"] * turns / processes
    return first + max(second, several["bare exchange"]) + several["bare exchange"] + alone["fixed"] * turns
