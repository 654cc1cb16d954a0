"""The base of all data modules: read, protocol, instructions, batches."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.batching.catalogue import CatalogueCollator
from datamodules.batching.item_codes import training_batches, training_events
from datamodules.batching.loaders import (
    EvaluationBatches,
    Keys,
    RequestBatches,
    TimedLoader,
    WindowSampler,
    check_least,
)
from datamodules.batching.make import make_collator, make_text
from datamodules.batching.predict_file import read_requests
from datamodules.contract.batch import BatchFormat
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import NAMED_NEEDS, ObjectiveNeeds
from datamodules.instructions.choice import Wanted, choose_prompting
from datamodules.instructions.preferences import TextRules
from datamodules.instructions.prompts import SlateText, draw_demonstrations
from datamodules.instructions.slates import SlateMaker, check_slates
from datamodules.instructions.space import Intention, Preference, TaskForm
from datamodules.instructions.templates import Language
from datamodules.protocol.apply import frozen_sequences
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Cases, Sequences
from datamodules.sources.pretrained import pretrained_folder
from datamodules.tables.interactions import Interactions

Split = Literal["validation", "test"]


class InstructionDataModule(L.LightningDataModule, ABC):
    """Makes instruction batches of a recommendation data set.

    A data set is one subclass: `read` and, for its language, `words`.

    Args:
        task: task form: `matching` (T2: answer a title; the default), `reranking` (T3: answer a title from a list in the
            prompt), `pairwise` (T1: from a list of two), `like` (T0: answer Yes or No to the next item) or `rating`
            (answer with 1 to 5).
        preference: what prompts tell of the past: `none` (P0), `implicit` (P1, titles; the default), `explicit` (P2, a
            taste in words) or `both`.
        intention: what they tell of the wish: `none` (I0, the default), `vague` (I1), `specific` (I2), or `preference`,
            a taste in words in the place of a request.
        cell: all three at once, by InstructRec's codes: `P1,I2,T3`.
        language: of the instruction templates, `en` or `zh`.
        paraphrase: number of the wording; `seen` trains on all but the held-out one, and evaluates the first.
        template: id of one template, such as `matching.en.2`, in place of cell and paraphrase.
        mixture: trains on several cells, instructions that turn a task around, or templates, by weight; each user's
            windows have one of them in an epoch. What is evaluated is still the cell.
        temperature: weights of a mixture are raised to the power of 1 / temperature.
        texts: how preferences and intentions are put in words.
        protocol: split, candidates, ties, history: what makes numbers comparable.
        targets_per_window: successive targets of a user trained together.
        window_history: `growing`, each of them after all events before it; `shared`, all after those before the first,
            as branches of one prompt (as PinnerFormer's dense all-action loss, arXiv 2205.04507).
        train_negatives: sampled negatives beside each training target; null means as many as in the test where the
            task or objective needs them, else none.
        batch_size: training windows a step.
        eval_batch_size: test cases a batch; it changes speed, never scores.
        row_tokens: tokens that attention handles at once: a run of whole trees, or a packed row of an encoder.
        num_workers: processes that prepare batches; 0 prepares them in the main process.
        seed: of batch order and training negatives (the protocol has its own).
        data_dir: folder of the raw files; null looks into `INSTRUCTREC_DATA`, then downloads.
        predict_file: JSONL of new users for `predict`: `{"user": "u1", "history": [ids or titles], "candidates": [...]}`.
        backbone: whose tokenizer to use; linked to the model's.
        batch_format: what the model reads; linked to the model's class.
        objective: what the model's objective needs of the data; linked to the model's.
        shots: solved cases of training users at the beginning of every prompt; linked to the model's.
    """

    words: ClassVar[dict[str, dict[str, str]]]
    """The domain's words by language: `noun`, `nouns`, `consumed`."""
    provides: ClassVar[tuple[str, ...]] = ("title", "rating")
    """What the data has for instructions: of `title`, `rating`, `categories`, `review`, `query`, `profile`."""

    def __init__(
        self,
        task: TaskForm | None = None,
        preference: Preference | None = None,
        intention: Intention | None = None,
        cell: str | None = None,
        language: Language = "en",
        paraphrase: int | Literal["seen"] = 1,
        template: str | None = None,
        mixture: dict[str, float] | None = None,
        temperature: float = 1.0,
        texts: TextRules = TextRules(),  # noqa: B008  # frozen
        protocol: Protocol = Protocol(),  # noqa: B008  # frozen
        targets_per_window: int = 10,
        window_history: Literal["growing", "shared"] = "growing",
        train_negatives: int | None = None,
        batch_size: int = 4,
        eval_batch_size: int = 8,
        row_tokens: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        data_dir: Path | None = None,
        predict_file: Path | None = None,
        backbone: str | None = None,
        batch_format: BatchFormat = "prompt_tree",
        objective: str | ObjectiveNeeds = "likelihood",
        shots: int = 0,
    ) -> None:
        super().__init__()
        check_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, row_tokens=row_tokens)
        check_least(0, num_workers=num_workers)
        owner = type(self).__name__
        if data_dir is not None and not data_dir.is_dir():
            raise InputError(f"data.data_dir {data_dir} is no folder")
        wanted = Wanted(cell, task, preference, intention, language, template, paraphrase, mixture, temperature, texts)
        self.prompting = choose_prompting(wanted, self.provides, owner)
        if language not in self.words:
            raise InputError(f"{owner} has no words for language {language!r}; it has {', '.join(self.words)}")
        needs = NAMED_NEEDS[objective] if isinstance(objective, str) else objective
        self.prompting.check(batch_format, needs, protocol)
        self.template, self.protocol, self.data_dir, self.seed = self.prompting.template, protocol, data_dir, seed
        self.targets_per_window, self.batch_size, self.predict_file = targets_per_window, batch_size, predict_file
        self.eval_batch_size, self.row_tokens, self.num_workers = eval_batch_size, row_tokens, num_workers
        self.window_history, self.backbone, self.batch_format = window_history, backbone, batch_format
        default = self.prompting.default_negatives(batch_format, needs, protocol)
        self.train_negatives = default if train_negatives is None else train_negatives
        check_slates(protocol, self.train_negatives, targets_per_window, seed)
        self._sequences: Sequences | None = None
        self.waited = dict[str, float]()  # seconds that batches were waited for, by stage
        self._start, self.shots = (0, 0), shots

    @abstractmethod
    def read(self) -> Interactions:
        """Fetches and reads the raw files."""

    @property
    def sequences(self) -> Sequences:
        """Users' events and the frozen cases; there after `setup`."""
        if self._sequences is None:
            self.setup()
        return cast(Sequences, self._sequences)

    def prepare_data(self) -> None:
        """Fetches the data and the backbone's files, on one process only."""
        self.read()
        if self.backbone:
            pretrained_folder(self.backbone)

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002  # every stage needs the same frozen cases
        """Applies the protocol and makes the collator."""
        if not hasattr(self, "collator"):
            text = self.freeze()
            shown = draw_demonstrations(self.slates, text, self.shots, self.seed)
            rest = (self.row_tokens, shown, self.sequences.user_ids)
            self.collator = make_collator(text, self.batch_format, self.backbone, *rest)

    def freeze(self) -> SlateText:
        """Applies the protocol; returns what writes the prompts, before any tokenizer is loaded."""
        data = self.read()
        if self.prompting.preference_rule or self.prompting.intention_rule:
            data = replace(data, interactions=data.interactions.with_row_index("row"))
        self._sequences, self.about = frozen_sequences(data, self.protocol), data.about
        least, shared = int(self.prompting.history_needed), self.window_history == "shared"
        choice = self.prompting.choice and replace(self.prompting.choice, seed=self.seed)
        sizes = (self.train_negatives, self.targets_per_window, self.seed)
        self.slates = SlateMaker(self._sequences, self.protocol, *sizes, shared=shared, least=least, choice=choice)
        return make_text(data, self._sequences, self.prompting, self.words[self.template.language])

    def train_dataloader(self) -> DataLoader[Any]:
        """Windows of training targets, in an order that depends on the seed and the epoch alone.

        Recommenders that know no text get all training events as one batch.
        """
        if self.batch_format == "interactions":
            return self._loader("train", Keys([None]), partial(training_events, self.sequences), batch_size=1)
        windows = self.slates.windows
        sizes = windows.last - windows.first
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = WindowSampler(sizes, self.batch_size, self.seed, rank, processes, self._start)
        batches = training_batches(self.batch_format, self.slates, self.collator)
        return self._loader("train", Keys(), batches, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """The frozen validation cases; every process evaluates all of them, so that means need no correction."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """The frozen test cases."""
        return self._evaluation_loader("test")

    def cases(self, split: Split) -> Cases:
        """The frozen cases of a split."""
        return self.sequences.validation if split == "validation" else self.sequences.test

    def _evaluation_loader(self, split: Split) -> DataLoader[Any]:
        cases = self.cases(split)
        if cases.candidates is None:
            self._make_trie()
        # Long histories first: like sizes share a batch, and memory trouble shows at once.
        shown = np.minimum(cases.shown - self.sequences.start[cases.user], self.protocol.history)
        keys = Keys(np.argsort(-shown, kind="stable").tolist())
        batches = EvaluationBatches(self.slates, cases, self.collator)
        return self._loader(split, keys, batches, batch_size=self.eval_batch_size)

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
        if isinstance(self.collator, CatalogueCollator):
            _ = self.collator.trie

    def _loader(self, stage: str, keys: Keys, collate: Callable[[Any], Any], **options: Any) -> DataLoader[Any]:
        return TimedLoader(
            waited=self.waited,
            stage=stage,
            dataset=keys,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
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
        if self.template.answers:
            return len(self.template.answers)
        drawn = self.sequences.test.candidates
        return len(self.sequences.item_ids) if drawn is None else int(drawn.shape[1])

    @property
    def description(self) -> dict[str, str]:
        """What the instructions add to the protocol."""
        return {"task": self.template.form, "dataset": type(self).__name__} | self.prompting.described()

    @property
    def fingerprint(self) -> str:
        """sha256 over the protocol's fingerprint, the task and the source of intentions: what results share in a table."""
        told = self.prompting.fingerprinted()
        return hashlib.sha256("\0".join([self.sequences.fingerprint, self.cases_kind, *told]).encode()).hexdigest()

    def user_of(self, split: Split, case: int) -> str:
        """The original id of a case's user."""
        return self.sequences.user_ids[int(self.cases(split).user[case])]

    def answer_text(self, item: int) -> str:
        """The text of a branch: the template's own answer, or the item's title."""
        return self.template.answers[item] if self.template.answers else self.sequences.titles[item]

    def sample_prompt(self, split: Split, case: int) -> str:
        """The rendered instruction of one case, for people."""
        instruction = self.collator.text.instruction(self.slates.evaluation(self.cases(split), case))
        return f"{instruction.system}\n\n{instruction.user}"
