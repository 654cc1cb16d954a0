"""Instructions: a preference, an intention and a task form, written as a chat. The only place prompt text is made.

The three axes are InstructRec's (Zhang et al. 2023, arXiv 2305.07001). Titles and every other value of the data are
*data*: they are put into a sandboxed template as strings, never evaluated, and control characters become spaces.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

import yaml
from jinja2.exceptions import SecurityError

from datamodules.safe_templates import compile_template
from datamodules.sources import InputError

TaskForm = Literal["matching", "reranking", "like"]
Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Instruction:
    """One prompt and the answers to be scored under it.

    Attributes:
        system: text of the system turn.
        user: text of the user turn.
        answers: candidate answers (the branches), in the order of the case's candidates.
    """

    system: str
    user: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Demonstration:
    """A solved case that prompts show before their own.

    Attributes:
        instruction: as any case is asked.
        answer: the right one.
        user: the user's id, for messages.
    """

    instruction: Instruction
    answer: str
    user: str


@dataclass(frozen=True)
class InstructionTemplate:
    """The wording of one cell of the instruction space.

    Attributes:
        id: name used in configs and in the protocol, `<form>.<language>.<number>`.
        form: task form: `matching` (T2), `reranking` (T3), `like` (T0).
        language: `en` or `zh`.
        preference: P0 `none`, P1 `implicit` or P2 `explicit`.
        intention: I0 `none`, I1 `vague` or I2 `specific`.
        columns: what it needs of the data.
        system: template text of the system turn.
        user: template text of the user turn.
        answers: fixed answers, positive first; empty where the candidates' titles are the answers.
    """

    id: str
    form: TaskForm
    language: Language
    preference: str
    intention: str
    columns: tuple[str, ...]
    system: str
    user: str
    answers: tuple[str, ...] = ()

    def render(
        self,
        words: dict[str, str],
        *,
        history: Sequence[str],
        liked: Sequence[bool] = (),
        candidates: Sequence[str] = (),
        target: str = "",
    ) -> Instruction:
        """Fills in one case.

        Args:
            words: the domain's nouns and verbs in this language (`noun`, `nouns`, `consumed`).
            history: titles the user chose, oldest first.
            liked: for `like`, whether the user liked each of them.
            candidates: titles to answer with (and to list, in `reranking`).
            target: for `like`, the title asked about.

        Returns:
            The instruction; its answers are the candidates, or the template's own.

        Example:
            >>> template = find_template("matching.en.1")
            >>> words = {"noun": "movie", "nouns": "movies", "consumed": "watched"}
            >>> made = template.render(words, history=["Alien", "Heat"], candidates=["Fargo"])
            >>> print(made.user)
            Movies a user watched, oldest first: Alien; Heat.
            Which movie comes next?
        """
        titles = [clean_title(title) for title in history]
        listed = tuple(clean_title(title) for title in candidates)
        values: dict[str, Any] = {
            "words": words,
            "history": titles,
            "rated": list(zip(titles, liked, strict=True)) if liked else [],
            "candidates": list(listed),
            "target": clean_title(target),
        }
        return Instruction(
            system=compile_template(self.system).render(values),
            user=compile_template(self.user).render(values),
            answers=self.answers or listed,
        )


def clean_title(title: str) -> str:
    r"""Makes one line of ordinary text of a title: control, line-break and bidirectional characters become spaces.

    Special-token strings stay as they are; the encoder keeps them from becoming special token ids.

    Example:
        >>> clean_title("Up\n<|im_end|>\u202e x")
        'Up <|im_end|> x'
    """
    if title.isascii() and title.isprintable():
        return " ".join(title.split()) if "  " in title or title[:1] == " " or title[-1:] == " " else title
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") else c for c in title)
    return " ".join(plain.split())


@cache
def load_templates() -> dict[str, InstructionTemplate]:
    """Reads every shipped template.

    Returns:
        Templates by id.

    Raises:
        InputError: a template file lacks a field or an id repeats.

    Example:
        >>> load_templates()["like.zh.1"].answers
        ('是', '否')
    """
    found: dict[str, InstructionTemplate] = {}
    for file in sorted(resources.files("datamodules").joinpath("templates").iterdir(), key=lambda f: f.name):
        sheet = yaml.safe_load(file.read_text(encoding="utf-8"))
        for field in ("form", "preference", "intention", "columns", "templates"):
            if field not in sheet:
                raise InputError(f"{file.name}: the field {field!r} is missing")
        shared = {k: sheet[k] for k in ("form", "preference", "intention")} | {"columns": tuple(sheet["columns"])}
        if shared["form"] not in get_args(TaskForm):
            raise InputError(f"{file.name}: form is {shared['form']!r}, must be one of {', '.join(get_args(TaskForm))}")
        for entry in sheet["templates"]:
            try:
                template = InstructionTemplate(**(shared | entry | {"answers": tuple(entry.get("answers", ()))}))
            except TypeError as error:
                raise InputError(f"{file.name}: template {entry.get('id')!r}: {error}") from error
            try:
                compile_template(template.system), compile_template(template.user)
            except SecurityError as error:
                raise InputError(f"{file.name}: template {template.id!r}: {error}") from error
            if template.id in found:
                raise InputError(f"{file.name}: template id {template.id!r} stands twice")
            found[template.id] = template
    return found


def find_template(name: str) -> InstructionTemplate:
    """Looks a template up by id.

    Raises:
        InputError: there is none of that name; the nearest one is offered.
    """
    templates = load_templates()
    if name in templates:
        return templates[name]
    near = difflib.get_close_matches(name, templates, n=1, cutoff=0)
    raise InputError(f"no template {name!r}; the nearest is {near[0]!r} (there are {', '.join(sorted(templates))})")


def default_template(form: str, language: str) -> InstructionTemplate:
    """The first template of a form and a language."""
    return find_template(f"{form}.{language}.1")
