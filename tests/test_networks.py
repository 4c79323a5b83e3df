"""ResNet, MobileNet and DS-CNN: their shapes, names of layers, and that int8 files of them repeat the simulation."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgedl.core import Network
from edgedl.models.dscnn import DSCNN
from edgedl.models.mobilenet import MobileNet
from edgedl.models.resnet import ResNet
from edgedl.quantize.simulate import export_graph
from edgedl.tasks.digits import Digits
from edgedl.tasks.scenes import Scenes
from tests.test_quantize_operators import deployed, target_of
from tests.toys import Noise

NETWORKS = {
    "resnet": ResNet(),
    "deep resnet": ResNet(widths=(8, 12), blocks=2),
    "mobilenet": MobileNet(),
    "narrow mobilenet": MobileNet(stem=6, widths=(6, 10, 7)),
    "dscnn": DSCNN(width=24),
    "small dscnn": DSCNN(width=6, blocks=1, kernel=(3, 5), stride=(1, 3)),
}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def accustomed(network: Network, shape: tuple[int, ...]) -> nn.Module:
    """A network with statistics of noise in its batch norms, as training leaves those of images."""
    torch.manual_seed(0)
    net = network.build(Scenes())
    with torch.no_grad():
        for _ in range(30):
            net.train()(torch.randn(16, *shape))
    return net.eval()


def shapes(net: nn.Module, image: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Each module's output, without the batch dimension, in execution order."""
    seen: dict[str, tuple[int, ...]] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: tuple(output.shape[1:])}))
    net.eval()(torch.zeros(2, *image))
    return seen


def test_resnet_is_that_of_mlperf_tiny():
    net = ResNet().build(Scenes())
    # Keras counts 78,666: 480 more for running means and variances, 240 for biases ahead of batch norms.
    assert sum(value.numel() for value in net.parameters()) == 78_666 - 480 - 240
    found = shapes(net, (3, 32, 32))
    assert found["stem"] == found["stage1"] == (16, 32, 32)
    assert found["stage2"] == (32, 16, 16)
    assert found["stage3"] == (64, 8, 8)
    assert found["pool"] == (64, 1, 1)
    assert found["flatten"] == (64,)
    assert found["dense"] == (10,)


def test_layers_of_a_resnet_have_speaking_names():
    names = [name for name, module in ResNet(blocks=2).build(Scenes()).named_modules() if not list(module.children())]
    assert names[:10] == ["stem.conv", "stem.norm", "stem.relu", *(f"stage1.block1.{layer}" for layer in (
        "conv1", "norm1", "relu1", "conv2", "norm2", "shortcut", "relu2"))]  # fmt: skip
    assert names[-4:] == ["stage3.block2.relu2", "pool", "flatten", "dense"]


def test_a_resnet_projects_only_where_shapes_change():
    net = ResNet(widths=(8, 8, 12), blocks=2).build(Scenes())
    projections = [
        name for name, module in net.named_modules() if name.endswith("shortcut") and isinstance(module, nn.Conv2d)
    ]
    assert projections == ["stage2.block1.shortcut", "stage3.block1.shortcut"]


def test_a_residual_block_adds_its_input():
    net = ResNet(widths=(4,)).build(Scenes()).eval()
    block = net.get_submodule("stage1.block1")
    nn.init.zeros_(block.norm2.weight)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), torch.relu(x))


def test_a_block_of_a_mobilenet_that_widens_halves_the_image():
    found = shapes(MobileNet(stem=8, widths=(16, 16, 24, 20, 32)).build(Scenes()), (3, 32, 32))
    assert found["stem"] == (8, 32, 32)
    assert [found[f"block{index}"] for index in range(1, 6)] == [
        (16, 32, 32), (16, 32, 32), (24, 16, 16), (20, 16, 16), (32, 8, 8)]  # fmt: skip
    assert found["dense"] == (10,)


def test_layers_of_a_mobilenet_have_speaking_names():
    net = MobileNet(widths=(32,)).build(Scenes())
    names = [name for name, module in net.named_modules() if not list(module.children())]
    assert names == ["stem.conv", "stem.norm", "stem.relu", *(f"block1.{layer}" for layer in (
        "depthwise", "norm1", "relu1", "pointwise", "norm2", "relu2")), "pool", "flatten", "dense"]  # fmt: skip
    assert net.get_submodule("block1.depthwise").groups == 16


