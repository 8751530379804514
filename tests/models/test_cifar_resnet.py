"""The shared timm contract, on one model of each family, and the ResNets themselves."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn

import feature_gan_kd.models  # noqa: F401  registers the names
from feature_gan_kd.utils.errors import UserError

# RepDistiller's models.resnet, 100 classes. He et al. 2016, table 6, have 0.27, 0.46, 0.85 and 1.7M: 10 classes
# and shortcuts without parameters.
PUBLISHED = {
    "cifar_resnet8": 83_892,
    "cifar_resnet14": 181_108,
    "cifar_resnet20": 278_324,
    "cifar_resnet32": 472_756,
    "cifar_resnet56": 861_620,
    "cifar_resnet110": 1_736_564,
}
# name: channels of the three maps, module whose output is the last one
FAMILIES = {
    "cifar_resnet20": ((16, 32, 64), "layer3"),
    "cifar_wrn_16_2": ((32, 64, 128), "act"),
}
family = pytest.mark.parametrize("name", FAMILIES)


def images(count: int = 2, channels: int = 3, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def build(name: str, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def gradients(model: nn.Module) -> list[Tensor]:
    model(images()).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert sum(p.numel() for p in build(name).parameters()) == PUBLISHED[name]


def test_resnet_equals_a_functional_reference() -> None:
    model = build("cifar_resnet20").double()
    state = model.state_dict()
    for value in state.values():  # BatchNorm's weights away from 1 and 0, so that each of them matters
        if value.ndim == 1:
            value.uniform_(0.5, 1.5)

    def conv_bn(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return F.batch_norm(x, None, None, state[f"{bn}.weight"], state[f"{bn}.bias"], training=True)

    x = conv_bn(images(dtype=torch.float64), "conv1", "bn1").relu()
    for stage, block in ((s, b) for s in (1, 2, 3) for b in range(3)):
        path, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        y = conv_bn(x, f"{path}.conv1", f"{path}.bn1", stride).relu()
        y = conv_bn(y, f"{path}.conv2", f"{path}.bn2")
        if stride == 2:
            x = conv_bn(x, f"{path}.downsample.0", f"{path}.downsample.1", stride)
        x = (x + y).relu()
    expected = F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])

    torch.testing.assert_close(model(images(dtype=torch.float64)), expected, rtol=1e-10, atol=1e-10)


def test_parameter_names_are_those_of_repdistiller() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{key}" for key in norm)}
    for stage, block in ((s, b) for s in (1, 2, 3) for b in range(3)):
        for n in (1, 2):
            expected.add(f"layer{stage}.{block}.conv{n}.weight")
            expected.update(f"layer{stage}.{block}.bn{n}.{key}" for key in norm)
    for stage in (2, 3):
        expected.add(f"layer{stage}.0.downsample.0.weight")
        expected.update(f"layer{stage}.0.downsample.1.{key}" for key in norm)
    assert set(build("cifar_resnet20").state_dict()) == expected


@family
def test_timm_lists_the_name_with_the_cifar_configuration(name: str) -> None:
    cfg = build(name).default_cfg
    assert name in timm.list_models("cifar_*")
    assert name not in timm.list_pretrained("cifar_*")
    assert cfg["architecture"] == name
    assert (cfg["input_size"], cfg["pool_size"], cfg["num_classes"]) == ((3, 32, 32), (8, 8), 100)
    assert (cfg["mean"], cfg["std"]) == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert (cfg["first_conv"], cfg["classifier"], cfg["license"]) == ("conv1", "fc", "apache-2.0")


@family
def test_pretrained_weights_do_not_exist(name: str) -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        build(name, pretrained=True)


@family
def test_initialisation_is_he_fan_out(name: str) -> None:
    for module in build(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@family
def test_forward_is_head_of_features(name: str) -> None:
    model = build(name).eval()
    features = model.forward_features(images())
    assert features.shape == (2, model.num_features, 8, 8)
    torch.testing.assert_close(model(images()), model.forward_head(features), rtol=0, atol=0)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model.get_classifier()(pooled), model(images()), rtol=0, atol=0)
    assert model.get_classifier(name_only=True) == "fc"


@family
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_map_is_the_output_of_the_module_it_names(name: str, checkpointing: bool) -> None:
    model = build(name)
    model.set_grad_checkpointing(checkpointing)
    channels, last = FAMILIES[name]
    outputs: dict[str, list[Tensor]] = {"layer1": [], "layer2": [], last: []}
    for path, seen in outputs.items():
        model.get_submodule(path).register_forward_hook(lambda _module, _args, out, seen=seen: seen.append(out))

    features = model.forward_features(images())
    assert [len(seen) for seen in outputs.values()] == [1, 1, 1]
    assert outputs[last][0] is features
    features.sum().backward()  # recomputation must not call a tapped module again
    assert [len(seen) for seen in outputs.values()] == [1, 1, 1]

    assert [info["module"] for info in model.feature_info] == list(outputs)
    assert tuple(info["num_chs"] for info in model.feature_info) == channels
    for info, (seen,) in zip(model.feature_info, outputs.values(), strict=True):
        assert seen.shape == (2, info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])


@family
def test_what_a_hook_sees_stays_as_it_is(name: str) -> None:
    model = build(name)
    seen: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        module.register_forward_hook(lambda _module, _args, out: seen.append((out, out.detach().clone())))
    model(images())
    assert len(seen) == len(list(model.modules()))
    assert all(torch.equal(out, then) for out, then in seen)


@family
def test_forward_intermediates(name: str) -> None:
    model = build(name).eval()
    final, maps = model.forward_intermediates(images())
    expected = model.forward_features(images())
    torch.testing.assert_close(final, expected, rtol=0, atol=0)
    assert maps[-1] is final
    assert tuple(m.shape[1] for m in maps) == FAMILIES[name][0]

    chosen = model.forward_intermediates(images(), indices=[0, 2], intermediates_only=True)
    torch.testing.assert_close(chosen, [maps[0], maps[2]], rtol=0, atol=0)
    stopped, (second,) = model.forward_intermediates(images(), indices=[1], stop_early=True)
    assert stopped is second
    torch.testing.assert_close(second, maps[1], rtol=0, atol=0)
    with pytest.raises(UserError, match="output_fmt: 'NLC'"):
        model.forward_intermediates(images(), output_fmt="NLC")

    extractor = build(name, features_only=True).eval()
    torch.testing.assert_close(extractor(images()), maps, rtol=0, atol=0)
    assert tuple(extractor.feature_info.channels()) == FAMILIES[name][0]


@family
def test_reset_classifier(name: str) -> None:
    model = build(name).double().eval()
    x = images(dtype=torch.float64)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7)
    assert not model.fc.training
    model.reset_classifier(5, "catavgmax")
    assert model.fc.in_features == model.head_hidden_size == 2 * model.num_features
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)  # keeps the pooling
    torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert model(x).shape == (2, 2 * model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_features, 8, 8)


@family
def test_in_chans_and_other_image_sizes(name: str) -> None:
    model = build(name, in_chans=1, num_classes=10, global_pool="max").eval()
    assert model(images(channels=1)).shape == (2, 10)
    assert model.forward_features(images(channels=1, size=8)).shape == (2, model.num_features, 2, 2)


@family
def test_drop_rate_acts_on_the_pooled_features_in_training_only(name: str) -> None:
    model = build(name, drop_rate=0.5)
    features = model.forward_features(images()) + 1  # no zeros of its own
    dropped = (model.forward_head(features, pre_logits=True) == 0).float().mean().item()
    assert 0.2 < dropped < 0.8
    assert (model.eval().forward_head(features, pre_logits=True) != 0).all()


@family
def test_checkpointing_recomputes_and_leaves_the_gradients_equal(name: str) -> None:
    model, plain = build(name), build(name)
    model.set_grad_checkpointing()
    calls: list[str] = []
    for stage in ("layer1", "layer2", "layer3"):
        first = model.get_submodule(f"{stage}.0.conv1")
        first.register_forward_hook(lambda _module, _args, _out, stage=stage: calls.append(stage))
    torch.testing.assert_close(gradients(model), gradients(plain), rtol=0, atol=0)
    assert calls == ["layer1", "layer2", "layer3", "layer3", "layer2", "layer1"]
    model.set_grad_checkpointing(False)
    gradients(model)
    assert calls[6:] == ["layer1", "layer2", "layer3"]


@family
def test_parameter_groups_follow_the_depth(name: str) -> None:
    model = build(name)
    for coarse, groups in ((True, 5), (False, 2 + sum(len(model.get_submodule(f"layer{i}")) for i in (1, 2, 3)))):
        layers = group_parameters(model, model.group_matcher(coarse), reverse=True)
        order = [layers[key] for key, _ in model.named_parameters()]
        assert order == sorted(order)
        assert set(order) == set(range(groups))
        assert {key for key, layer in layers.items() if layer == groups - 1} == {"fc.weight", "fc.bias"}


@family
def test_state_dict_round_trip(name: str, tmp_path: Path) -> None:
    source = build(name, num_classes=10)
    source(images())  # moves the running statistics
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(5)
    loaded = timm.create_model(name, num_classes=10, checkpoint_path=str(tmp_path / "weights.pt"))
    torch.testing.assert_close(loaded.eval()(images()), source.eval()(images()), rtol=0, atol=0)


@family
def test_channels_last_stays_channels_last(name: str) -> None:
    model = build(name).eval()
    expected = model(images())
    model, x = model.to(memory_format=torch.channels_last), images().to(memory_format=torch.channels_last)
    assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@family
def test_compiles_as_one_graph(name: str) -> None:
    model = build(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), model(images()), rtol=0, atol=0)
