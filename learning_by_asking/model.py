"""The answerers v(a | I, q) and the relevance model r(I, q) by their options.

B questions, L tokens, I images, C x H x W features, A answers. All have
`forward(questions (B, L), features (I, C, H, W), image_of (B,))`, and its two halves: `project`,
once an image, and `answer`, once a question.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from .net.attention import CnnLstm, Lstm, StackedAttentionNet
from .net.encoder import OnImages, QuestionEncoder
from .net.film import FilmNet
from .net.modules import ModuleNet

ANSWERERS = ("sa", "cnn_lstm", "lstm", "film", "modules")


@dataclass
class Answerer:
    """Which network answers, and its sizes; the relevance model has those of `sa`."""

    name: str = "sa"  # sa: stacked attention, the paper's | cnn_lstm | lstm | film | modules
    embed: int = 300  # of a word or token; sizes up to `fc` are those of the public baselines
    hidden: int = 256  # of the LSTM
    layers: int = 2
    attention: int = 512
    rounds: int = 2
    fc: list[int] = field(default_factory=lambda: [1024])  # hidden layers in front of the answers
    coordinates: bool = True  # Unstated: of sa, x and y of each position beside the features
    cnn_width: int = 512  # of cnn_lstm
    film_blocks: int = 4
    film_width: int = 128
    module_hidden: int = 96  # of modules, which are ours
    module_state: int = 48
    objects: int = 6  # of modules: positions of the map that are looked at; most in a scene
    image_width: int = 64  # of the convolutions in front, where features are images

    def __post_init__(self) -> None:
        if self.name not in ANSWERERS:
            raise ValueError(f"answerer.name={self.name!r} is not one of {', '.join(ANSWERERS)}")
        sizes = {name: value for name, value in vars(self).items() if type(value) is int}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"answerer.{name}={value}: give a whole number of 1 or more")
        if any(size < 1 for size in self.fc):
            raise ValueError(f"answerer.fc={self.fc}: give sizes of 1 or more, or [] for no layer")


def build_answerer(
    options: Answerer,
    *,
    tokens: int,
    answers: int = 32,
    feature_size: tuple[int, int, int],
    images: bool = False,
    arity: Sequence[int] | None = None,
) -> nn.Module:
    """A network with logits (B, answers), -inf for the special ids.

    tokens: ids of words or program tokens. feature_size: C, H, W of a map. images: there are images
    (3, H, W), 0..1, instead of maps. arity: of `modules`, how many values each program token takes,
    -1 of one that is no function.
    """
    fc = list(options.fc)
    if images and options.name != "lstm":  # which sees neither
        network = build_answerer(
            options,
            tokens=tokens,
            answers=answers,
            feature_size=_map_of(options, feature_size),
            arity=arity,
        )
        return OnImages(network, options.image_width)
    if options.name == "modules":
        if arity is None or len(arity) != tokens:
            raise ValueError(
                f"answerer.name=modules runs programs and needs the arity of each of {tokens} "
                "tokens: set question_form=program"
            )
        return ModuleNet(
            arity=arity,
            feature_size=feature_size,
            objects=options.objects,
            state=options.module_state,
            hidden=options.module_hidden,
            fc=fc,
            outputs=answers,
        )
    encoder = _build_encoder(options, tokens)
    match options.name:
        case "sa":
            return _build_attention(options, encoder, feature_size, answers)
        case "cnn_lstm":
            return CnnLstm(
                encoder=encoder,
                feature_size=feature_size,
                width=options.cnn_width,
                fc=fc,
                outputs=answers,
            )
        case "film":
            return FilmNet(
                encoder=encoder,
                feature_size=feature_size,
                blocks=options.film_blocks,
                width=options.film_width,
                fc=fc,
                outputs=answers,
            )
        case _:
            return Lstm(encoder=encoder, fc=fc, outputs=answers)


def build_relevance(
    options: Answerer, *, tokens: int, feature_size: tuple[int, int, int], images: bool = False
) -> nn.Module:
    """The answerer's stacked attention with its own weights and one logit (B,)."""
    encoder = _build_encoder(options, tokens)
    if images:
        network = _build_attention(options, encoder, _map_of(options, feature_size), 1)
        return OnImages(network, options.image_width)
    return _build_attention(options, encoder, feature_size, 1)


def _map_of(options: Answerer, image_size: tuple[int, int, int]) -> tuple[int, int, int]:
    """C, H, W of the maps that the convolutions in front make of images."""
    channels, height, width = image_size
    if channels != 3:
        raise ValueError(f"images have 3 channels, not {channels}: they are uint8 (I, 3, H, W)")
    return options.image_width, *OnImages.map_size(height, width)


def _build_encoder(options: Answerer, tokens: int) -> QuestionEncoder:
    return QuestionEncoder(
        tokens=tokens, embed=options.embed, hidden=options.hidden, layers=options.layers
    )


def _build_attention(
    options: Answerer,
    encoder: QuestionEncoder,
    feature_size: tuple[int, int, int],
    outputs: int,
) -> StackedAttentionNet:
    return StackedAttentionNet(
        encoder=encoder,
        feature_size=feature_size,
        attention=options.attention,
        rounds=options.rounds,
        fc=list(options.fc),
        add_coordinates=options.coordinates,
        outputs=outputs,
    )


@dataclass(frozen=True)
class Loaded:
    """What `load_iep` took from a checkpoint, and what it left out, each with the reason."""

    taken: tuple[str, ...]
    left: dict[str, str]


def load_iep(model: StackedAttentionNet, state: Mapping[str, Tensor]) -> Loaded:
    """Start from the CNN+LSTM+SA weights of "Inferring and Executing Programs" (ICCV 2017).

    `stacked-attn-*` and `classifier.*` are always taken; ValueError names one that is missing or of
    another size, before a weight is changed. `image_proj` is taken without coordinates, which are
    channels of their own here; the LSTM only together with its words.
    """
    own = model.state_dict()
    fits = {key: key in state and state[key].shape == weight.shape for key, weight in own.items()}
    for key in own:
        if key.startswith(("stacked-attn", "classifier")) and not fits[key]:
            given = tuple(state[key].shape) if key in state else "no shape"
            raise ValueError(
                f"{key} has {given} in the checkpoint and {tuple(own[key].shape)} in the model: "
                "give answerer.hidden, attention, rounds and fc of the checkpoint"
            )
    left = {key: "the model has no such weight" for key in state if key not in own}
    for part in ("rnn.", "image_proj."):  # whole or not at all
        keys = [key for key in own if key.startswith(part)]
        wrong = [key for key in keys if not fits[key]]
        if wrong:
            left |= dict.fromkeys(keys, f"{wrong[0]} is missing or of another shape")
    taken = tuple(key for key in own if key not in left)
    model.load_state_dict({key: state[key] for key in taken}, strict=False)
    return Loaded(taken, left)
