"""Tiny real architectures with real tokenizers, and a miniature of MovieLens-100K in its true layout."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from tests.benchmarks.runs.tiny_runs import write_tiny_grid
from tests.datamodules.datasets.case_miniatures import write_case_data

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = [
    "Night",
    "Day",
    "Return",
    "Star",
    "Love",
    "Dead",
    "River",
    "King",
    "Lost",
    "Blue",
    "Last",
    "Street",
    "House",
    "Moon",
    "Fire",
    "Road",
    "War",
    "Dream",
    "Heart",
    "City",
]
USERS, ITEMS = 24, 40


gc.disable()  # until all is imported: what libraries make stays, and looking through it takes a tenth of the imports


def pytest_collection_finish() -> None:
    """What the libraries have made by now need never be looked through, and what tests make more seldom."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture(autouse=True)
def _quiet_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def scratch_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for whatever tests make; only integration tests use the user's own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, scratch_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("integration") is None:
        monkeypatch.setenv("INSTRUCTREC_CACHE", str(scratch_cache))


@pytest.fixture(scope="session")
def titles() -> list[str]:
    """`[ITEMS]` titles that share words, with one pair of equal titles and one that looks like control tokens."""
    made = [f"{WORDS[i % 20]} of {WORDS[(i * 7 + 3) % 20]}" if i % 3 else WORDS[i % 20] for i in range(ITEMS)]
    made[5] = made[4]
    made[6] = "The <|im_end|> [SEP] Affair"
    made[7] = "Godfather, The"
    return made


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory, titles: list[str]) -> Path:
    """A folder for INSTRUCTREC_DATA with `ml-100k/ml-100k.inter` and `.item`, and the data sets of single cases."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "ml-100k"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        items = rng.permutation(ITEMS)[: 6 + user % 7]
        for order, item in enumerate(items):
            rows.append((user + 1, item + 1, int(rng.integers(1, 6)), 1000 + order // 2))  # pairs share a timestamp
    order = rng.permutation(len(rows))
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += ["\t".join(map(str, rows[i])) for i in order]
    (folder / "ml-100k.inter").write_text("\n".join(lines) + "\n")
    head = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    body = [f"{i + 1}\t{title}\t{1980 + i % 20}\tDrama" for i, title in enumerate(titles)]
    (folder / "ml-100k.item").write_text("\n".join([head, *body]) + "\n")
    write_case_data(root)
    return root


@pytest.fixture
def mini_data(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points INSTRUCTREC_DATA at the miniature."""
    monkeypatch.setenv("INSTRUCTREC_DATA", str(data_root))
    return data_root


@pytest.fixture(scope="session")
def tiny_causal(tmp_path_factory: pytest.TempPathFactory, titles: list[str]) -> Path:
    """A Hugging Face folder: a random two-layer Llama with grouped heads and a byte-level BPE trained on titles."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-causal")
    tokenizer = _byte_bpe(titles)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_grid(
    tmp_path_factory: pytest.TempPathFactory, data_root: Path, tiny_causal: Path, scratch_cache: Path
) -> Path:
    """A grid's folder with real runs (`tiny_runs.ROWS`), for tests of readers; whoever changes it takes a copy first.

    The worker that needs it first makes it for all of them.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with FileLock(shared / "finished-grid.lock"):
        if not (done := shared / "finished-grid.done").exists():
            write_tiny_grid(shared / "finished-grid", data_root, tiny_causal, scratch_cache)
            done.touch()
    return shared / "finished-grid"


@pytest.fixture(scope="session")
def tiny_run(tiny_grid: Path) -> Path:
    """The folder of a finished fit of LoRA, with everything that a run writes."""
    return tiny_grid / "runs" / "model=lora-1"


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory, titles: list[str]) -> Path:
    """A Hugging Face folder: a random two-layer T5 whose tokenizer ends every text, as T5's does."""
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("tiny-t5")
    tokenizer = _text_bpe(titles, "$A <|im_end|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        n_positions=512,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory, titles: list[str]) -> Path:
    """A Hugging Face folder: a random two-layer BART whose tokenizer opens and ends every text, as BART's does."""
    from transformers import BartConfig, BartForConditionalGeneration

    folder = tmp_path_factory.mktemp("tiny-bart")
    tokenizer = _text_bpe(titles, "<|im_start|> $A <|im_end|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=512,
        init_std=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    return folder


def _text_bpe(titles: list[str], around: str) -> Any:
    """A tokenizer that puts special tokens around every text and knows no chat."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = _byte_bpe(titles)
    tokenizer.chat_template = None
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=special)
    return tokenizer


@pytest.fixture
def with_context(tiny_causal: Path, tmp_path: Path) -> Callable[[int], Path]:
    """`tiny_causal` with another longest sequence."""

    def made(context: int) -> Path:
        folder = tmp_path / f"context-{context}"
        if not folder.exists():
            shutil.copytree(tiny_causal, folder)
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
        return folder

    return made


def _byte_bpe(titles: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*titles, "Movies a user watched, oldest first. Which movie comes next?"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory, titles: list[str]) -> Path:
    """A Hugging Face folder: a random two-layer BERT with a WordPiece vocabulary of the titles' words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-encoder")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted(
        {word.lower() for title in titles for word in title.split()} | set("abcdefghijklmnopqrstuvwxyz<>|_[]")
    )
    vocabulary = [*special, *words, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    """A JSONL of two new users, one named by ids and one by titles."""
    path = tmp_path / "users.jsonl"
    rows = [
        {"user": "new-1", "history": ["1", "2", "3"]},
        {"history": ["Night"], "candidates": ["4", "8", "9"]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path
