"""Recognise the folders of a train/validation split by their names: train/ and val/, Training/ and Test/, …"""

from __future__ import annotations

import re
from collections.abc import Iterable

TRAIN_NAMES = ("train", "training", "trn")
# By precedence: where there are val/ and test/, test/ is left for a final evaluation.
VAL_NAMES = ("val", "valid", "validation", "dev", "development", "eval", "evaluation", "holdout", "test", "testing")

# Words that add nothing, alone or joined to the name: train_images, TestSet, val2017.
_FILLERS = ("dataset", "data", "set", "images", "image", "imgs", "img", "pictures", "photos", "split", "folder")
_WORD_ENDS = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])")  # the last of trainA


def split_name(folder: str) -> str | None:
    """The name in TRAIN_NAMES or VAL_NAMES that a folder's name stands for; None for any other."""
    names = [_bare(word) for word in _words(folder) if word not in _FILLERS]
    return names[0] if len(names) == 1 and names[0] in (*TRAIN_NAMES, *VAL_NAMES) else None


def hints_at_split(folder: str) -> bool:
    """Whether a word of a folder's name is that of a split, as in seg_train."""
    return any(_bare(word) in (*TRAIN_NAMES, *VAL_NAMES) for word in _words(folder))


def hints_at_training(folder: str) -> bool:
    """Whether a folder's name is that of a split, or a word of it that of the training one."""
    return bool(split_name(folder)) or any(_bare(word) in TRAIN_NAMES for word in _words(folder))


def split_pair(folders: Iterable[str]) -> tuple[str, str] | None:
    """The first two folders whose names differ in the word of the split alone, as seg_train and seg_test do."""
    train: dict[tuple[str, ...], str] = {}
    val: dict[tuple[str, ...], str] = {}
    for folder in folders:
        words = [_bare(word) for word in _words(folder)]
        for place, word in enumerate(words):
            others = (*words[:place], "", *words[place + 1 :])
            if word in TRAIN_NAMES:
                train.setdefault(others, folder)
            elif word in VAL_NAMES:
                val.setdefault(others, folder)
    return next(((train[others], val[others]) for others in train if others in val), None)


def _words(folder: str) -> list[str]:
    return [word.casefold() for word in _WORD_ENDS.split(folder) if word]


def _bare(word: str) -> str:
    """The word without a filler joined to its end."""
    return next((word.removesuffix(filler) for filler in _FILLERS if word.endswith(filler)), word)
