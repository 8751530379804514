"""A model of the time of an update on several devices: computation, two reductions of known size, their overlap."""

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
    """Predicts the seconds of an update on several devices that divide one batch.

    A ring exchanges 2 (n - 1) / n of the bytes over every line, in 2 (n - 1) hops. The first exchange, of the logit
    gradients, runs beside the second backward pass; the update waits for the second one, of the feature gradients.

    Args:
        devices: n.
        forward_and_first: seconds of the forward and the first backward pass of the whole batch on one device.
        second: seconds of the second backward pass of the whole batch on one device.
        fixed: seconds that do not depend on the batch: optimisers, launches.
        megabytes: size of the gradients of one loss.
        bandwidth: of one line in MB/s.
        wait: seconds of one hop.
    """
    exchange = 0.0 if devices == 1 else 2 * (devices - 1) / devices * megabytes / bandwidth + 2 * (devices - 1) * wait
    return forward_and_first / devices + max(second / devices, exchange) + exchange + fixed


def prediction(
    alone: Mapping[str, float], two_threads: Mapping[str, float], several: Mapping[str, float], processes: int
) -> float:
    """Predicts the seconds of an update of several processes that share this machine's two cores.

    Args:
        alone: figures of one process with one thread.
        two_threads: figures of one process with two threads: how much slower a core is while the other works.
        several: figures of the processes, of which the seconds of the bare exchange are used.
        processes: their number; more than two take turns.
    """
    slower = max(1.0, 2 * two_threads["step"] / alone["step"]) if processes > 1 else 1.0
    turns = slower * max(1.0, processes / 2)
    first = (alone["step"] - alone["second"] - alone["fixed"]) * turns / processes
    second = alone["second"] * turns / processes
    return first + max(second, several["bare exchange"]) + several["bare exchange"] + alone["fixed"] * turns
