"""An independent reference of the method, in float64, written from its formulas.

It calls nothing of the package: convolutions are sums over the kernel, batch normalisation, softmax, divergence and
optimisers are their textbook formulas, every loss has forward passes of its own, and what a loss must not reach is a
constant in it. Parameters are taken from the package's modules by value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def values_of(module: nn.Module) -> Weights:
    """Copies of a module's parameters in float64 on CPU, by name."""
    return {name: value.detach().to("cpu", torch.float64, copy=True) for name, value in module.named_parameters()}


def buffers_of(module: nn.Module) -> Weights:
    """Copies of a module's buffers in float64 on CPU, by name."""
    return {name: value.detach().to("cpu", torch.float64, copy=True) for name, value in module.named_buffers()}


# Layers.


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """Cross-correlation, one kernel position at a time."""
    batch, channels, height, width = x.shape
    kernel_height, kernel_width = weight.shape[2:]
    padded = x.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    rows = (height + 2 * padding - kernel_height) // stride + 1
    columns = (width + 2 * padding - kernel_width) // stride + 1
    out = x.new_zeros(batch, weight.shape[0], rows, columns)
    for i in range(kernel_height):
        for j in range(kernel_width):
            patch = padded[:, :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            out = out + torch.einsum("nchw,oc->nohw", patch, weight[:, :, i, j])
    return out if bias is None else out + bias[None, :, None, None]


def normalise(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Batch normalisation with given statistics, epsilon 1e-5."""
    mean, variance, weight, bias = (each[None, :, None, None] for each in (mean, variance, weight, bias))
    return (x - mean) / (variance + 1e-5) ** 0.5 * weight + bias


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel over batch and grid."""
    count = x.shape[0] * x.shape[2] * x.shape[3]
    mean = x.sum((0, 2, 3)) / count
    return mean, ((x - mean[None, :, None, None]) ** 2).sum((0, 2, 3)) / count


def leaky_relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def pool(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average pooling to a grid: cell i of G covers [floor(i H / G), ceil((i + 1) H / G))."""
    height, width = x.shape[2:]
    cells = [
        x[
            :,
            :,
            i * height // grid[0] : math.ceil((i + 1) * height / grid[0]),
            j * width // grid[1] : math.ceil((j + 1) * width / grid[1]),
        ].mean((2, 3))
        for i in range(grid[0])
        for j in range(grid[1])
    ]
    return torch.stack(cells, dim=2).reshape(*x.shape[:2], *grid)


def discriminator(weights: Weights, feature_map: Tensor, *, bounded: bool = True) -> Tensor:
    """Conv - BatchNorm - LeakyReLU - Conv - Sigmoid: one answer per map. 3x3 with stride 2, or 1x1.

    Not `bounded`: without the sigmoid.
    """
    kernel = weights["conv1.weight"].shape[2]
    hidden = convolution(feature_map, weights["conv1.weight"], stride=2 if kernel == 3 else 1, padding=kernel // 2)
    hidden = leaky_relu(normalise(hidden, *statistics(hidden), weights["norm.weight"], weights["norm.bias"]))
    answer = convolution(hidden, weights["conv2.weight"], weights["conv2.bias"])
    if bounded:
        answer = sigmoid(answer)
    assert answer.shape[1:] == (1, 1, 1)
    return answer[:, 0, 0, 0]


def class_discriminator(weights: Weights, feature_map: Tensor, logits: Tensor, *, bounded: bool = True) -> Tensor:
    """Linear - LeakyReLU - Linear of every channel's mean times every class's probability: one answer per map.

    With `map_projection` and `class_projection` among the weights, of their projections' products instead.
    """
    means = feature_map.sum((2, 3)) / (feature_map.shape[2] * feature_map.shape[3])
    shares = torch.exp(log_softmax(logits)).detach()
    if "map_projection" in weights:
        pairs = means @ weights["map_projection"], shares @ weights["class_projection"]
        seen = pairs[0] * pairs[1] / math.sqrt(weights["map_projection"].shape[1])
    else:
        channels, classes = range(means.shape[1]), range(shares.shape[1])
        seen = torch.stack([means[:, c] * shares[:, k] for c in channels for k in classes], dim=1)
    hidden = leaky_relu(seen @ weights["hidden.weight"].T + weights["hidden.bias"])
    answer = (hidden @ weights["answer.weight"].T + weights["answer.bias"])[:, 0]
    return sigmoid(answer) if bounded else answer


def transfer(weights: Weights, feature_map: Tensor) -> Tensor:
    """1x1 convolution and batch normalisation; nothing where there are no weights."""
    if not weights:
        return feature_map
    moved = convolution(feature_map, weights["0.weight"])
    return normalise(moved, *statistics(moved), weights["1.weight"], weights["1.bias"])


# Losses.


def log_softmax(logits: Tensor) -> Tensor:
    return logits - torch.log(torch.exp(logits).sum(1, keepdim=True))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of -log p(label), or of -sum(label probabilities * log p); 0 for the label -1."""
    log_p = log_softmax(logits)
    if labels.ndim == 2:
        return -(labels * log_p).sum() / len(logits)
    terms = [log_p[i, label] for i, label in enumerate(labels.tolist()) if label >= 0]
    return -sum(terms, 0 * logits.sum()) / len(logits)


def divergence(learner: Tensor, source: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(source / T) || softmax(learner / T)), mean over the batch."""
    log_p, log_q = log_softmax(source / temperature), log_softmax(learner / temperature)
    return temperature**2 * (torch.exp(log_p) * (log_p - log_q)).sum() / len(learner)


def standardise(logits: Tensor) -> Tensor:
    """Image by image: mean 0 and (biased) variance 1 over the classes."""
    rows = []
    for row in logits:
        apart = row - row.sum() / len(row)
        rows.append(apart / ((apart**2).sum() / len(row) + 1e-5) ** 0.5)
    return torch.stack(rows)


def decoupled_divergence(learner: Tensor, source: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Image by image: KL of (label's class, all others), and 8 times the KL of the others among themselves."""
    q_all, p_all = (torch.exp(log_softmax(logits / temperature)) for logits in (learner, source))
    total = 0 * learner.sum()
    for q, p, label in zip(q_all, p_all, labels.tolist(), strict=True):
        if label < 0:
            total = total + (p * torch.log(p / q)).sum()
            continue
        others = [c for c in range(len(p)) if c != label]
        rest_p, rest_q = p[others].sum(), q[others].sum()
        total = total + p[label] * torch.log(p[label] / q[label]) + rest_p * torch.log(rest_p / rest_q)
        for c in others:
            total = total + 8 * p[c] / rest_p * torch.log((p[c] / rest_p) / (q[c] / rest_q))
    return temperature**2 * total / len(learner)


def logit_divergence(kind: str, learner: Tensor, source: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The logit term of that kind."""
    if kind == "decoupled":
        return decoupled_divergence(learner, source, labels, temperature)
    if kind == "standardised":
        learner, source = standardise(learner), standardise(source)
    return divergence(learner, source, temperature)


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "paper") -> Tensor:
    """Mean over the batch, and over patches where there are any."""
    if kind == "hinge":
        each = torch.where(real < 1, 1 - real, 0 * real) + torch.where(fake > -1, 1 + fake, 0 * fake)
    elif kind == "relativistic":
        each = -torch.log(sigmoid(real - fake))
    elif kind == "reversal":
        each = -torch.log(sigmoid(real)) - torch.log(1 - sigmoid(fake))
    else:
        each = (1 - real) ** 2 + fake**2
    return each.sum() / each.numel()


def adversarial_loss(real: Tensor, fake: Tensor, kind: str = "paper") -> Tensor:
    if kind == "hinge":
        each = -fake
    elif kind == "relativistic":
        each = -torch.log(sigmoid(fake - real))
    elif kind == "reversal":
        each = torch.log(1 - sigmoid(fake))
    else:
        each = (1 - fake) ** 2
    return each.sum() / each.numel()


# Optimisers: each returns the new parameter and keeps its state in `state`.


def sgd(p: Tensor, g: Tensor, state: Weights, lr: float, momentum: float, decay: float) -> Tensor:
    g = g + decay * p
    state["v"] = momentum * state["v"] + g if "v" in state else g
    return p - lr * state["v"]


def adam(p: Tensor, g: Tensor, state: Weights, lr: float, decay: float, *, decoupled: bool) -> Tensor:
    """Adam with coupled L2 decay, or AdamW; betas 0.9 and 0.999, epsilon 1e-8."""
    if decoupled:
        p = p - lr * decay * p
    else:
        g = g + decay * p
    state["t"] = state.get("t", torch.zeros((), dtype=torch.float64)) + 1
    state["m"] = 0.9 * state.get("m", torch.zeros_like(g)) + 0.1 * g
    state["s"] = 0.999 * state.get("s", torch.zeros_like(g)) + 0.001 * g**2
    m, s = state["m"] / (1 - 0.9 ** state["t"]), state["s"] / (1 - 0.999 ** state["t"])
    return p - lr * m / (s**0.5 + 1e-8)


# A small model: blocks of 3x3 convolution, optional batch normalisation and ReLU, then mean and linear layer.


@dataclass(frozen=True)
class Spec:
    """A small model's shape: `blockI.0` is a convolution, `blockI.1` its batch norm, `head` the classifier."""

    channels: tuple[int, int] = (4, 4)
    strides: tuple[int, int] = (1, 2)
    paddings: tuple[int, int] = (1, 1)
    norm: bool = True
    classes: int = 5


@dataclass
class Pass:
    """What a forward pass gives: logits, the map of each block, the statistics of each batch norm."""

    logits: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class PeerModel:
    """Weights and running statistics of a small model."""

    spec: Spec
    weights: Weights
    running: Weights

    def forward(self, images: Tensor, weights: Weights | None = None, *, training: bool = True) -> Pass:
        w = weights or self.weights
        out = Pass(images)
        x = images
        for block, (stride, padding) in enumerate(zip(self.spec.strides, self.spec.paddings, strict=True), start=1):
            name = f"block{block}"
            x = convolution(x, w[f"{name}.0.weight"], w.get(f"{name}.0.bias"), stride, padding)
            if self.spec.norm:
                norm = f"{name}.1"
                given = (self.running[f"{norm}.running_mean"], self.running[f"{norm}.running_var"])
                out.statistics[norm] = statistics(x)
                out.counts[norm] = x.shape[0] * x.shape[2] * x.shape[3]
                used = out.statistics[norm] if training else given
                x = normalise(x, *used, w[f"{norm}.weight"], w[f"{norm}.bias"])
            x = torch.where(x > 0, x, 0 * x)
            out.maps[name] = x
        out.logits = x.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]
        return out

    def see(self, images: Tensor) -> None:
        """Running statistics after one more forward pass in training: momentum 0.1, unbiased variance."""
        seen = self.forward(images)
        for norm, (mean, variance) in seen.statistics.items():
            unbiased = variance * seen.counts[norm] / (seen.counts[norm] - 1)
            for name, value in (("running_mean", mean), ("running_var", unbiased)):
                self.running[f"{norm}.{name}"] = 0.9 * self.running[f"{norm}.{name}"] + 0.1 * value
            self.running[f"{norm}.num_batches_tracked"] += 1


@dataclass
class ReferenceConnection:
    """One map of `source` as a lesson for `learner`: tapped block, transfer layer, discriminator."""

    source: int
    learner: int
    block: str
    transfer: Weights
    discriminator: Weights
    max_grid: int | None = None

    def maps(self, learner_map: Tensor, source_map: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Fake and real map: both on the smaller grid, the learner's brought into the source's channels."""
        sides = zip(learner_map.shape[2:], source_map.shape[2:], strict=True)
        grid = tuple(min(a, b, self.max_grid or a) for a, b in sides)
        return transfer(weights, pool(learner_map, grid)), pool(source_map, grid)


def length(vector: Tensor) -> Tensor:
    """At least 1e-8, as torch's cosine has it: where every channel is 0, a cosine is 0."""
    return (vector @ vector).clamp(min=1e-16).sqrt()


def misalignment(fake: Tensor, real: Tensor) -> Tensor:
    """1 - cosine of the channels, position by position, each channel with mean 0 and variance 1."""

    def standardised(maps: Tensor) -> Tensor:
        channels = [maps[:, c] - maps[:, c].mean() for c in range(maps.shape[1])]
        return torch.stack([one / ((one * one).mean() + 1e-5) ** 0.5 for one in channels], dim=1)

    fake, real = standardised(fake), standardised(real)
    cosines = [
        (fake[i, :, y, x] @ real[i, :, y, x]) / (length(fake[i, :, y, x]) * length(real[i, :, y, x]))
        for i in range(len(fake))
        for y in range(fake.shape[2])
        for x in range(fake.shape[3])
    ]
    return 1 - torch.stack(cosines).mean()


def statistics_difference(fake: Tensor, real: Tensor) -> Tensor:
    """Channel by channel: squared difference of the means, plus that of the deviations."""
    terms = []
    for channel in range(fake.shape[1]):
        (m1, s1), (m2, s2) = (
            (v.mean(), (((v - v.mean()) ** 2).mean() + 1e-8) ** 0.5) for v in (fake[:, channel], real[:, channel])
        )
        terms.append((m1 - m2) ** 2 + (s1 - s2) ** 2)
    return torch.stack(terms).mean()


def relation_difference(learner: Tensor, source: Tensor) -> Tensor:
    """Image by image: KL of the softmax over its cosines to the others, which are fixed."""
    terms = []
    for i in range(len(learner)):
        shares = []
        for vectors in (learner, source):
            fixed = vectors.detach()
            others = [j for j in range(len(vectors)) if j != i]
            cosines = torch.stack([vectors[i] @ fixed[j] / (vectors[i].norm() * fixed[j].norm()) for j in others])
            powers = (cosines / 0.1).exp()
            shares.append(powers / powers.sum())
        terms.append((shares[1] * (shares[1] / shares[0]).log()).sum())
    return torch.stack(terms).mean()


@dataclass(frozen=True)
class Settings:
    """Loss weights and optimisers."""

    temperature: float = 3.0
    logit: float = 0.0
    logit_loss: str = "kl"
    ensemble: bool = False
    threshold: float = 0.0
    adversarial: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    aligned: float = 0.0
    statistics: float = 0.0
    relation: float = 0.0
    zero_gradient: bool = False
    lr: float = 0.1
    momentum: float = 0.9
    decay: float = 1e-4
    adversarial_lr: float = 2e-5
    adversarial_decay: float = 0.1
    discriminator_lr: float = 2e-5
    discriminator_decay: float = 0.1
    decoupled: bool = False
    clip: float | None = None
    interval: int = 1
    single: bool = False
    loss: str = "paper"
    classes: bool = False
    discriminator_interval: int = 1
    labels: bool = True
    max_grid: int | None = None


Key = tuple[str, int, str]
"""(`model`, `transfer` or `discriminator`, its position, the parameter's name)."""

Gradients = dict[str, dict[Key, Tensor]]
"""Kind of update (`logit`, `feature`, `discriminator`) -> parameter -> gradient."""


@dataclass
class Reference:
    """All models and connections, and the update of the method."""

    models: Sequence[PeerModel]
    edges: Sequence[tuple[int, int]]
    connections: Sequence[ReferenceConnection]
    settings: Settings
    frozen: Sequence[int] = ()
    state: dict[tuple[str, Key], Weights] = field(default_factory=dict)
    number: int = 0
    per_label: float = 1.0  # images of the batch for each that has a label

    @property
    def learners(self) -> list[int]:
        return [k for k in range(len(self.models)) if k not in self.frozen]

    def fixed(self, k: int, images: Tensor) -> Pass:
        """What model k gives, as constants; a frozen one is in evaluation mode."""
        with torch.no_grad():
            return self.models[k].forward(images, training=k not in self.frozen)

    def extractor(self, k: int) -> Weights:
        """The parameters up to model k's last tapped block."""
        tapped = {connection.block for connection in self.connections} or {"block2"}
        prefixes = ("block1.", "block2.") if "block2" in tapped else ("block1.",)
        return {name: value for name, value in self.models[k].weights.items() if name.startswith(prefixes)}

    def logit_loss(self, k: int, weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.models[k].forward(images, weights).logits
        loss = cross_entropy(logits, labels) * self.per_label if self.settings.labels else 0 * logits.sum()
        if self.settings.logit:
            sources = [source for source, learner in self.edges if learner == k]
            targets = [self.fixed(source, images).logits for source in sources]
            if self.settings.ensemble and sources:
                members = [self.fixed(k, images).logits, *targets]
                targets = [sum(members[1:], members[0]) / len(members)]
            for target in targets:
                kind, temperature = self.settings.logit_loss, self.settings.temperature
                for i, row in enumerate(torch.exp(log_softmax(target))):
                    if row.max() >= self.settings.threshold:
                        one = slice(i, i + 1)
                        term = logit_divergence(kind, logits[one], target[one], labels[one], temperature)
                        loss = loss + self.settings.logit * term / len(logits) / len(targets)
        return loss

    def feature_loss(self, k: int, weights: Weights, transfers: Mapping[int, Weights], images: Tensor) -> Tensor:
        connections = self.terms_of(k)
        own = self.models[k].forward(images, weights)
        total = torch.zeros((), dtype=torch.float64)
        for i, connection in connections.items():
            other = self.fixed(connection.source, images)
            fake, real = connection.maps(own.maps[connection.block], other.maps[connection.block], transfers[i])
            if self.settings.adversarial:
                shown = ((real, other.logits), (fake, own.logits))
                answers = [self.answers(connection.discriminator, *one) for one in shown]
                total = total + self.settings.adversarial * adversarial_loss(*answers, self.settings.loss)
            if self.settings.l1:
                total = total + self.settings.l1 * (fake - real).abs().sum() / fake.numel()
            if self.settings.l2:
                total = total + self.settings.l2 * ((fake - real) ** 2).sum() / fake.numel()
            if self.settings.aligned:
                total = total + self.settings.aligned * misalignment(fake, real)
            if self.settings.statistics:
                total = total + self.settings.statistics * statistics_difference(fake, real)
            if self.settings.relation:
                vectors = own.maps[connection.block].mean((2, 3)), other.maps[connection.block].mean((2, 3))
                total = total + self.settings.relation * relation_difference(*vectors)
        return total / len(connections)

    def discriminator_loss(self, i: int, weights: Weights, images: Tensor) -> Tensor:
        connection = self.connections[i]
        learner, source = (self.fixed(k, images) for k in (connection.learner, connection.source))
        fake, real = connection.maps(learner.maps[connection.block], source.maps[connection.block], connection.transfer)
        answers = self.answers(weights, real, source.logits), self.answers(weights, fake, learner.logits)
        loss = discriminator_loss(*answers, self.settings.loss)
        # Ours: several discriminators of one learner share its weight of 1.
        return loss / len(self.terms_of(connection.learner))

    def answers(self, weights: Weights, feature_map: Tensor, logits: Tensor) -> Tensor:
        bounded = self.settings.loss == "paper"
        if self.settings.classes:
            return class_discriminator(weights, feature_map, logits, bounded=bounded)
        return discriminator(weights, feature_map, bounded=bounded)

    def terms_of(self, k: int) -> dict[int, ReferenceConnection]:
        return {i: connection for i, connection in enumerate(self.connections) if connection.learner == k}

    def gradients(self, images: Tensor, labels: Tensor) -> Gradients:
        """The three kinds of gradient, each of its own loss, at the present parameters."""
        out: Gradients = {"logit": {}, "feature": {}, "discriminator": {}}
        for k in self.learners:
            leaves = _leaves(self.models[k].weights)
            _backward(out["logit"], ("model", k), leaves, self.logit_loss(k, leaves, images, labels))
            if self.settings.zero_gradient:
                for name, value in self.extractor(k).items():
                    out["feature"]["model", k, name] = torch.zeros_like(value)
            if not self.terms_of(k):
                continue
            leaves = _leaves(self.extractor(k))
            transfers = {i: _leaves(connection.transfer) for i, connection in self.terms_of(k).items()}
            loss = self.feature_loss(k, {**self.models[k].weights, **leaves}, transfers, images)
            _backward(out["feature"], ("model", k), leaves, loss)
            for i, own in transfers.items():
                _backward(out["feature"], ("transfer", i), own, loss)
        for i, connection in enumerate(self.connections):
            if connection.discriminator:
                leaves = _leaves(connection.discriminator)
                _backward(
                    out["discriminator"], ("discriminator", i), leaves, self.discriminator_loss(i, leaves, images)
                )
        return out

    def step(self, images: Tensor, labels: Tensor, parts: int = 1) -> None:
        """One update by a batch, in parts; each holds every `parts`-th image."""
        if labels.ndim == 1:
            self.per_label = len(labels) / max(int((labels >= 0).sum()), 1)
        total: Gradients = {"logit": {}, "feature": {}, "discriminator": {}}
        for begin in range(parts):
            part, part_labels = images[begin::parts], labels[begin::parts]
            for kind, gradients in self.gradients(part, part_labels).items():
                for key, gradient in gradients.items():
                    total[kind][key] = total[kind].get(key, 0) + gradient * len(part) / len(images)
            for k in self.learners:
                self.models[k].see(part)
        self.update(total)

    def update(self, gradients: Gradients) -> None:
        """First the optimiser of the logit loss, then those of the features and discriminators."""
        s = self.settings
        if self.number % s.interval:
            gradients = {**gradients, "feature": {}, "discriminator": {}}
        elif self.number // s.interval % s.discriminator_interval:
            gradients = {**gradients, "discriminator": {}}
        self.number += 1
        if s.single:
            for key in [key for key in gradients["feature"] if key[0] == "model"]:
                gradients["logit"][key] = gradients["logit"][key] + gradients["feature"].pop(key)
        if s.clip is not None:
            for k in self.learners:
                own = [key for key in gradients["logit"] if key[1] == k]
                norm = math.sqrt(sum(float((gradients["logit"][key] ** 2).sum()) for key in own))
                for key in own:
                    gradients["logit"][key] = gradients["logit"][key] * min(1.0, s.clip / (norm + 1e-6))
        for key, g in gradients["logit"].items():
            self.move(key, sgd(self.value(key), g, self.state_of("logit", key), s.lr, s.momentum, s.decay))
        rates = {
            "feature": (s.adversarial_lr, s.adversarial_decay),
            "discriminator": (s.discriminator_lr, s.discriminator_decay),
        }
        for kind, rate in rates.items():
            for key, g in gradients[kind].items():
                own = self.state_of(kind, key)
                self.move(key, adam(self.value(key), g, own, *rate, decoupled=s.decoupled))

    def state_of(self, kind: str, key: Key) -> Weights:
        return self.state.setdefault((kind, key), {})

    def weights_of(self, what: str, position: int) -> Weights:
        if what == "model":
            return self.models[position].weights
        connection = self.connections[position]
        return connection.transfer if what == "transfer" else connection.discriminator

    def value(self, key: Key) -> Tensor:
        return self.weights_of(*key[:2])[key[2]]

    def move(self, key: Key, value: Tensor) -> None:
        self.weights_of(*key[:2])[key[2]] = value


def _leaves(weights: Weights) -> Weights:
    return {name: value.clone().requires_grad_() for name, value in weights.items()}


def _backward(out: dict[Key, Tensor], owner: tuple[str, int], leaves: Weights, loss: Tensor) -> None:
    names = list(leaves)
    gradients = torch.autograd.grad(loss, [leaves[name] for name in names], retain_graph=True) if names else ()
    out.update({(*owner, name): gradient for name, gradient in zip(names, gradients, strict=True)})
