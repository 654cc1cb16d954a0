"""Instructions: a preference, an intention and a task form, written as a chat. The only place prompt text is made.

Titles and every other value of the data are *data*: they are put into a sandboxed template as strings, never evaluated,
and control characters become spaces. The wordings stand in `templates/*.yaml`, one file a language; a cell's template is
put together of its parts: history, taste, request, question.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any, Literal

import yaml
from jinja2 import meta
from jinja2.exceptions import SecurityError

from datamodules.contract.errors import InputError
from datamodules.instructions.sandbox import compile_template
from datamodules.instructions.space import InstructionCell, every_cell
from datamodules.items.base import clean_title

Language = Literal["en", "zh"]
DENSE = "dense"
"""In the place of a paraphrase's number: the wording in which the history is a list that the answer continues."""
TURNED = (
    "preference_from_history",
    "query_from_item",
    "query_from_history_and_item",
    "preference_from_history_and_item",
    "history_from_query_and_item",
    "query_and_item_from_history",
    "history_and_item_from_query",
    "thought_from_history",
)
"""InstructRec's instructions that turn the task around, relate preference and intention, or think aloud."""


@dataclass(frozen=True)
class Instruction:
    """One prompt and the answers to be scored under it.

    Attributes:
        system: text of the system turn.
        user: text of the user turn.
        answers: candidate answers (the branches), in the order of the case's candidates.
        opening: text that the answer's turn begins with: the list that the answer continues.
    """

    system: str
    user: str
    answers: tuple[str, ...]
    opening: str = ""


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
        id: name used in configs: `<form>.<language>.<number>` under P1,I0, else `<cell>,<language>.<number>` with the
            cell's codes, such as `P1,I2,T3.en.1`.
        language: `en` or `zh`.
        system: template text of the system turn.
        user: template text of the user turn.
        form: task form, or the name of an instruction that turns a task around.
        cell: its place in the instruction space; None for those that turn a task around, which only train.
        answers: fixed answers, positive first or by value; empty where the candidates' titles are the answers.
        answer: template text of the one answer of an instruction that turns a task around.
        unknown: stands for a preference or an intention that is not known.
        held_out: whether training on several wordings leaves it out, so that it tests an unseen one.
        entry: template text of one `title` in a list that stands open at the end of the prompt, so that an answer is its
            next entry; empty where the history is told in the question.
    """

    id: str
    language: str
    system: str
    user: str
    form: str = "matching"
    cell: InstructionCell | None = None
    answers: tuple[str, ...] = ()
    answer: str = ""
    unknown: str = "unknown"
    held_out: bool = False
    entry: str = ""

    @cached_property
    def shows(self) -> frozenset[str]:
        """What the prompt shows: of `history`, `rated`, `candidates`, `target`, `preference`, `intention`."""
        return _names(self.system) | _names(self.user) | ({"history"} if self.entry else frozenset())

    @cached_property
    def uses(self) -> frozenset[str]:
        """What prompt and answer need together."""
        return self.shows | _names(self.answer)

    @property
    def searches_preference(self) -> bool:
        """Whether an explicit preference stands in the place of the request."""
        return self.cell is not None and self.cell.intention == "preference"

    def render(
        self,
        words: dict[str, str],
        *,
        history: Sequence[str] = (),
        marks: Sequence[bool | str] = (),
        candidates: Sequence[str] = (),
        target: str = "",
        preference: str = "",
        intention: str = "",
    ) -> Instruction:
        """Fills in one case.

        Args:
            words: the domain's nouns and verbs in this language (`noun`, `nouns`, `consumed`).
            history: titles the user chose, oldest first.
            marks: where the prompt says what the user thought of each: whether it was liked, or its rating.
            candidates: titles to answer with (and to list, in `reranking` and `pairwise`).
            target: the title asked about.
            preference: the user's taste in words.
            intention: what the user asks for in words.

        Returns:
            The instruction; its answers are the candidates, the template's own, or its own one filled in.

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
            "rated": list(zip(titles, marks, strict=True)) if marks else [],
            "candidates": list(listed),
            "target": clean_title(target),
            "preference": clean_title(preference) or self.unknown,
            "intention": clean_title(intention) or self.unknown,
        }
        own = (compile_template(self.answer).render(values),) if self.answer else self.answers
        return Instruction(
            system=compile_template(self.system).render(values),
            user=compile_template(self.user).render(values),
            answers=own or tuple(map(self.written, listed)),
            opening="".join(map(self.written, titles)) if self.entry else "",
        )

    def written(self, title: str) -> str:
        """A title as an answer: an entry of the open list, where there is one."""
        return compile_template(self.entry).render({"title": title}) if self.entry else title


