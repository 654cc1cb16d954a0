"""Which instructions a data module writes: chosen and checked from its options, before any data is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds
from datamodules.instructions.mixture import Mixture, mixture_of, shares
from datamodules.instructions.preferences import TextRules, choose_rule
from datamodules.instructions.slates import WindowOptions, check_slates
from datamodules.instructions.space import InstructionCell, Intention, Preference, TaskForm, parse_cell
from datamodules.instructions.templates import (
    DENSE,
    TURNED,
    InstructionTemplate,
    Language,
    find_template,
    template_id,
    wordings,
)
from datamodules.protocol.rules import Protocol

MOST_DENSE = 100
"""Targets of a window in which every item of a list is one, where nobody said how many."""

SEPARATORS: dict[str, str] = {"en": ", ", "zh": "、"}
"""Between categories, by language."""


@dataclass(frozen=True)
class PromptOptions:
    """What prompts tell and how they are worded, beside task and cell.

    Attributes:
        preference: what prompts tell of the past: `none` (P0), `implicit` (P1, titles; the default), `explicit` (P2, a
            taste in words) or `both`.
        intention: what they tell of the wish: `none` (I0, the default), `vague` (I1), `specific` (I2), or `preference`,
            a taste in words in the place of a request.
        language: of the instruction templates, `en` or `zh`.
        paraphrase: number of the wording; `seen` trains on all but the held-out one, and evaluates the first; `dense`
            leaves the history an open list that the answer continues, so that every item of it is a target as well.
        shown_history: latest events that an evaluated prompt shows; null shows all that the protocol allows.
        template: id of one template, such as `matching.en.2`, in place of cell and paraphrase.
        mixture: trains on several cells, instructions that turn a task around, or templates, by weight; each user's
            windows have one of them in an epoch. What is evaluated is still the cell.
        temperature: weights of a mixture are raised to the power of 1 / temperature.
    """

    preference: Preference | None = None
    intention: Intention | None = None
    language: Language = "en"
    paraphrase: int | Literal["seen", "dense"] = 1
    shown_history: int | None = None
    template: str | None = None
    mixture: dict[str, float] | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class Prompting:
    """The instructions of a data module.

    Attributes:
        template: the wording that is evaluated, and trained on unless there is a mixture.
        others: further wordings that training mixes.
        choice: which of them a user's windows have; None where there is one.
        preference_rule: how preferences are put in words; empty where none are told.
        intention_rule: how intentions are.
        texts: the options they were chosen by.
        shown_history: events that an evaluated prompt shows at most; None where the protocol alone says it.
    """

    template: InstructionTemplate
    others: tuple[InstructionTemplate, ...] = ()
    choice: Mixture | None = None
    preference_rule: str = ""
    intention_rule: str = ""
    texts: TextRules = TextRules()  # noqa: RUF009  # frozen
    shown_history: int | None = None

    @property
    def cell(self) -> InstructionCell:
        """The evaluated cell of the instruction space."""
        if self.template.cell is None:
            raise RuntimeError(f"template {self.template.id} is not evaluated")
        return self.template.cell

    @property
    def plain(self) -> bool:
        """Whether prompts tell the history's titles and nothing else."""
        return (self.cell.preference, self.cell.intention) == ("implicit", "none")

    @property
    def every(self) -> tuple[InstructionTemplate, ...]:
        """All wordings, the evaluated one first."""
        return (self.template, *self.others)

    @property
    def forms(self) -> set[str]:
        """Their task forms."""
        return {template.form for template in self.every}

    @property
    def history_needed(self) -> bool:
        """Whether every prompt shows something of the past, so that a user's first event cannot be asked for."""
        return self.cell.preference != "none" or self.cell.intention == "preference"

    def check(self, needs: ModelNeeds, protocol: Protocol) -> None:
        """Refuses a model or protocol that the task forms do not fit.

        Raises:
            InputError: the task is to be answered in text and the model does not, the objective needs other answers, or
                a pair is to be drawn from a longer list.
        """
        form, batch_format = self.template.form, needs.batch_format
        if form in ("like", "rating") and batch_format != "prompt_tree":
            raise InputError(f"data.task {form!r} needs a model that answers in text; this one reads {batch_format}")
        if batch_format == "tagged_text" and (self.choice is not None or not self.plain):
            raise InputError(
                f"data.cell {self.cell} and mixtures need a model that answers in text; this one reads titles only, which"
                " is preference 'implicit', intention 'none'"
            )
        if needs.task and not self.forms <= {needs.task}:
            raise InputError(
                f"model.objective {needs.objective!r} needs data.task {needs.task}; prompts are of"
                f" {', '.join(sorted(self.forms))}"
            )
        if needs.negatives and not self.forms.isdisjoint(TURNED):
            raise InputError(
                f"model.objective {needs.objective!r} needs several answers; instructions that turn a task have one"
            )
        if form in ("like", "rating") and protocol.also:
            raise InputError(f"data.task {form!r} ranks no candidates; leave protocol.also out")
        if form == "pairwise" and protocol.negatives != 1:
            raise InputError(f"data.task 'pairwise' needs protocol.negatives 1, it is {protocol.negatives}")

    def default_negatives(self, needs: ModelNeeds, protocol: Protocol) -> int:
        """Negatives beside a training target where the user did not say: as in the test where something needs them."""
        pointwise = self.forms <= {"like", "rating"}
        lists = not self.forms.isdisjoint({"reranking", "pairwise"})
        compared = needs.batch_format == "tagged_text" or lists or needs.negatives
        return protocol.negatives if compared and not pointwise else 0

    def complete_windows(
        self, windows: WindowOptions, needs: ModelNeeds, protocol: Protocol, seed: int
    ) -> WindowOptions:
        """Fills in what the user did not say: targets by the dozen, or whole sequences where each costs its own tokens.

        Raises:
            InputError: a number fits no data set, or the objective has no negatives.
        """
        history = protocol.history if windows.train_history is None else windows.train_history
        negatives, targets = windows.train_negatives, windows.targets_per_window
        if negatives is None:
            negatives = self.default_negatives(needs, protocol)
        elif needs.negatives and negatives < 1 and not self.forms <= {"like", "rating"}:
            raise InputError(
                f"model.objective {needs.objective!r} needs negatives, and data.train_negatives is {negatives}"
            )
        if targets is None:
            targets = min(history, MOST_DENSE if self.template.entry else 10)
        if history < 1:
            raise InputError(f"data.train_history is {history}, must be at least 1")
        check_slates(history, negatives, targets, seed)
        return replace(windows, train_negatives=negatives, targets_per_window=targets)

    def fingerprinted(self) -> list[str]:
        """What makes results incomparable beside protocol and kind of case: being told the wish, and from where."""
        intention = self.cell.intention
        if intention in ("none", "preference"):
            return []
        file = self.texts.annotations if self.intention_rule == "annotation" else None
        notes = file.read_bytes() if file else b""
        return [intention, self.intention_rule, *([hashlib.sha256(notes).hexdigest()] if notes else [])]

    def described(self) -> dict[str, Any]:
        """What a run's record says beside the task form; empty for the plain cell P1,I0 in one wording."""
        cell = self.cell
        told: dict[str, Any] = {}
        if not self.plain:
            told["cell"] = str(cell)
        if self.shown_history is not None:
            told["shown_history"] = self.shown_history
        if self.preference_rule:
            told["preference_from"] = self.preference_rule
        if self.intention_rule:
            told["intention_from"] = self.intention_rule
        return told