def test_layers_of_a_dscnn_have_speaking_names():
    net = DSCNN(blocks=1).build(Scenes())
    names = [name for name, module in net.named_modules() if not list(module.children())]
    assert names == ["stem.conv", "stem.norm", "stem.relu", *(f"block1.{layer}" for layer in (
        "depthwise", "norm1", "relu1", "pointwise", "norm2", "relu2")), "pool", "flatten", "dense"]  # fmt: skip


class Spectrograms(Scenes):
    """Of one second of speech: 49 spans of time, 10 coefficients of frequency, twelve words."""

    image_shape = (1, 49, 10)
    num_classes = 12


def test_dscnn_is_that_of_mlperf_tiny():
    net = DSCNN().build(Spectrograms())
    # Keras counts 24,908: 1,152 more for running means and variances, 576 for biases ahead of batch norms.
    assert sum(value.numel() for value in net.parameters()) == 24_908 - 1_152 - 576
    found = shapes(net, Spectrograms.image_shape)
    assert found["stem"] == found["block1"] == found["block4"] == (64, 25, 5)
    assert found["dense"] == (12,)


@pytest.mark.parametrize("kernel", [3, 4, 10])
@pytest.mark.parametrize("stride", [2, 3])
def test_the_first_layer_of_a_dscnn_loses_no_edge(kernel, stride):
    net = DSCNN(width=4, blocks=1, kernel=(kernel, kernel), stride=(stride, stride)).build(Spectrograms())
    assert shapes(net, Spectrograms.image_shape)["stem"] == (4, -(-49 // stride), -(-10 // stride))


@each_network
@pytest.mark.parametrize("task", [Digits(), Scenes(), Spectrograms()], ids=lambda task: task.use)
def test_any_image_gives_a_logit_a_class(network, task):
    net = network.build(task).eval()
    for size in (1, 3):
        assert net(torch.zeros(size, *task.image_shape)).shape == (size, task.num_classes)


def test_an_image_of_one_pixel_is_large_enough():
    class Dot(Scenes):
        image_shape = (3, 1, 1)

    for network in NETWORKS.values():
        assert network.build(Dot()).eval()(torch.zeros(2, 3, 1, 1)).shape == (2, 10)


@pytest.mark.parametrize("fields", [{"widths": ()}, {"widths": (16, 0)}, {"blocks": 0}, {"depth": 8}])
def test_a_resnet_refuses_what_it_cannot_build(fields):
    with pytest.raises(ValidationError):
        ResNet(**fields)


@pytest.mark.parametrize("fields", [{"widths": (16, -1)}, {"stem": 0}, {"alpha": 0.5}])
def test_a_mobilenet_refuses_what_it_cannot_build(fields):
    with pytest.raises(ValidationError):
        MobileNet(**fields)


@pytest.mark.parametrize("fields", [{"width": 0}, {"blocks": 0}, {"kernel": (10,)}, {"stride": (2, 0)}])
def test_a_dscnn_refuses_what_it_cannot_build(fields):
    with pytest.raises(ValidationError):
        DSCNN(**fields)


@each_network
def test_errors_and_reports_can_name_its_layers(network):
    graph = export_graph(network.build(Scenes()).eval(), Noise(shape=(3, 32, 32)))
    convolutions = [node for node in graph.graph.nodes if "conv2d" in str(node.target)]
    assert convolutions
    assert all(node.meta["nn_module_stack"] for node in convolutions)


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
@pytest.mark.parametrize(
    ("network", "exactly"),
    [(ResNet(), False), (MobileNet(), True), (DSCNN(width=16), True)],
    ids=["resnet", "mobilenet", "dscnn"],
)
def test_int8_files_repeat_the_simulation(network, exactly, use, tmp_path):
    shape = (3, 16, 16)
    climb = deployed(accustomed(network, shape), Noise(shape=shape), target_of(use), tmp_path)
    assert climb.breach is None
    if climb.agreement.max_steps is None:  # outputs are float there, and may differ in their last bits
        assert climb.agreement.sqnr_db > 100
    else:
        assert climb.agreement.max_steps <= (0 if exactly else 1)  # runtimes round additions in their own ways
    assert climb.quantization_db > 25  # and the simulation is the network
