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

from datamodules.batch import BatchFormat
from datamodules.catalogue import CatalogueCollator
from datamodules.chat import ChatEncoder
from datamodules.collate import InteractionCollator, PromptTreeCollator, training_events
from datamodules.demonstrations import draw_demonstrations
from datamodules.encoder_decoder import EncoderDecoderCollator
from datamodules.frozen import frozen_sequences
from datamodules.instructions import Language, TaskForm, default_template, find_template
from datamodules.interactions import Interactions
from datamodules.item_windows import training_batches
from datamodules.loading import EvaluationBatches, Keys, RequestBatches, TimedLoader
from datamodules.pretrained import context_length, is_encoder_decoder, load_tokenizer, pretrained_folder
from datamodules.protocol import Cases, Protocol, Sequences
from datamodules.requests import read_requests
from datamodules.slate_encoder import SlateEncoder
from datamodules.slate_text import SlateText
from datamodules.slates import SlateMaker, WindowSampler, check_slates
from datamodules.sources import InputError
from datamodules.tagged_text import TaggedTextCollator

Split = Literal["validation", "test"]
Collator = PromptTreeCollator | CatalogueCollator | EncoderDecoderCollator | TaggedTextCollator | InteractionCollator


class InstructionDataModule(L.LightningDataModule, ABC):
    """Makes instruction batches of a recommendation data set.

    A data set is one subclass: `read` and, for its language, `words`.

    Args:
        task: task form: `matching` (T2: answer a title), `reranking` (T3: answer a title from a list in the prompt)
            or `like` (T0: answer Yes or No to the next item).
        language: of the instruction templates, `en` or `zh`.
        template: id of one template, such as `matching.en.2`; null takes the first of the task and language.
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
        objective: what the model optimises; linked to the model's.
        shots: solved cases of training users at the beginning of every prompt; linked to the model's.
    """

    words: ClassVar[dict[str, dict[str, str]]]
    """The domain's words by language: `noun`, `nouns`, `consumed`."""

    def __init__(
        self,
        task: TaskForm = "matching",
        language: Language = "en",
        template: str | None = None,
        protocol: Protocol = Protocol(),  # noqa: B008  # frozen
        targets_per_window: int = 10,
        window_history: Literal["growing", "shared"] = "growing",
        train_negatives: int | None = None,
        batch_size: int = 4,
        eval_batch_size: int = 8,
        row_tokens: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        data_dir: Path | None = None,
        predict_file: Path | None = None,
        backbone: str | None = None,
        batch_format: BatchFormat = "prompt_tree",
        objective: str = "likelihood",
        shots: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "row_tokens": row_tokens}
        for name, value, least in [*((n, v, 1) for n, v in sizes.items()), ("num_workers", num_workers, 0)]:
            if value < least:
                raise InputError(f"data.{name} is {value}, must be at least {least}")
        if data_dir is not None and not data_dir.is_dir():
            raise InputError(f"data.data_dir {data_dir} is no folder")
        self.template = find_template(template) if template else default_template(task, language)
        if self.template.form != task or self.template.language != language:
            raise InputError(f"data.template {template!r} fits not data.task {task!r} and data.language {language!r}")
        if language not in self.words:
            raise InputError(
                f"{type(self).__name__} has no words for language {language!r}; it has {', '.join(self.words)}"
            )
        if task == "like" and batch_format != "prompt_tree":
            raise InputError(f"data.task 'like' needs a model that answers in text; this one reads {batch_format}")
        self.protocol, self.data_dir, self.seed, self.shots = protocol, data_dir, seed, shots
        self.targets_per_window, self.batch_size, self.predict_file = targets_per_window, batch_size, predict_file
        self.eval_batch_size, self.row_tokens, self.num_workers = eval_batch_size, row_tokens, num_workers
        self.window_history, self.backbone, self.batch_format = window_history, backbone, batch_format
        needs_negatives = batch_format == "tagged_text" or task == "reranking" or objective == "listwise"
        default = protocol.negatives if needs_negatives and task != "like" else 0
        self.train_negatives = default if train_negatives is None else train_negatives
        check_slates(protocol, self.train_negatives, targets_per_window, seed)
        self._sequences: Sequences | None = None
        self.waited: dict[str, float] = {}
        """Seconds that batches were waited for, by stage, since this object was made."""
        self._start = (0, 0)

    @abstractmethod
    def read(self) -> Interactions:
        """Fetches and reads the raw files."""

    @property
    def sequences(self) -> Sequences:
        """Users' events and the frozen cases; there after `setup`."""
        if self._sequences is None:
            self.setup()
        if self._sequences is None:
            raise RuntimeError("setup made no sequences")
        return self._sequences

    def prepare_data(self) -> None:
        """Fetches the data and the backbone's files, on one process only."""
        self.read()
        if self.backbone:
            pretrained_folder(self.backbone)

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002  # every stage needs the same frozen cases
        """Applies the protocol and makes the collator."""
        if self._sequences is not None:
            return
        data = self.read()
        if "rating" in self.template.columns and data.interactions["rating"].null_count():
            raise InputError(f"template {self.template.id!r} needs ratings, and {type(self).__name__} lacks some")
        self._sequences = frozen_sequences(data, self.protocol)
        shared = self.window_history == "shared"
        sizes = (self.train_negatives, self.targets_per_window, self.seed)
        self.slates = SlateMaker(self._sequences, self.protocol, *sizes, shared=shared)
        self.collator = self._make_collator(self._sequences)

    def _make_collator(self, sequences: Sequences) -> Collator:
        words = self.words[self.template.language]
        text = SlateText(sequences.titles, self.template, words, sequences.item_ids)
        if self.batch_format in ("interactions", "sequences"):
            return InteractionCollator(text, sequences.user_ids)
        if self.backbone is None:
            raise InputError("data.backbone is not set; give the model's backbone")
        tokenizer, context = load_tokenizer(self.backbone), context_length(self.backbone)
        if self.batch_format == "tagged_text":
            return TaggedTextCollator(text, tokenizer, context, self.row_tokens)
        apart = is_encoder_decoder(self.backbone)
        shown = draw_demonstrations(self.slates, text, self.shots, self.seed)
        slates = SlateEncoder(text, ChatEncoder(tokenizer, apart=apart, demonstrations=shown), context)
        if apart:
            return EncoderDecoderCollator(slates, self.row_tokens, tokenizer.pad_token_id)
        trees = PromptTreeCollator(slates, self.row_tokens)
        # A template that lists the candidates cannot list a catalogue.
        return CatalogueCollator(trees, slates, tokenizer.pad_token_id) if self.template.form == "matching" else trees

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
        if self.template.form == "like":
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
        """`ranking` of candidates, or `binary` answers."""
        return "binary" if self.template.answers else "ranking"

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
        return {"task": self.template.form, "dataset": type(self).__name__}

    @property
    def fingerprint(self) -> str:
        """sha256 over the protocol's fingerprint and the task; results of unequal fingerprints share no table."""
        return hashlib.sha256(f"{self.sequences.fingerprint}\0{self.cases_kind}".encode()).hexdigest()

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