def choose_prompting(
    options: PromptOptions,
    columns: Sequence[str],
    owner: str,
    *,
    task: TaskForm | None = None,
    cell: str | None = None,
    texts: TextRules = TextRules(),  # noqa: B008  # frozen
) -> Prompting:
    """The instructions that the options of a data module ask for.

    Raises:
        InputError: options contradict each other, name what does not exist, or need what the data has not.

    Example:
        >>> prompting = choose_prompting(PromptOptions(), ("title", "rating", "categories"), "Beauty", cell="P1,I2,T3")
        >>> prompting.template.id, prompting.intention_rule
        ('P1,I2,T3.en.1', 'target_categories')
    """
    columns = [*columns, *(["annotation"] if texts.annotations else [])]
    template = _evaluated(options, task, cell)
    mixed = _mixed(options, template)
    others = tuple(find_template(name) for name in mixed if name != template.id)
    choice = None
    if others or (mixed and template.id not in mixed):
        # Wording 0 is the evaluated one, whether it is trained on or not.
        parts = {template.id: mixed.get(template.id, 0.0)} | {other.id: mixed[other.id] for other in others}
        choice = mixture_of(parts, 0)
    if options.shown_history is not None and options.shown_history < 1:
        raise InputError(f"data.shown_history is {options.shown_history}, must be at least 1")
    prompting = Prompting(template, others, choice, texts=texts, shown_history=options.shown_history)
    preference_rule, intention_rule = _rules(prompting, texts, columns, owner)
    return replace(prompting, preference_rule=preference_rule, intention_rule=intention_rule)


