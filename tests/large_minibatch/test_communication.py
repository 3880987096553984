"""The model of Figs. 7 and 8: the paper's printed numbers, limiting cases, sums done by hand."""

from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from large_minibatch.analysis.communication import (
    Cluster,
    Gradient,
    Work,
    between_servers,
    by_work,
    inside_server,
    jitter_for,
    mean_of_slowest,
    predict,
)

COUNTS = [8, 16, 32, 64, 128, 256, 352]  # Figs. 7 and 8


@pytest.fixture(scope="module")
def layers() -> list[Gradient]:
    with torch.device("meta"):
        return by_work(torchvision.models.resnet50(), 224)


def test_resnet50_has_its_161_gradients_of_100_megabytes_last_layer_first(layers):
    assert len(layers) == 161
    assert sum(gradient.size for gradient in layers) == 4 * 25_557_032
    assert [gradient.size for gradient in layers[:2]] == [4 * 1000, 4 * 1000 * 2048]
    ready = [gradient.ready for gradient in layers]
    assert ready == sorted(ready)
    assert ready[-1] == 1


def test_the_work_of_resnet50_is_4_1_billion_multiplications(layers):
    last_layer = 2048 * 1000  # multiplications
    assert last_layer / layers[0].ready == pytest.approx(4.089e9, rel=1e-3)


def test_the_default_latency_is_that_of_the_ring_being_three_times_slower(layers):
    total = {
        name: sum(sum(between_servers(g.size, 32, Cluster(), name)) for g in layers)
        for name in ("ring", "halving_doubling")
    }
    assert total["ring"] / total["halving_doubling"] == pytest.approx(3, rel=0.01)


def test_communication_alone_costs_less_than_a_percent_on_352_gpus(layers):
    seconds = [predict(workers, layers).seconds for workers in COUNTS]
    assert seconds == sorted(seconds)
    assert seconds[-1] / seconds[0] < 1.01


def test_waiting_that_explains_figure_7_gives_figure_8_and_the_thirty_seconds(layers):
    work = Work(jitter=jitter_for(layers))
    first, large, largest = (predict(workers, layers, work=work) for workers in (8, 256, 352))
    assert largest.seconds / first.seconds == pytest.approx(1.12)  # put in
    assert 0.89 < large.efficiency(first) < 0.91  # "about 90 %"
    assert largest.epoch() == pytest.approx(30, abs=1)
    assert first.epoch() > 16 * 60
    hour = 90 * large.epoch()
    assert hour == pytest.approx(3600, rel=0.03)
    assert 0.2 < first.seconds < largest.seconds < 0.3  # the axis of Fig. 7


def test_the_ring_falls_behind_on_many_servers_only(layers):
    def lost(workers: int, algorithm: str) -> float:
        return predict(workers, layers, algorithm=algorithm).exposed

    assert lost(64, "ring") < 0.001
    assert lost(256, "ring") > 100 * lost(256, "halving_doubling")


def test_without_overlap_the_whole_aggregation_is_exposed(layers):
    hidden, open_ = predict(256, layers), predict(256, layers, overlap=False)
    assert open_.exposed == pytest.approx(open_.aggregation)
    assert open_.exposed > 30e-3 > hidden.exposed  # 2 * 100 MB over 50 Gbit/s take 32 ms
    assert open_.seconds - hidden.seconds == pytest.approx(open_.exposed - hidden.exposed)


def test_one_gpu_communicates_nothing(layers):
    alone = predict(1, layers)
    assert alone.exposed == 0
    assert alone.seconds == Work().backprop + Work().rest


def test_one_gradient_takes_its_three_phases():
    size, cluster = 1_000_000, Cluster()
    point = predict(32, [Gradient(size, 1.0)], cluster=cluster)
    inside = 20e-6 + size / 20e9
    between = 4 * cluster.latency + 1.5 * size * (15 / 12.8) / 6.25e9
    assert point.exposed == pytest.approx(2 * inside + between)
    assert point.exposed == pytest.approx(point.aggregation)


def test_gradients_below_256_kilobytes_go_through_the_cpu():
    cluster = Cluster()
    assert inside_server(262_143, 8, cluster) == pytest.approx(20e-6 + 8 * 262_143 / 12e9)
    assert inside_server(262_144, 8, cluster) == pytest.approx(20e-6 + 262_144 / 20e9)
    assert inside_server(262_144, 1, cluster) == 0


def test_more_sums_at_a_time_hide_latency_but_not_bytes():
    gradients = [Gradient(4_000_000, 0.0)] * 50
    work, slow = Work(backprop=1e-9), Cluster(latency=1e-3)
    ends = [
        predict(64, gradients, work=work, cluster=replace(slow, concurrent=c)).aggregation
        for c in (1, 2, 4, 50)
    ]
    assert ends == sorted(ends, reverse=True)
    wire = between_servers(4_000_000, 8, slow, "ring")[1]
    assert ends[0] > 50 * (wire + 6e-3)
    assert ends[-1] == pytest.approx(50 * wire + 6e-3, rel=0.02)


def test_the_largest_of_normal_numbers_has_the_means_of_the_tables():
    assert mean_of_slowest(1) == pytest.approx(0, abs=1e-9)
    assert mean_of_slowest(2) == pytest.approx(torch.pi**-0.5, abs=1e-6)
    assert mean_of_slowest(3) == pytest.approx(1.5 * torch.pi**-0.5, abs=1e-6)
    assert mean_of_slowest(8) == pytest.approx(1.42360, abs=1e-5)


def test_servers_are_full():
    with pytest.raises(ValueError, match="20 workers do not fill servers of 8: take 16 or 24"):
        predict(20, [])
    assert predict(4, []).images == 128


def test_wrong_words_and_impossible_wishes_are_told():
    with pytest.raises(ValueError, match="none of ring, halving_doubling"):
        predict(16, [Gradient(4, 1.0)], algorithm="auto")
    with pytest.raises(ValueError, match="nothing is left to explain"):
        jitter_for([Gradient(10**9, 1.0)], increase=0.01)


def test_a_layer_used_twice_has_one_gradient_complete_with_its_first_use():
    shared = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(shared, nn.Conv2d(3, 3, 1, bias=False), shared)
    assert by_work(net, 4) == [Gradient(36, 2 / 3), Gradient(12, 1.0), Gradient(36, 1.0)]


def test_a_model_whose_layers_are_not_called_stops():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(images, self.layer.weight)

    with pytest.raises(ValueError, match=r"1 layers of Hidden .* measured backprop"):
        by_work(Hidden(), 4)
