"""The base of all data modules: read, protocol, instructions, batches."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.batching.catalogue import CatalogueCollator
from datamodules.batching.item_codes import training_batches, training_events, with_form
from datamodules.batching.loaders import (
    EvaluationBatches,
    Keys,
    LoaderOptions,
    RequestBatches,
    TimedLoader,
    WindowSampler,
    batches_within,
    check_least,
    passes_of,
)
from datamodules.batching.make import Collator, FrozenData, freeze_data, make_collator
from datamodules.batching.predict_file import Request, read_requests
from datamodules.contract.errors import InputError
from datamodules.contract.items import ItemTokens
from datamodules.contract.objectives import ModelNeeds
from datamodules.instructions.choice import PromptOptions, choose_prompting
from datamodules.instructions.preferences import TextRules
from datamodules.instructions.prompts import draw_demonstrations
from datamodules.instructions.slates import SlateMaker, WindowOptions
from datamodules.instructions.space import TaskForm
from datamodules.items.base import ItemForm
from datamodules.items.title import Title
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Cases, Sequences
from datamodules.sources.pretrained import pretrained_folder
from datamodules.tables.interactions import Interactions

Split = Literal["validation", "test"]


class InstructionDataModule(L.LightningDataModule, ABC):
    """Makes instruction batches of a recommendation data set.

    A data set is one subclass: `read` and, for its language, `words`. On the command line an option of `prompts`,
    `windows` or `loader` may be written without its group: `--data.num_workers 2`.

    Args:
        task: task form: `matching` (T2: answer a title; the default), `reranking` (T3: answer a title from a list in the
            prompt), `pairwise` (T1: from a list of two), `like` (T0: answer Yes or No to the next item) or `rating`
            (answer with 1 to 5).
        cell: task, preference and intention at once, by InstructRec's codes: `P1,I2,T3`.
        prompts: what prompts tell, and how they are worded.
        texts: how preferences and intentions are put in words.
        items: how an item is written; null is `Title`.
        protocol: split, candidates, ties, history: what makes numbers comparable.
        windows: which targets are trained together, and beside what.
        batch_size: training windows a step.
        loader: how batches are computed; it changes speed and memory, never scores.
        seed: of batch order and training negatives (the protocol has its own); linked to `seed_everything`.
        data_dir: folder of the raw files; null looks into `INSTRUCTREC_DATA`, then downloads.
        predict_file: JSONL of new users for `predict`: `{"user": "u1", "history": [ids or titles], "candidates": [...]}`.
        backbone: whose tokenizer to use; linked to the model's.
        needs: what the model asks of its batches; linked to the model.
    """

    words: ClassVar[dict[str, dict[str, str]]]
    """The domain's words by language: `noun`, `nouns`, `consumed`."""
    provides: ClassVar[tuple[str, ...]] = ("title", "rating")
    """What the data has for instructions: of `title`, `rating`, `categories`, `review`, `query`, `profile`."""

    def __init__(
        self,
        task: TaskForm | None = None,
        cell: str | None = None,
        prompts: PromptOptions = PromptOptions(),  # noqa: B008  # frozen, as all defaults here
        texts: TextRules = TextRules(),  # noqa: B008
        items: ItemForm | None = None,
        protocol: Protocol = Protocol(),  # noqa: B008
        windows: WindowOptions = WindowOptions(),  # noqa: B008
        batch_size: int = 4,
        loader: LoaderOptions = LoaderOptions(),  # noqa: B008
        seed: int = 0,
        data_dir: Path | None = None,
        predict_file: Path | None = None,
        backbone: str | None = None,
        needs: ModelNeeds = ModelNeeds(),  # noqa: B008
    ) -> None:
        super().__init__()
        check_least(1, batch_size=batch_size)
        owner = type(self).__name__
        if data_dir is not None and not data_dir.is_dir():
            raise InputError(f"data.data_dir {data_dir} is not a folder")
        self.prompting = choose_prompting(prompts, self.provides, owner, task=task, cell=cell, texts=texts)
        self.template = self.prompting.template
        if prompts.language not in self.words:
            raise InputError(f"{owner} has no words for language {prompts.language!r}; it has {', '.join(self.words)}")
        self.prompting.check(needs, protocol)
        self.protocol, self.loader, self.needs, self.seed = protocol, loader, needs, seed
        self.batch_size, self.data_dir, self.predict_file, self.backbone = batch_size, data_dir, predict_file, backbone
        self.windows, self.items = self.prompting.complete_windows(windows, needs, protocol, seed), items or Title()
        self._tables: Interactions | None = None  # between `prepare_data` and `setup`, so that files are parsed once
        self._frozen: FrozenData | None = None
        self._collator: Collator | None = None
        self.requests: list[Request] = []  # of `predict_file`
        self.waited = dict[str, float]()  # seconds that batches were waited for, by stage
        self._start = 0, 0

    @abstractmethod
    def read(self) -> Interactions:
        """Fetches and reads the raw files."""

    @property
    def frozen(self) -> FrozenData:
        """The data under its protocol; there after `freeze`, and so after `setup`."""
        if self._frozen is None:
            raise RuntimeError(f"{type(self).__name__} is not set up; call setup(), or freeze() without a tokenizer")
        return self._frozen

    @property
    def collator(self) -> Collator:
        """Makes batches; there after `setup`."""
        if self._collator is None:
            raise RuntimeError(f"{type(self).__name__} is not set up; call setup()")
        return self._collator

    @property
    def sequences(self) -> Sequences:
        """Users' events and the frozen cases; sets up what is not set up yet."""
        if self._frozen is None:
            self.setup()
        return self.frozen.sequences

    @property
    def item_tokens(self) -> ItemTokens | None:
        """Items as tokens of their own, for a model that gives each a vector; None where items are written in words."""
        return with_form(getattr(self.collator, "item_tokens", None), self.items, self.sequences)

    @property
    def slates(self) -> SlateMaker:
        """Makes cases of training windows and frozen cases; there after `setup`."""
        return self.frozen.slates

    def prepare_data(self) -> None:
        """Fetches the data and the backbone's files, on one process only; `setup` takes what was read."""
        if self._frozen is None and self._tables is None:
            self._tables = self.read()
        if self.backbone:
            pretrained_folder(self.backbone)

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002  # every stage needs the same frozen cases
        """Applies the protocol and makes the collator."""
        frozen = self.freeze()
        if self._collator is None:
            shown = draw_demonstrations(frozen.slates, frozen.text, self.needs.shots, self.seed)
            rest = (self.loader.row_tokens, shown, frozen.sequences.user_ids)
            self._collator = make_collator(frozen.text, self.needs.batch_format, self.backbone, *rest)

    def freeze(self, tables: Interactions | None = None) -> FrozenData:
        """Applies the protocol, once; no tokenizer is loaded."""
        if self._frozen is not None:
            return self._frozen
        data, self._tables = tables or self._tables or self.read(), None
        words = self.words[self.template.language]
        self._frozen = freeze_data(data, self.protocol, self.prompting, self.windows, words, self.items, self.seed)
        return self._frozen

    def train_dataloader(self) -> DataLoader[Any]:
        """Windows of training targets, in an order that depends on the seed and the epoch alone.

        Recommenders that know no text get all training events as one batch.
        """
        if self.needs.batch_format == "interactions":
            return self._loader("train", Keys([None]), partial(training_events, self.sequences), batch_size=1)
        windows = self.slates.windows
        sizes = windows.last - windows.first
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = WindowSampler(sizes, self.batch_size, self.seed, rank, processes, self._start)
        batches = training_batches(self.needs.batch_format, self.slates, self.collator)
        return self._loader("train", Keys(), batches, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """The frozen validation cases; every process evaluates all of them, so that means need no correction."""
        return self.evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """The frozen test cases, under `protocol.candidates` and every rule of `protocol.also`."""
        return self.evaluation_loader("test", ("", *self.protocol.also))

    def cases(self, split: Split, rule: str = "") -> Cases:
        """The frozen cases of a split, with the candidates of a rule of `protocol.also` where one is named."""
        sequences = self.frozen.further[rule] if rule else self.sequences
        return sequences.validation if split == "validation" else sequences.test

    def evaluation_loader(self, split: Split, rules: tuple[str, ...] = ("",)) -> DataLoader[Any]:
        """The frozen cases of a split under some rules of candidates; "" is the main one."""
        passes = passes_of({rule: self.cases(split, rule) for rule in rules})
        if any(cases.candidates is None for part in passes for cases in part.values()):
            self._make_trie()
        # Long histories first: like sizes share a batch, and memory trouble shows at once.
        cases = self.cases(split)
        shown = np.minimum(cases.shown - self.sequences.start[cases.user], self.protocol.history)
        order = np.argsort(-shown, kind="stable")
        keys = Keys([int(case) + number * len(order) for number in range(len(passes)) for case in order])
        batches = EvaluationBatches(self.slates, passes, self.collator)
        options = batches_within(len(order), len(passes), self.loader.eval_batch_size)
        return self._loader(split, keys, batches, **options)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The users of `predict_file`.

        Raises:
            InputError: there is no such file, it is malformed, or the task is not a ranking.
        """
        if self.predict_file is None:
            raise InputError("predict needs --data.predict_file, a JSONL of users' histories")
        if self.template.form not in ("matching", "reranking"):
            raise InputError("predict ranks items; use --data.task=matching or reranking")
        self.requests = read_requests(self.predict_file, self.sequences.item_ids, self.sequences.titles)
        if any(request.whole for request in self.requests):
            self._make_trie()
        batches = RequestBatches(self.requests, self.protocol.history, self.collator)
        return self._loader("predict", Keys(range(len(self.requests))), batches, batch_size=1)

    def _make_trie(self) -> None:
        """Makes the catalogue's tree before worker processes start, or each would make its own."""
        collator = self.collator
        if isinstance(collator, CatalogueCollator):
            _ = collator.trie

    def _loader(self, stage: str, keys: Keys, collate: Callable[[Any], Any], **options: Any) -> DataLoader[Any]:
        return TimedLoader(
            waited=self.waited,
            stage=stage,
            dataset=keys,
            collate_fn=collate,
            num_workers=self.loader.num_workers,
            persistent_workers=self.loader.num_workers > 0,
            # Its own, so that making an iterator draws nothing from the generator that dropout uses.
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the data, for a checkpoint; Lightning calls this."""
        if self.trainer is None:
            return {}
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        return {"epoch": self.trainer.current_epoch, "batches": done, "fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there; Lightning calls this before it asks for the training loader.

        Raises:
            InputError: the checkpoint's run was trained on other data or under another protocol.
        """
        if state_dict["fingerprint"] != self.fingerprint:
            raise InputError(
                f"the checkpoint's run has data fingerprint {state_dict['fingerprint'][:16]}, the configured data has"
                f" {self.fingerprint[:16]}; put the data back, or start a new run in another --out"
            )
        self._start = (state_dict["epoch"], state_dict["batches"])

    @property
    def cases_kind(self) -> str:
        """`ranking` of candidates, `binary` answers, or `rating` by number."""
        return {"like": "binary", "rating": "rating"}.get(self.template.form, "ranking")

    @property
    def num_candidates(self) -> int:
        """Answers a case ranks; the longest list under a full catalogue."""
        return len(self.template.answers) or self.sequences.longest_list

    @property
    def description(self) -> dict[str, str]:
        """What the instructions add to the protocol."""
        return {"task": self.template.form, "dataset": type(self).__name__} | self.prompting.described()

    @property
    def fingerprint(self) -> str:
        """sha256 over the protocol's fingerprint, the task and the source of intentions: what results share in a table."""
        return self.fingerprint_of(self.sequences)

    def fingerprint_of(self, sequences: Sequences) -> str:
        """The fingerprint with the cases of some sequences: the data's own, or those of a rule of `protocol.also`."""
        told = self.prompting.fingerprinted()
        return hashlib.sha256("\0".join([sequences.fingerprint, self.cases_kind, *told]).encode()).hexdigest()

    def user_of(self, split: Split, case: int) -> str:
        """The original id of a case's user."""
        return self.sequences.user_ids[int(self.cases(split).user[case])]

    def answer_text(self, item: int) -> str:
        """The text of a branch: the template's own answer, or the item's title."""
        return self.template.answers[item] if self.template.answers else self.sequences.titles[item]

    def sample_prompt(self, split: Split, case: int) -> str:
        """The rendered instruction of one case, for people."""
        instruction = self.frozen.text.instruction(self.slates.evaluation(self.cases(split), case))
        return "\n\n".join([instruction.system, instruction.user, instruction.opening.strip()]).rstrip()