def _evaluated(options: PromptOptions, task: TaskForm | None, cell: str | None) -> InstructionTemplate:
    """The template that is evaluated."""
    axes = {"preference": options.preference, "intention": options.intention, "task": task}
    given = [name for name, value in axes.items() if value is not None]
    if cell is not None and given:
        raise InputError(f"data.cell {cell!r} says data.{given[0]} already; give one of them")
    if options.template is None:
        chosen = parse_cell(cell) if cell is not None else _cell_of(axes)
        number = 1 if options.paraphrase == "seen" else options.paraphrase
        if number == DENSE and chosen != InstructionCell():
            raise InputError(
                f"data.prompts.paraphrase dense is a wording of cell P1,I0,T2 alone, and the cell is {chosen}"
            )
        ids = [template.id for template in wordings(chosen, options.language)]
        name = template_id(chosen.form, options.language, number, chosen)
        if name not in ids and number != DENSE:
            raise InputError(f"data.paraphrase is {number}, must be 1 to {len(ids)}")
        return find_template(name)
    template = find_template(options.template)
    if template.cell is None:
        raise InputError(f"data.template {template.id!r} only trains; name it in data.mixture")
    written = {"task": template.form, "preference": template.cell.preference, "intention": template.cell.intention}
    asked: dict[str, Any] = axes | {"cell": cell, "language": options.language}
    wrong = [name for name in given if axes[name] != written[name]]
    if cell is not None and parse_cell(cell) != template.cell:
        wrong = ["cell"]
    if template.language != options.language:
        wrong = ["language"]
    if wrong:
        raise InputError(f"data.template {template.id!r} does not fit data.{wrong[0]} {str(asked[wrong[0]])!r}")
    return template


def _cell_of(axes: Mapping[str, Any]) -> InstructionCell:
    return InstructionCell(axes["preference"] or "implicit", axes["intention"] or "none", axes["task"] or "matching")


def _mixed(options: PromptOptions, template: InstructionTemplate) -> dict[str, float]:
    """Shares of templates in training; empty where the evaluated one is all."""
    if options.mixture is None:
        if options.paraphrase != "seen" or template.cell is None:
            return {}
        return _spread({str(template.cell): 1.0}, options.language)
    return _spread(shares(options.mixture, options.temperature), options.language)


def _spread(parts: Mapping[str, float], language: str) -> dict[str, float]:
    """Shares of names spread evenly over their wordings, but for the held-out ones."""
    made: dict[str, float] = {}
    for name, share in parts.items():
        if name.rpartition(".")[2].isdigit() or name.endswith(f".{DENSE}"):
            seen = [find_template(name)]
            if seen[0].language != language:
                raise InputError(f"data.mixture: template {name!r} is not in data.language {language!r}")
        else:
            seen = [t for t in wordings(name if name in TURNED else parse_cell(name), language) if not t.held_out]
        for each in seen:
            made[each.id] = made.get(each.id, 0.0) + share / len(seen)
    return made


def _rules(made: Prompting, asked: TextRules, columns: Sequence[str], owner: str) -> tuple[str, str]:
    """How preferences and intentions come about; refuses what the data cannot give."""
    uses = {name for template in made.every for name in template.uses}
    if ("rated" in uses or {"like", "rating"} & made.forms) and "rating" not in columns:
        raise InputError(f"task {made.template.form!r} needs rating, and {owner} has {', '.join(columns)}")
    preference = intention = ""
    by_preference = any(template.searches_preference for template in made.every)
    if "preference" in uses or by_preference:
        preference = choose_rule("preference", asked.preference, columns, owner)
    elif asked.preference is not None:
        raise InputError(f"data.texts.preference is {asked.preference!r}, and no prompt tells a preference")
    intentions = {t.cell.intention for t in made.every if t.cell is not None} - {"none", "preference"}
    if len(intentions) > 1 and asked.intention is None:
        raise InputError("a mixture of vague and specific intentions needs data.texts.intention, one rule for both")
    if intentions or any(template.cell is None and "intention" in template.uses for template in made.every):
        kind = "vague" if "vague" in intentions else "specific"
        kind = {"target_review": "vague", "target_categories": "specific"}.get(asked.intention or "", kind)
        intention = choose_rule(kind, asked.intention, columns, owner)
    elif asked.intention is not None:
        raise InputError(f"data.texts.intention is {asked.intention!r}, and no prompt tells an intention")
    return preference, intention
