"""A run that takes a second: few images, small networks, a few steps of everything."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from learning_by_asking.ask import Policy
from learning_by_asking.asking.propose import Generator
from learning_by_asking.asking.relevance import Relevance
from learning_by_asking.config import BuiltIn, Config, Data, Learn, Rounds
from learning_by_asking.model import Answerer

WORLD = BuiltIn(train_images=12, val_images=6, per_image=6, families=["zero_hop", "one_hop"])
FEW = Learn(steps=2, lr=2e-3, batch_size=8)


def settings(folder: Path, **changed: Any) -> Config:
    """Two rounds of six questions each, and no answerer that learns offline."""
    plain = Config(
        seed=3,
        budget=12,
        offline=FEW,
        models=[],
        start=FEW,
        log_every=1,
        threads=1,
        output_dir=str(folder),
        data=Data(name="builtin", init=40, builtin=WORLD),
        rounds=Rounds(images=6, updates=2, lr=2e-3, batch_size=8),
        generator=Generator("empirical", steps=2, batch_size=8, embed=8, hidden=8, raw=6, kept=4),
        relevance=Relevance("none", steps=2, batch_size=8, held_out=0.4, refresh_steps=1, every=1),
        policy=Policy(refresh=4),
        answerer=Answerer(
            embed=8, hidden=8, layers=1, attention=8, fc=[8], film_blocks=1, film_width=8
        ),
    )
    return replace(plain, **changed)
