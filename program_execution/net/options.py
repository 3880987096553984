"""The options of the networks. Without torch, so that a command that only lists starts at once."""

from dataclasses import dataclass, field

INITIALISATIONS = ("default", "he")
EXECUTIONS = ("grouped", "bmm", "reference")
MALFORMED = ("complete", "invalid")


@dataclass
class EngineOptions:
    """The sizes of an engine, and how it runs; the defaults are the public code's."""

    stem_layers: int = 2  # convolutions in front of the modules
    module_dim: int = 128  # channels between the modules
    classifier_proj: int = 512  # channels of the classifier's 1 x 1 convolution; 0: none
    classifier_fc: list[int] = field(default_factory=lambda: [1024])  # its hidden layers
    batch_norm: bool = False  # in stem, modules and classifier
    malformed: str = "complete"  # a program that is no tree: complete it | invalid: do not run it
    execution: str = "grouped"  # grouped | bmm: for GPUs | reference: one module, one map at a time
    share: bool = True  # equal sub-programs on one image run once
    initialisation: str = "default"  # default: PyTorch's | he: wide, see `_start_wide`


@dataclass
class EncoderOptions:
    """The sizes of what reads a question."""

    embedding: int = 300  # of a word
    hidden: int = 256  # of the LSTM
    layers: int = 2
    dropout: float = 0.0  # between the layers


@dataclass
class NetworkOptions(EngineOptions, EncoderOptions):
    """Which networks there are, and their sizes; those of the engine and of the LSTMs among them.

    The defaults are the paper's networks, Sec. 3, in the public code's sizes.
    """

    name: str = "iep"  # generator and engine | qtype_mode | lstm | cnn_lstm | cnn_lstm_sa[_mlp]
    engine: str = "neural"  # neural | symbolic: programs run on the scene graphs, an upper bound
    attention: str = "none"  # of the generator: none | dot
    cnn_dim: int = 512  # channels of the baselines' 1 x 1 convolution
    attention_dim: int = 512  # of stacked attention
    baseline_fc: list[int] = field(default_factory=lambda: [1024])  # hidden layers; SA has none
    pixel_dim: int = 32  # channels of the convolutions that turn built-in images into features
