"""The composition root: a LightningCLI over all recommenders, data sets and callbacks."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, cast

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import Logger, WandbLogger

import recmodels
from benchmarks.cli.allowed_imports import HELP, allow_imports, class_named, refuse_code, take_plugins
from benchmarks.cli.checks import check_raw_input, checked_seed, refuse_unusable_paths, refuse_unusable_values
from benchmarks.cli.errors import one_line
from benchmarks.option_groups import spell_out_words
from benchmarks.paths import CONFIGS
from benchmarks.runs.costs import measure
from benchmarks.runs.folder import RunFolder, callback_of, has_record, output_folder
from benchmarks.runs.resuming import Continuation, best_precision, continuation, forget, identity_of, machine
from benchmarks.runs.trial import Trial, result_named, trial_named
from callbacks import *  # noqa: F403
from callbacks.cost_meter import CostMeter
from callbacks.durable_checkpoint import DurableCheckpointIO
from callbacks.resume import Resume
from callbacks.training_guard import GuardError, load_trained, verify_checkpoint
from datamodules import *  # noqa: F403
from datamodules.base import InstructionDataModule
from datamodules.contract.compat.lightning import BuildingCLI, leave_anonymous_unset
from datamodules.contract.errors import InputError, first_input_error
from datamodules.contract.files import write_atomic
from datamodules.contract.findings import Findings
from datamodules.contract.objectives import ModelNeeds, ObjectiveNeeds
from recmodels.backbones.loading import keep_freed_memory
from recmodels.base import IdentityError, NonFiniteError, Recommender
from recmodels.objectives import ObjectiveName, objective_named


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run's own folder and logs it."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Writes once per run, before anything is trained."""
        folder = Path(trainer.default_root_dir)
        only_read = stage in ("validate", "predict") and has_record(folder)
        if self.already_saved or not trainer.is_global_zero or only_read:
            return
        folder.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False, skip_validation=True)  # it was validated when it was read
        write_atomic(folder / "config.yaml", text)
        for logger in trainer.loggers:
            if isinstance(logger, Logger):
                logger.log_hyperparams(flatten(self.config.as_dict()))
        self.already_saved = True


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, as loggers want them.

    Example:
        >>> flatten({"model": {"r": 8}, "seed": 1})
        {'model.r': 8, 'seed': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
    return flat


def needs_of(model: Namespace | None) -> dict[str, Any]:
    """What a configured model asks of its batches, as `ModelNeeds`; its defaults where no class is named yet."""
    if model is None or not model.get("class_path"):
        return asdict(ModelNeeds())
    path, options = str(model.class_path), model.get("init_args") or {}
    named = class_named(path) if "." in path else getattr(recmodels, path, None)
    objective = options.get("objective")
    if isinstance(objective, Namespace):
        asked = getattr(class_named(str(objective.class_path)), "needs", ObjectiveNeeds())
    else:
        asked = objective_named(cast(ObjectiveName, objective)).needs if objective else ObjectiveNeeds()
    batch_format: Any = getattr(named, "batch_format", "prompt_tree")
    shots = int(options.get("shots") or 0)
    return asdict(ModelNeeds(batch_format, asked.name, asked.task, asked.negatives, shots))


def quieten() -> None:
    """Keeps libraries from talking over the run's own lines; errors still come through."""
    logging.raiseExceptions = False  # a library's log that finds no room is no reason for a traceback
    import transformers

    logging.getLogger("lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for message in (
        "does not have many workers",  # batches are made faster than they are used; num_workers is an option
        "You're resuming from a checkpoint that ended before the epoch ended",  # our sampler knows its place
        "exists and is not empty",  # the run's folder holds its config before the first log
        "is deprecated, use `isinstance",  # inside Lightning 2.6: https://github.com/Lightning-AI/pytorch-lightning/issues/21300
        "returned `None`, this fit will run with no optimizer",  # popularity counts, it needs none
        "Found .* module\\(s\\) in eval mode",  # metrics and dropout-free parts
        "smaller than the logging interval",  # popularity has one batch
        "Trying to infer the `batch_size`",
        "`loftq_config` specified but will be ignored",  # PEFT's own default, spelt out by the parser
        "Sparse CSR tensor support is in beta",  # what torch multiplies sparse matrices with
        "Sparse invariant checks are implicitly disabled",  # torch 2.11, where they are switched off by name
        "LightningCLI's args parameter",  # the command line without our own flags
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")


DEFAULTS = CONFIGS / "trainer" / "default.yaml"

EXPECTED_FAILURES = (NonFiniteError, IdentityError, GuardError)
"""Failures whose message says everything, so that no traceback is printed."""


class InstructRecParser(LightningArgumentParser):
    """A parser whose errors are one line that names the nearest valid choice."""

    words: ClassVar[Sequence[str]] = ()
    """The command line; the parsers that jsonargparse makes for the options of a class are of the same class as this."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviated option is a mistyped one: it must not silently mean another.
        super().__init__(*args, **(kwargs | {"allow_abbrev": False}))

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Prints the line and exits with 2."""
        del ex
        sys.stderr.write(f"instructrec: {one_line(message, self, self.words)}\n")
        sys.exit(2)


class InstructRecCLI(BuildingCLI):
    """`instructrec fit|validate|test|predict`.

    `fit` trains, proves that the checkpoint gives the trained model back, loads the best one and tests it, so that one
    command makes one row of a table.
    """

    continues: Continuation | None = None
    """Where this fit goes on."""
    trial: Trial | None = None
    """What a search tries with this fit."""
    search: dict[str, Any]
    """What a search has chosen for this run."""

    subcommand_help: ClassVar[dict[str, str]] = {
        "fit": "tune, verify the checkpoint, test, and write the run record; --ckpt_path last continues",
        "validate": "measure on the validation cases",
        "test": "measure on the test cases and write the run record",
        "predict": "rank items for new users (--data.predict_file)",
    }

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer methods that are commands, with the arguments that are not for the user."""
        skip = {"model", "datamodule", "dataloaders", "weights_only", "return_predictions", "verbose"}
        return {"fit": skip | {"train_dataloaders", "val_dataloaders"}, "validate": skip, "test": skip, "predict": skip}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's folder, name and saves, and the values that model and data share."""
        parser.add_argument(
            "--out",
            type=Path | None,
            default=None,
            help="folder of everything the run writes; default: results/run, or where that holds a finished run"
            " results/run-2 and so on",
        )
        parser.add_argument("--overwrite", action="store_true", help="replace the finished run that --out holds")
        parser.add_lightning_class_args(Resume, "resume")
        parser.add_argument("--name", type=str | None, default=None, help="name of the row; default: the model's class")
        parser.add_argument(
            "--search.trial", type=Path | None, help="file of a trial: fit measures validation cases only"
        )
        parser.add_argument("--search.result", type=Path | None, help="what a search has chosen, for the run's record")
        parser.link_arguments("model.init_args.backbone", "data.init_args.backbone")
        parser.link_arguments("model", "data.init_args.needs", compute_fn=needs_of)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=checked_seed)

    def before_instantiate_classes(self) -> None:
        """Fills in what depends on the run's folder and on the machine."""
        config = self.config[self.subcommand]
        refuse_code(config)
        refuse_unusable_values(config)
        config.out = output_folder(config.out, str(self.subcommand), overwrite=config.pop("overwrite"))
        refuse_unusable_paths(config, self.subcommand == "fit")
        self.trial, self.search = trial_named(config.search.trial), result_named(config.search.result)
        trainer = config.trainer
        trainer.default_root_dir = str(config.out)
        if trainer.precision is None:
            trainer.precision = best_precision(str(trainer.accelerator))
        if isinstance(trainer.logger, Namespace):
            trainer.logger = [trainer.logger]
        if self.subcommand in ("validate", "predict") and has_record(config.out) and isinstance(trainer.logger, list):
            # Lightning's CSVLogger begins by deleting the metrics.csv that it finds: the run's learning curves.
            trainer.logger = [logger for logger in trainer.logger if not logger.class_path.endswith("CSVLogger")]
        for logger in trainer.logger if isinstance(trainer.logger, list) else []:
            if "save_dir" in logger.init_args and logger.init_args.save_dir in (None, "."):
                logger.init_args.save_dir = str(config.out)
            if logger.class_path.endswith("WandbLogger") and logger.init_args.get("name") is None:
                logger.init_args.name = str(config.name or config.model.class_path.rsplit(".", 1)[-1])
        for callback in trainer.callbacks or []:
            if callback.class_path.endswith("ModelCheckpoint") and callback.init_args.dirpath is None:
                callback.init_args.dirpath = str(config.out / "checkpoints")
        if self.subcommand == "fit":
            self._find_continuation(config)
        if config.get("model.init_args.quantization") is None:
            keep_freed_memory()

    def instantiate_classes(self) -> None:
        """Builds trainer, model and data; here only constructors run, so what they refuse is the user's value."""
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            wrong = first_input_error(error)
            raise wrong or InputError(f"the config cannot be built: {one_line(str(error), self.parser)}") from error

    def _find_continuation(self, config: Namespace) -> None:
        """Decides where the fit begins, before anything is loaded; the written config does not say it."""
        asked, config.ckpt_path = config.ckpt_path, None
        self.identity = identity_of(
            config.as_dict(), self.run_folder.header(), machine(str(config.trainer.accelerator))
        )
        self.continues = continuation(Path(config.out), asked, self.identity)
        runs = list(self.continues.wandb) if self.continues else []
        for logger in config.trainer.logger if isinstance(config.trainer.logger, list) else []:
            if logger.class_path.endswith("WandbLogger") and runs and logger.init_args.get("id") is None:
                logger.init_args.id = runs.pop(0)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Makes a trainer that writes checkpoints durably."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.strategy.checkpoint_io = DurableCheckpointIO()
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                leave_anonymous_unset(logger)
        trainer.callbacks += [self.trial] if self.trial else []  # type: ignore[attr-defined]
        return trainer

    @property
    def run_folder(self) -> RunFolder:
        """Where this run writes."""
        config = self.config[self.subcommand]
        name = str(config.name or config.model.class_path.rsplit(".", 1)[-1])
        return RunFolder(Path(config.out), config.as_dict(), name, self.search)

    def fit(self, model: Recommender, **kwargs: Any) -> None:
        """Trains what there is to train, from its beginning or from where it was interrupted."""
        if self.trainer.is_global_zero:
            self.run_folder.begin(fresh=self.continues is None)
        if resume := callback_of(self.trainer, Resume):
            resume.identity = self.identity
        if model.trains:
            self.trainer.fit(model, **kwargs | {"ckpt_path": self.continues.path if self.continues else None})

    def after_fit(self) -> None:
        """Verifies, loads the best checkpoint, tests and writes the record."""
        if self.trial is not None:
            self._end_trial(self.trial)
            return
        findings: Findings = self.model.findings.copy()
        if self.model.trains:
            last = Path(self.trainer.default_root_dir) / "checkpoints" / "last.ckpt"
            self.trainer.save_checkpoint(last, weights_only=True)
            batch = self._probe_batch()
            findings["reloaded_score_difference"] = verify_checkpoint(
                self.model, last, batch, self.trainer.precision_plugin.forward_context
            )
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "") or str(last)
            load_trained(self.model, Path(best))
            findings["tested_checkpoint"] = Path(best).name
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        if meter := callback_of(self.trainer, CostMeter):
            meter.add(measure(self.model, self.datamodule, self.trainer.precision_plugin.forward_context))
        self.run_folder.write_record(self.trainer, self.model, self.datamodule, findings)
        if self.trainer.is_global_zero:
            forget(self.run_folder.path)

    def _end_trial(self, trial: Trial) -> None:
        """Writes what the trial measured; a model that nothing validated in its fit is validated now."""
        if not trial.values:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        trial.write_record(self.trainer, self.run_folder, self.model.kind)
        if self.trainer.is_global_zero:
            forget(self.run_folder.path)

    def _probe_batch(self) -> Any:
        self.datamodule.setup("test")
        loader = self.datamodule.test_dataloader()
        if self.model.batch_format in ("interactions", "sequences"):  # what is kept of other users would go unseen
            return next(iter(loader)).to(self.model.device)
        keys = range(min(2, len(loader.dataset)))
        return loader.collate_fn([loader.dataset[key] for key in keys]).to(self.model.device)

    def validate(self, model: Recommender, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measures on the validation cases."""
        self._load(model, ckpt_path)
        self.trainer.validate(model, verbose=True, **kwargs)

    def test(self, model: Recommender, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measures on the test cases."""
        self._load(model, ckpt_path)
        if self.trainer.is_global_zero:
            self.run_folder.begin(fresh=False)
        self.trainer.test(model, verbose=False, **kwargs)
        findings = Findings(tested_checkpoint=str(ckpt_path)) if ckpt_path else Findings()
        if "lineage" in self.model.findings:
            findings["lineage"] = self.model.findings["lineage"]
        self.run_folder.write_record(self.trainer, self.model, self.datamodule, findings)

    def predict(self, model: Recommender, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Ranks items for the users of `data.predict_file`."""
        file = self.datamodule.predict_file
        if file is None or not file.is_file():
            raise InputError(f"predict needs --data.predict_file, a JSONL of users' histories; {file} does not exist")
        self._load(model, ckpt_path)
        self.trainer.predict(model, return_predictions=False, **kwargs)
        print(f"predictions: {Path(self.trainer.default_root_dir) / 'predictions.jsonl'}")

    def _load(self, model: Recommender, ckpt_path: str | None) -> None:
        if ckpt_path is None:
            if model.trains:
                raise InputError(f"{type(model).__name__} needs --ckpt_path, a checkpoint that fit wrote")
            return
        model.trainer = self.trainer
        try:
            load_trained(model, Path(ckpt_path))
        except InputError as error:
            raise InputError(f"--ckpt_path {ckpt_path}: {str(error).removeprefix(f'{ckpt_path}: ')}") from error


def with_one_command(command: str) -> type[InstructRecCLI]:
    """The same without the other commands' parsers, which take a tenth of a second each to make."""
    ours = {command: InstructRecCLI.subcommands()[command]}
    methods = {"subcommands": staticmethod(lambda: ours)}
    return cast("type[InstructRecCLI]", type(InstructRecCLI.__name__, (InstructRecCLI,), methods))


def build(args: list[str] | None = None) -> InstructRecCLI:
    """Builds trainer, model and data of one command; the result's `run` runs it, its `run_folder` is where it writes."""
    os.environ.setdefault("WANDB_MODE", "offline")  # no account and no network are needed; `wandb sync` works later
    os.environ.setdefault("WANDB_SILENT", "true")
    arguments, plugins = take_plugins(sys.argv[1:] if args is None else list(args))
    if not DEFAULTS.is_file():  # the parser would go on without guard, logger and scores
        raise InputError(f"{DEFAULTS} does not exist: the installation is incomplete; install instructrec again")
    arguments = spell_out_words(check_raw_input(arguments))
    allow_imports(plugins)
    quieten()
    kind = InstructRecCLI
    if arguments[:1] and arguments[0] in kind.subcommands():
        kind = with_one_command(arguments[0])
    return kind(
        model_class=Recommender,
        datamodule_class=InstructionDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveConfig,
        parser_class=type(InstructRecParser.__name__, (InstructRecParser,), {"words": arguments}),
        parser_kwargs={
            command: {"default_config_files": [str(DEFAULTS)], "epilog": HELP} for command in kind.subcommands()
        },
        seed_everything_default=1,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=None if arguments == sys.argv[1:] else arguments,
    )
