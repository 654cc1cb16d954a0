"""Which tuning method runs on which family of backbones, found out by running each on a tiny random one.

`python -m tests.recmodels.methods.support_matrix` writes the table into recmodels/README.md; `test_support_matrix.py` holds
every cell of it to what is found.
"""

from __future__ import annotations

import copy
import functools
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
import transformers
import yaml
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import recmodels
from callbacks.training_guard import load_trained
from datamodules.contract.batch import TaggedTextBatch
from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.backbones.causal import CausalBackbone, prove_tree_attention
from recmodels.backbones.encoder import TextEncoder, why_not_packed
from recmodels.backbones.encoder_decoder import EncoderDecoderBackbone
from recmodels.engine.answer_attention import ATTENTION as ANSWER_TREE
from recmodels.engine.tree_attention import ATTENTION as PROMPT_TREE
from recmodels.methods.base import InstructionRecommender
from tests.recmodels.backbones import encoder_decoders as pairs
from tests.recmodels.backbones.encoders import rows_of
from tests.recmodels.oracle import CASES, save, tree_batch, two_steps

ROOT = Path(__file__).resolve().parents[3]
README, CONFIGS = ROOT / "recmodels/README.md", ROOT / "configs/model"
BEGIN, END = "<!-- support:begin -->", "<!-- support:end -->"
SIZES: dict[str, Any] = {
    "vocab_size": 89,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PAIR = {"d_model": 32, "decoder_start_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 48},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 5},
    "t5": PAIR | {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8},
    "bart": PAIR
    | {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))}
    | {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.2, "forced_eos_token_id": None},
    "bert": {"pad_token_id": 0},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 16},
}
ENCODERS = ("bert", "modernbert")


@functools.cache
def written(path: Path) -> dict[str, Any]:
    """The model that a file describes; not to be changed."""
    told: dict[str, Any] = yaml.safe_load(path.read_text())["model"]
    return told


def tunes(path: Path) -> bool:
    """Whether a file names a method that trains a language model; four bits are held to theirs by tests of their own."""
    told = written(path)
    kind = getattr(recmodels, told["class_path"])
    return issubclass(kind, InstructionRecommender) and kind.trains and "quantization" not in told["init_args"]


METHODS = {
    path.relative_to(CONFIGS).with_suffix("").as_posix(): path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if tunes(path)
}


@functools.cache
def untuned(family: str) -> Backbone:
    """A tiny random backbone with every dropout that its architecture has; copied before it is changed."""
    torch.manual_seed(0)
    backbone = _made(family)
    for value in backbone.model.parameters():
        if value.ndim == 1:  # fresh biases are zero and fresh norms one, where trained ones are neither
            value.data += 0.1 * torch.randn_like(value)
    if isinstance(backbone, CausalBackbone):
        prove_tree_attention(backbone)
    if isinstance(backbone, TextEncoder):
        assert not why_not_packed(backbone)
    return backbone


def _made(family: str) -> Backbone:
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family])
    for key in [key for key in vars(config) if key.endswith(("dropout", "pdrop", "dropout_prob", "dropout_rate"))]:
        setattr(config, key, 0.2)
    if family in ENCODERS:
        options = {"add_pooling_layer": False} if family == "bert" else {}  # as they are loaded
        return TextEncoder(AutoModel.from_config(config, **options), family)
    if config.is_encoder_decoder:
        model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=ANSWER_TREE)
        return EncoderDecoderBackbone(model, family)
    return CausalBackbone(AutoModelForCausalLM.from_config(config, attn_implementation=PROMPT_TREE), family)


def batch_for(family: str) -> Any:
    """A small batch in the layout that a family reads."""
    backbone = untuned(family)
    if isinstance(backbone, CausalBackbone):
        return tree_batch(CASES, 16, 2048)
    if not isinstance(backbone, TextEncoder):
        return pairs.tree_batch(CASES)
    token, segment, position, attention = rows_of([[[1, 5, 9, 17, 3, 22], [1, 7, 2, 11]], [[4, 30, 8]]])
    return TaggedTextBatch(
        case=torch.tensor([0, 1]),
        branch_case=torch.tensor([0, 0, 1]),
        branch_item=torch.tensor([3, 4, 5]),
        relevance=torch.tensor([1.0, 0.0, 1.0]),
        answers="candidates",
        token=token,
        attention=attention,
        segment=segment,
        position=position,
        branch=torch.tensor([[-1, 0, 0, -1, 0, -1, -1, 1, 1, -1, -1], [2, 2, -1] + [-1] * 8]),
        tokens=13,
        truncated=0,
    )


def method_of(name: str, backbone: str) -> InstructionRecommender:
    """What the file of a method describes, as the command line would make it."""
    told = written(METHODS[name])
    given = {key: value for key, value in told.get("init_args", {}).items() if key != "optimizer"}
    if "peft_config" in given:
        config = given["peft_config"]
        given["peft_config"] = getattr(peft, config["class_path"])(**config.get("init_args", {}))
    made: InstructionRecommender = getattr(recmodels, told["class_path"])(backbone=f"tiny/{backbone}", **given)
    return made


