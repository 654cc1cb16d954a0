"""Keeps libraries from talking over a run's own lines."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quieten"]


def quieten() -> None:
    """Keeps libraries from talking over the run's own lines; errors still come through."""
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
