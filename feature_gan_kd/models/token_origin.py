"""Finds which tokens of a model are made of the images; class and register tokens are weights (ours)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel

from feature_gan_kd.models.dataflow import ImageFlow, Node
from feature_gan_kd.models.outputs import output_of
from feature_gan_kd.models.tapped_model import evaluating


def tokens_from_images(model: nn.Module, images: Tensor, count: int, width: int, name: str) -> Tensor | None:
    """Tells which of the tokens are made of the images, where the model first has so many.

    There, other tokens have just been joined to those of the patches, however the model does it, and nothing has mixed
    them yet: only tokens of the images have a derivative by the pixels.

    Args:
        model: any module that maps images to logits.
        images: (batch, channels, height, width), for their shape, type and device.
        count: number of tokens.
        width: their channels.
        name: of the model, for errors.

    Returns:
        bool (tokens,); None where no operation gives so many tokens, and on the meta device.

    Raises:
        UserError: for a model that returns no logits.
    """
    if images.is_meta:
        return None
    batch = next(size for size in (2, 3, 5) if size not in (count, width))
    shape = (batch, *images.shape[1:])
    # Of any values: from zeros alone, rectified features could all be zero.
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    leaf = values.to(images.device, images.dtype).requires_grad_()
    # Of the kernels for attention, this one has second derivatives.
    with evaluating(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        flow = ImageFlow(leaf, output_of(model(leaf.clone()), name))
        node, axes = _first_with_tokens(flow, batch, count, width)
        masks = [_moved_by_images(node, leaf, axis) for axis in axes]
    # Of as many channels as tokens, the channels are all made of the images.
    return next((mask for mask in masks if not mask.all()), masks[0]) if masks else None


def _first_with_tokens(flow: ImageFlow, batch: int, count: int, width: int) -> tuple[Node, list[int]]:
    """Returns the first operation that gives so many tokens, and the dimensions of its output that may count them.

    Operations whose output has the tokens' width, too, go before others.
    """
    for sizes in ([count, width], [count]):
        for node in reversed(flow.path):
            shape = tuple(node._input_metadata[0].shape)
            axes = [axis for axis, size in enumerate(shape) if size != batch]
            if len(shape) == 3 and len(axes) == 2:
                own = sorted(shape[axis] for axis in axes)
                if own == sorted(sizes) or (len(sizes) == 1 and count in own):
                    return node, [axis for axis in axes if shape[axis] == count]
    return None, []


def _moved_by_images(node: Node, leaf: Tensor, axis: int) -> Tensor:
    """Tells along an axis of an operation's output what moves when all pixels move: bool (size of the axis,)."""
    about = node._input_metadata[0]
    output = GradientEdge(node, 0)
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1)).to(leaf)
    weights = torch.zeros(tuple(about.shape), device=leaf.device, dtype=about.dtype, requires_grad=True)
    try:
        # The pixels' gradient is linear in `weights`: its own derivative is how the output moves along `direction`.
        (gradient,) = torch.autograd.grad([output], [leaf], [weights], create_graph=True)
        (moved,) = torch.autograd.grad((gradient * direction).sum(), weights, allow_unused=True)
    except RuntimeError:  # an operation without a second derivative
        return _reached_one_by_one(output, leaf, weights.detach(), axis)
    if moved is not None:
        found = (moved != 0).any([other for other in range(weights.ndim) if other != axis]).cpu()
        if not _is_reached(output, leaf, weights.detach(), axis, (~found).nonzero()[:, 0].tolist()):
            return found
    return _reached_one_by_one(output, leaf, weights.detach(), axis)


def _is_reached(output: GradientEdge, leaf: Tensor, zeros: Tensor, axis: int, places: list[int]) -> bool:
    """Whether the pixels reach any of these places of an operation's output, by one backward pass."""
    weights = zeros.clone()
    random = torch.randn(weights.shape, generator=torch.Generator().manual_seed(2)).to(weights)
    for place in places:
        weights.select(axis, place).copy_(random.select(axis, place))
    (gradient,) = torch.autograd.grad([output], [leaf], [weights], retain_graph=True)
    return bool((gradient != 0).any())


def _reached_one_by_one(output: GradientEdge, leaf: Tensor, zeros: Tensor, axis: int) -> Tensor:
    """Which places the pixels reach, by a backward pass for each: bool (size of the axis,)."""
    return torch.tensor([_is_reached(output, leaf, zeros, axis, [place]) for place in range(zeros.shape[axis])])