@contextmanager
def backbones_in_memory() -> Iterator[None]:
    """While it lasts, backbones are copied from memory in place of being read."""

    def copied(name: str, *_: Any) -> Backbone:
        return copy.deepcopy(untuned(name.split("/")[1]))

    with (
        mock.patch("recmodels.methods.base.load_backbone", copied),
        mock.patch("recmodels.methods.token_classification.load_encoder", copied),
    ):
        yield


def build(name: str, family: str) -> Any:
    """A method over a family's backbone; over an encoder, as the tuning of the tagger."""
    torch.manual_seed(3)
    model: Any = method_of(name, family)
    if family in ENCODERS:
        model = recmodels.TokenClassification(backbone=f"tiny/{family}", tuning=model)
    with backbones_in_memory():
        model.configure_model()
    model.log = lambda *a, **k: None
    return model


@functools.cache
def as_loaded(family: str) -> Any:
    """A model that nothing has tuned yet; full tuning adds nothing."""
    return build("full", family)


@functools.cache
def plain_scores(family: str) -> Any:
    """Of an untuned language model; an encoder's hang on the tagger on top."""
    return as_loaded(family).eval().score(batch_for(family))


@torch.no_grad()
def check(name: str, family: str) -> None:
    """Trains a method on a family for two steps and holds it to all that is promised.

    Raises:
        InputError: the method does not run on the family.
        AssertionError: it does not do what it promises.
    """
    model, batch = build(name, family), batch_for(family)
    method = model._tuning.module if family in ENCODERS else model
    score = functools.partial(lambda one: one.eval().score(batch))
    if family in ENCODERS:  # the taggers on top are random
        plain = as_loaded(family)
        plain.tagger.load_state_dict(model.tagger.state_dict())
        reference = score(plain)
    else:
        reference = plain_scores(family)
    start = score(model)
    same = float((start - reference).abs().max()) <= 1e-4
    assert same or not method.identity_at_start, "does not start where the backbone is"
    assert method.identity_at_start or not same or family != "llama", (
        "starts where the backbone is, and does not say so"
    )

    before = {key: value.detach().clone() for key, value in model.state_dict().items()}
    with torch.enable_grad():
        two_steps(model, batch)
    own = {value.data_ptr() for value in model.trained().values()}  # a tied weight goes by two names
    after = model.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key]) and "confusion" not in key}
    still = set(model.trained()) - moved
    assert not still, f"declared and unmoved: {sorted(still)[:3]}"
    strayed = {key for key in moved if after[key].data_ptr() not in own}
    assert not strayed, f"moved and undeclared: {sorted(strayed)[:3]}"

    trained = score(model)
    assert torch.equal(trained, score(model)), "dropout in evaluation"
    assert not torch.equal(trained, start), "nothing changed"
    with tempfile.TemporaryDirectory() as folder:
        path = save(model, Path(folder) / "a.ckpt")
        assert set(torch.load(path, weights_only=True)["state_dict"]) == set(model.trained()), "what a checkpoint holds"
        fresh = build(name, family)
        load_trained(fresh, path)
    assert torch.equal(score(fresh), trained), "a checkpoint gives other scores"


def outcome(name: str, family: str) -> str:
    """`yes`, or in one line why a method does not run on a family."""
    try:
        check(name, family)
    except InputError as error:
        said = str(error)
        assert "\n" not in said
        assert "; use " in said or "all-linear fits every family" in said, f"names nothing that works: {said}"
        said = said.replace(f"tiny/{family}", family).replace(f"backbone '{family}' ({family})", "the backbone")
        said = said.replace(f"'{family}' ({family})", "the backbone").replace(f": '{family}'", "")
        return re.sub(r"^\w+ (does not fit the backbone: |(?=needs ))", "", said)
    return "yes"


def table(found: dict[str, dict[str, str]]) -> str:
    """The outcomes as Markdown: numbers stand for reasons, which are listed below."""
    reasons = list(dict.fromkeys(said for row in found.values() for said in row.values() if said != "yes"))
    lines = [f"| `configs/model/` | {' | '.join(FAMILIES)} |", "|---" * (len(FAMILIES) + 1) + "|"]
    for name, row in found.items():
        cells = ["yes" if said == "yes" else f"({reasons.index(said) + 1})" for said in row.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"({number}) {said}  " for number, said in enumerate(reasons, 1))])


def documented() -> dict[str, dict[str, str]]:
    """Outcomes by method and family, as the README tells them."""
    told = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()
    reasons = dict(line.strip().split(" ", 1) for line in told if line.startswith("("))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told if line.startswith("| ")]
    families = rows[0][1:]
    return {
        row[0]: {family: reasons.get(cell, cell) for family, cell in zip(families, row[1:], strict=True)}
        for row in rows[1:]
    }


def write() -> None:
    """Runs every method on every family and writes the table."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    made = {name: {family: outcome(name, family) for family in FAMILIES} for name in METHODS}
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table(made)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    write()
