"""No network has a 1x1 convolution of stride 2 with few input channels.

With 2 to 7 of them its backward pass in channels_last corrupts the heap on CPUs without AVX512, in
oneDNN as of torch 2.14.
"""

from functools import partial

import pytest
import torch
from torch import nn

from focal_loss import config
from focal_loss.net import backbone
from large_minibatch import config as large_config
from large_minibatch.model import MODELS, resnet
from panoptic.net import backbone as panoptic_backbone
from program_execution.model import Pixels

OPTIONS = {"first": 2, "last": 5, "norm": "bn", "eps": 1e-5, "freeze_at": 0, "width": 8}
NETWORKS = {
    **{f"large_minibatch {name}": partial(resnet, name) for name in MODELS},
    **{
        f"focal_loss {name}": partial(backbone.build, name, stride_in_1x1=False, **OPTIONS)
        for name in backbone.BACKBONES
    },
    "focal_loss as D1": partial(backbone.build, "resnet50", stride_in_1x1=True, **OPTIONS),
    "panoptic resnet50": partial(panoptic_backbone.ResNet, "resnet50", stride_in_1x1=True),
    "panoptic mini": panoptic_backbone.Mini,
    "program_execution pixels": partial(Pixels, 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_strided_1x1_convolution_has_fewer_than_8_channels(name):
    with torch.device("meta"):
        network = NETWORKS[name]()
    narrow = [
        place
        for place, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and (module.kernel_size, module.stride) == ((1, 1), (2, 2))
        and module.in_channels < 8
    ]
    assert not narrow


@pytest.mark.parametrize("model", [config.Model, large_config.Model])
def test_a_width_below_8_stops_with_one_sentence(model):
    with pytest.raises(ValueError, match=r"model\.width=7 is out of range: it must be at least 8"):
        model(width=7)
    with pytest.raises(ValueError, match="width = 7 must be at least 8"):
        resnet("mini", width=7)
