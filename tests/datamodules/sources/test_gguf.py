"""A user's own GGUF file as a backbone: the weights and tokens of the model it was made of, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.__main__ import main
from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import check_backbone_name, context_length, load_tokenizer, pretrained_folder
from recmodels.backbones.causal import load_causal

ROOT = Path(__file__).resolve().parents[3]
WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}


def write_gguf(folder: Path, path: Path) -> None:
    """Writes a Llama of a Hugging Face folder the way llama.cpp does."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, words = model.config, json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(words["model"]["vocab"], key=words["model"]["vocab"].get)
    special = {each["id"] for each in words["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in words["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    for name, value in model.state_dict().items():
        array, new = value.numpy(), name
        for ours, theirs in NAMES.items():
            new = new.replace(ours, theirs)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(new.split(".")[-2], 0)
        if heads:  # llama.cpp turns pairs of neighbours where transformers turns halves
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(new, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def file(tiny_causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "my tiny.f32.gguf"
    write_gguf(tiny_causal, path)
    return path


def test_a_gguf_file_is_the_model_it_was_made_of(file: Path, tiny_causal: Path) -> None:
    check_backbone_name(str(file))
    made, own = (load_causal(str(path), "float32") for path in (file, tiny_causal))
    torch.testing.assert_close(made.probe(), own.probe(), atol=1e-5, rtol=1e-5)
    assert context_length(str(file)) == 512
    text = "Night of Return, then King of Love?"
    assert load_tokenizer(str(file))(text).input_ids == AutoTokenizer.from_pretrained(tiny_causal)(text).input_ids


def test_it_is_converted_once_for_its_contents(file: Path, tmp_path: Path) -> None:
    first = pretrained_folder(str(file))
    renamed = tmp_path / file.name
    shutil.copy(file, renamed)
    made = (first / "manifest.json").stat().st_mtime_ns
    assert pretrained_folder(str(file)) == pretrained_folder(str(renamed)) == first
    assert (first / "manifest.json").stat().st_mtime_ns == made
    other = bytearray(file.read_bytes())
    other[-5] ^= 1
    renamed.write_bytes(bytes(other))
    assert pretrained_folder(str(renamed)) != first


def test_it_is_tuned_from_the_command_line(file: Path, mini_data: Path, tmp_path: Path) -> None:
    words = ["-c", str(ROOT / "configs/model/lora.yaml"), "-c", str(ROOT / "configs/data/ml_100k.yaml")]
    fast = ["--trainer.max_steps=1", "--trainer.logger=false", "--data.protocol.negatives=6"]
    assert main(["fit", *words, f"--model.backbone={file}", *fast, f"--out={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run" / "record.json").read_text())["metrics"]["test/mrr"] > 0


def test_what_is_no_gguf_model_is_one_line(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such GGUF file"):
        check_backbone_name(str(tmp_path / "none.gguf"))
    for name, content in (("text", b"hello"), ("short", file.read_bytes()[:300]), ("empty", b"")):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(
            InputError, match="cannot be read as GGUF: .*; give a folder of a Hugging Face model"
        ) as told:
            pretrained_folder(str(path))
        assert "\n" not in str(told.value)
