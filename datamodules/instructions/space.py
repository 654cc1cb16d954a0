"""The instruction space: what a prompt tells of a user's preference and intention, and the form of its task.

The three axes are InstructRec's (Zhang et al. 2023, arXiv 2305.07001), and so are the codes P0 to P2, I0 to I2 and T0 to
T3. `rating` (answer with a number) has no code in the paper and goes by its name.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal, get_args

from datamodules.contract.errors import InputError

Preference = Literal["none", "implicit", "explicit", "both"]
Intention = Literal["none", "preference", "vague", "specific"]
TaskForm = Literal["matching", "reranking", "like", "rating", "pairwise"]

_PREFERENCES: dict[tuple[str, ...], Preference] = {
    ("P0",): "none",
    ("P1",): "implicit",
    ("P2",): "explicit",
    ("P1", "P2"): "both",
}
_INTENTIONS: dict[str, Intention] = {"I0": "none", "I1": "vague", "I2": "specific"}
_FORMS: dict[str, TaskForm] = {
    "T0": "like",
    "T1": "pairwise",
    "T2": "matching",
    "T3": "reranking",
    "rating": "rating",
}


@dataclass(frozen=True)
class InstructionCell:
    """A place in the instruction space.

    Attributes:
        preference: P0 `none`, P1 `implicit` (titles of the history), P2 `explicit` (a text), or `both`.
        intention: I0 `none`, I1 `vague`, I2 `specific`, or `preference`: an explicit preference takes the place of the
            request, as in InstructRec's search by preference `P1,P2,T3`.
        form: T0 `like`, T1 `pairwise`, T2 `matching`, T3 `reranking`, or `rating`.
    """

    preference: Preference = "implicit"
    intention: Intention = "none"
    form: TaskForm = "matching"

    def __post_init__(self) -> None:
        """Refuses what says nothing, or the same thing twice.

        Raises:
            InputError: there is neither a preference nor an intention, or an explicit preference is both.
        """
        if self.preference == "none" and self.intention == "none":
            raise InputError("cell P0,I0 tells a model nothing of the user; give a preference or an intention")
        if self.preference in ("explicit", "both") and self.intention == "preference":
            raise InputError("an explicit preference cannot be told twice; use P0 or P1 with a search by preference")

    def __str__(self) -> str:
        """The codes, such as `P1,I2,T3`; `P1,P2,T3` where a preference is searched by."""
        words = [",".join(next(codes for codes, name in _PREFERENCES.items() if name == self.preference))]
        words += ["P2" if self.intention == "preference" else _code(_INTENTIONS, self.intention)]
        return ",".join([*words, _code(_FORMS, self.form)])


def _code(codes: dict[str, Preference] | dict[str, Intention] | dict[str, TaskForm], name: str) -> str:
    return next(code for code, value in codes.items() if value == name)


def parse_cell(text: str) -> InstructionCell:
    """Reads a cell of the instruction space.

    Raises:
        InputError: a code is unknown (the nearest one is offered), or one of the three is missing.

    Example:
        >>> parse_cell("P1,I2,T3")
        InstructionCell(preference='implicit', intention='specific', form='reranking')
        >>> parse_cell("P1,P2,I0,T2").preference, parse_cell("P1,P2,T2").intention
        ('both', 'preference')
    """
    codes = [code.strip() for code in text.split(",")]
    known = [*("P0", "P1", "P2"), *_INTENTIONS, *_FORMS]
    for code in codes:
        if code not in known:
            alike = [each for each in known if each[0] == code[:1]]  # of the same axis
            near = difflib.get_close_matches(code, alike or known, n=1, cutoff=0)[0]
            raise InputError(f"cell {text!r}: no code {code!r}; the nearest is {near!r} (there are {', '.join(known)})")
    preference = tuple(code for code in codes if code.startswith("P"))
    intentions = [code for code in codes if code in _INTENTIONS]
    forms = [code for code in codes if code in _FORMS]
    by_preference = not intentions and len(preference) == 2
    if by_preference:
        preference, last = preference[:1], preference[1]
        by_preference = last == "P2"
    complete = len(forms) == 1 and (len(intentions) == 1 or by_preference) and preference in _PREFERENCES
    if not complete or codes != [*preference, *(["P2"] if by_preference else intentions), *forms]:
        raise InputError(
            f"cell {text!r} must name preference, intention and task form, such as P1,I0,T3 or P1,P2,I0,T2"
        )
    intention: Intention = "preference" if by_preference else _INTENTIONS[intentions[0]]
    return InstructionCell(_PREFERENCES[preference], intention, _FORMS[forms[0]])


def every_cell() -> list[InstructionCell]:
    """All cells of the space, in the order of the axes.

    Example:
        >>> len(every_cell()), str(every_cell()[0])
        (65, 'P0,P2,T2')
    """
    made = []
    for preference in get_args(Preference):
        for intention in get_args(Intention):
            nothing = preference == "none" and intention == "none"
            if nothing or (preference in ("explicit", "both") and intention == "preference"):
                continue
            made += [InstructionCell(preference, intention, form) for form in get_args(TaskForm)]
    return made
