"""The embedding phi of features, Sec. 3: a perceptron, or nothing but the conversion to float32."""

import itertools

from torch import Tensor, float64, nn


class Embedding(nn.Module):
    """phi(x): linear layers d -> ... -> d with a ReLU between each two."""

    def __init__(
        self, width: int, *, layers: int = 2, hidden: int = 0, final_relu: bool = False
    ) -> None:
        """width: d. layers: 0 leaves features as they are. hidden: width between layers; 0: d."""
        super().__init__()
        widths = [width, *[hidden or width] * (layers - 1), width] if layers else []
        steps: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            steps += [nn.Linear(before, after), nn.ReLU()]
        # Unstated: whether phi ends in a ReLU.
        self.layers = nn.Sequential(*(steps if final_relu else steps[:-1]))
        self.learns = layers > 0

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) stored in any precision -> (..., d), float64 for float64 and float32 else."""
        return self.layers(x if x.dtype == float64 else x.float())
