"""One spelling for a hashtag: what a vocabulary and the index of a shard compare tags by."""

import re
import unicodedata

_OTHER = re.compile("[^a-z0-9]+")


def normalise(tag: str) -> str:
    """The tag in lower case, of a..z and 0..9 alone: #Brown_Bear is brownbear, #café is cafe.

    Hashtags have no separators, so those of WordNet's lemmas go too. Empty where nothing is left.
    """
    # Unstated: the paper's spelling of tags. An accent goes and leaves its letter.
    return _OTHER.sub("", unicodedata.normalize("NFKD", tag).lower())