@cache
def _names(text: str) -> frozenset[str]:
    compiled = compile_template(text)
    return frozenset(meta.find_undeclared_variables(compiled.environment.parse(text))) - {"words"}


@cache
def load_templates() -> dict[str, InstructionTemplate]:
    """Every template of every language, by id.

    Raises:
        InputError: a sheet lacks a part.

    Example:
        >>> load_templates()["like.zh.1"].answers
        ('是', '否')
    """
    found: dict[str, InstructionTemplate] = {}
    for file in sorted(
        resources.files("datamodules.instructions").joinpath("templates").iterdir(), key=lambda f: f.name
    ):
        sheet = yaml.safe_load(file.read_text(encoding="utf-8"))
        try:
            made = [*_cell_templates(sheet), _dense_template(sheet), *_turned_templates(sheet)]
        except (KeyError, TypeError) as error:
            raise InputError(f"{file.name}: the part {error} is missing") from error
        found |= {template.id: template for template in made}
    return found


def template_id(form: str, language: str, number: int | str, cell: InstructionCell | None = None) -> str:
    """The name of a template.

    Example:
        >>> template_id("matching", "en", 1), template_id("like", "zh", 2, InstructionCell("none", "vague", "like"))
        ('matching.en.1', 'P0,I1,T0.zh.2')
    """
    plain = cell is None or (cell.preference, cell.intention) == ("implicit", "none")
    return f"{form if plain else cell}.{language}.{number}"


def _cell_templates(sheet: dict[str, Any]) -> list[InstructionTemplate]:
    """One template for each cell and wording of a language."""
    marks: dict[str, str] = {"like": "opinions", "rating": "ratings"}
    made = []
    for number, parts in sheet["paraphrases"].items():
        for cell in every_cell():
            told = [parts["history"][marks.get(cell.form, "titles")]] if cell.preference in ("implicit", "both") else []
            told += [parts["taste"]] if cell.preference in ("explicit", "both") else []
            told += [parts["request"][cell.intention]] if cell.intention != "none" else []
            asked = "asked" if cell.intention != "none" else "suited" if cell.preference == "explicit" else "next"
            made.append(
                InstructionTemplate(
                    id=template_id(cell.form, sheet["language"], number, cell),
                    language=sheet["language"],
                    system=parts["system"][cell.form],
                    user="\n".join([*told, parts["question"][cell.form][asked]]),
                    form=cell.form,
                    cell=cell,
                    answers=tuple(sheet["answers"].get(cell.form, ())),
                    unknown=sheet["unknown"],
                    held_out=number in sheet["held_out"],
                )
            )
    return made


def _dense_template(sheet: dict[str, Any]) -> InstructionTemplate:
    """The wording whose history continues into the answer, so that every item of a sequence can be a target."""
    cell = InstructionCell()
    return InstructionTemplate(
        id=template_id(cell.form, sheet["language"], DENSE, cell),
        language=sheet["language"],
        cell=cell,
        unknown=sheet["unknown"],
        **sheet[DENSE],
    )


def _turned_templates(sheet: dict[str, Any]) -> list[InstructionTemplate]:
    return [
        InstructionTemplate(
            id=template_id(form, sheet["language"], number),
            language=sheet["language"],
            system=sheet["paraphrases"][1]["system"]["matching"],
            user=text["user"],
            form=form,
            answer=text["answer"],
            unknown=sheet["unknown"],
        )
        for form in TURNED
        for number, text in enumerate(sheet["turned"][form], start=1)
    ]


def find_template(name: str) -> InstructionTemplate:
    """Looks a template up by id.

    Raises:
        InputError: there is none of that name; the nearest one is offered. Or its text is no template.
    """
    templates = load_templates()
    if name in templates:
        try:
            _ = templates[name].uses
        except SecurityError as error:
            raise InputError(f"template {name!r}: {error}") from error
        return templates[name]
    near = difflib.get_close_matches(name, templates, n=1, cutoff=0)
    raise InputError(f"no template {name!r}; the nearest is {near[0]!r} (there are {len(templates)})")


def wordings(cell: InstructionCell | str, language: str) -> list[InstructionTemplate]:
    """All templates of a cell, or of an instruction that turns a task around, in a language; the dense one apart.

    Raises:
        InputError: there is none.

    Example:
        >>> [template.held_out for template in wordings(InstructionCell(form="reranking"), "en")]
        [False, False, False, True]
    """
    names = (t for t in load_templates().values() if t.language == language and not t.entry)
    found = [t for t in names if cell == (t.form if t.cell is None else t.cell)]
    if not found:
        raise InputError(f"there are no templates of {cell} in language {language!r}")
    return found
