"""Every method of PEFT that has a file in configs/model/peft: what it exports, and whose scores it gives.

What each trains and saves, on every family of backbones, is in `test_support_matrix.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from callbacks.training_guard import load_trained
from datamodules.contract.errors import InputError
from recmodels.methods.adalora import AdaLoRATuning
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.lora import LoRATuning
from recmodels.methods.peft import PeftTuning
from recmodels.methods.peft_support import REFUSED
from recmodels.methods.zero_shot import ZeroShot
from recmodels.optimization import grouped_optimizer
from tests.recmodels.oracle import CASES, plain_scores, save, tree_batch

FOLDER = Path(__file__).resolve().parents[3] / "configs/model/peft"
METHODS = sorted(path.stem for path in FOLDER.rglob("*.yaml"))
VIRTUAL = ("multitask_prompt_tuning", "p_tuning", "prefix", "prompt_tuning")
UNMERGED = {*VIRTUAL, "adaption_prompt", "beft"}  # BEFT: as long as the layers have no bias to take its own
# transformers' and PEFT's own words about each other and about their defaults, where the plain library is the oracle.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias"),
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor"),
]
Make = Callable[..., InstructionRecommender]


def config_of(method: str) -> Any:
    """The configuration that the file of a method gives, as the command line would make it."""
    given = yaml.safe_load((FOLDER / f"{method}.yaml").read_text())["model"]["init_args"]["peft_config"]
    return getattr(peft, given["class_path"])(**given.get("init_args", {}))


def built(method: str, folder: Path, **kwargs: Any) -> InstructionRecommender:
    torch.manual_seed(3)
    made: Any = {
        "lora": lambda: LoRATuning(backbone=str(folder), r=4, **kwargs),
        "adalora": lambda: AdaLoRATuning(backbone=str(folder), **kwargs),
    }.get(method, lambda: PeftTuning(config_of(method), backbone=str(folder), **kwargs))()
    made.configure_model()
    made.log = lambda *a, **k: None
    return made  # type: ignore[no-any-return]


@pytest.fixture
def make(tiny_causal: Path) -> Make:
    return lambda method, **kwargs: built(method, tiny_causal, **kwargs)


def trained_a_little(model: InstructionRecommender) -> InstructionRecommender:
    """Three steps away from the start."""
    model.train()
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        model.training_step(tree_batch(CASES, 200, 2048), 0).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def tuned(tiny_causal: Path) -> Make:
    """Every method trained a little, once for all tests that only look at it."""
    return functools.cache(lambda method: trained_a_little(built(method, tiny_causal)))


def opened_by_peft(folder: Path, model: InstructionRecommender, out: Path) -> Any:
    """A tuned model as any user of PEFT would load it: the plain backbone, and the adapter's folder."""
    config, state = model.peft_parts()
    out.mkdir()
    config.save_pretrained(str(out))
    save_file(state, out / "adapter_model.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(plain, str(out))


@torch.no_grad()
def our_scores(model: InstructionRecommender) -> torch.Tensor:
    return model.eval().score(tree_batch(CASES, 200, 2048))


@pytest.mark.parametrize("kind", ["LilyConfig", "PolyConfig"])
def test_what_cannot_run_is_refused_before_anything_loads(kind: str) -> None:
    with pytest.raises(InputError, match=f"{kind} is not supported: .*; use LoraConfig"):
        PeftTuning(getattr(peft, kind)(), backbone="smollm2-135m-instruct")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.IA3Config(target_modules=["q_prj"], feedforward_modules=[]), "'q_prj', which matches nothing.*'q_proj'"),
        (peft.LoraConfig(r=17, target_modules=["k_proj"]), "r is 17, above the width 16"),
        (peft.PromptTuningConfig(num_virtual_tokens=512), "num_virtual_tokens is 512, the backbone's context 512"),
        (peft.LoraConfig(inference_mode=True), "nothing would train"),
        (peft.LoraConfig(init_lora_weights="pissa_niter_4"), "nearest that works is 'pissa'"),
    ],
)
def test_impossible_configurations_are_refused(tiny_causal: Path, config: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PeftTuning(config, backbone=str(tiny_causal)).configure_model()


def test_a_checkpoint_of_another_method_is_refused(make: Make, tmp_path: Path) -> None:
    path = save(make("ia3"), tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="does not fit"):
        load_trained(make("vera"), path)


@pytest.mark.parametrize("kind", [ZeroShot])
def test_models_without_peft_have_no_parts(tiny_causal: Path, kind: Any) -> None:
    model = kind(backbone=str(tiny_causal))
    with pytest.raises(InputError, match="no method of PEFT"):
        model.peft_parts()
    with pytest.raises(InputError, match="cannot be merged"):
        model.merged_model()


def test_lora_plus_gives_b_a_rate_of_its_own(make: Make) -> None:
    model = make("lora", b_rate=16.0, optimizer=lambda p: torch.optim.AdamW(p, lr=0.001))
    groups = grouped_optimizer(model.optimizer, model.trained(), model.rates()).param_groups
    names = {id(value): name for name, value in model.trained().items()}
    rates = {name: g["lr"] for g in groups for name in (names[id(value)] for value in g["params"])}
    assert set(rates) == set(model.trained())
    assert all(rate == pytest.approx(0.016 if "lora_B" in name else 0.001) for name, rate in rates.items())


def test_every_method_of_peft_has_a_file_or_a_reason() -> None:
    covered = {config_of(method).peft_type for method in METHODS} | set(REFUSED)
    assert covered == set(peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING)


@pytest.mark.parametrize("method", METHODS)
def test_as_many_parameters_as_peft_itself_counts(tuned: Make, tiny_causal: Path, method: str) -> None:
    config = config_of(method)
    config.task_type = "CAUSAL_LM"
    plain = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_causal, dtype=torch.float32), config)
    count = sum(value.numel() for value in tuned(method).trained().values())
    assert count == plain.get_nb_trainable_parameters()[0]


# PEFT's own prefix, the oracle here, calls transformers 5.24 by an older name.
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", [*METHODS, "lora", "adalora"])
def test_trees_score_as_peft_does_sequence_by_sequence(
    tuned: Make, tiny_causal: Path, method: str, tmp_path: Path
) -> None:
    model = tuned(method)
    plain = opened_by_peft(tiny_causal, model, tmp_path / "adapter")
    inputs = {"task_ids": torch.tensor([0])} if method == "multitask_prompt_tuning" else {}
    torch.testing.assert_close(our_scores(model), plain_scores(plain, CASES, **inputs), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("method", [*METHODS, "lora", "adalora"])
def test_a_merged_model_scores_the_same_or_is_refused(tuned: Make, method: str) -> None:
    model = tuned(method)
    scores = our_scores(model)
    try:
        merged = model.merged_model()
    except InputError as error:
        assert "cannot be merged into the backbone" in str(error)
        assert method in UNMERGED, error
        return
    assert method not in UNMERGED
    torch.testing.assert_close(plain_scores(merged, CASES), scores, atol=1e-4, rtol=0)
    assert not any(isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) for module in merged.modules())
    assert torch.equal(our_scores(model), scores)  # the model itself is as before


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_tokens_of_tied_embeddings_train_at_both_ends_as_in_peft(folder_of: Any, family: str, tmp_path: Path) -> None:
    folder = folder_of(family, tie_word_embeddings=True)
    model = PeftTuning(config_of("trainable_tokens"), backbone=str(folder))
    model.configure_model()
    model.log = lambda *a, **k: None  # type: ignore[method-assign]
    start = our_scores(model)
    trained_a_little(model)
    scores = our_scores(model)
    assert float((scores - start).abs().max()) > 0.01
    plain = opened_by_peft(folder, model, tmp_path / "adapter")
    torch.testing.assert_close(plain_scores(plain, CASES), scores, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(plain_scores(model.merged_model(), CASES), scores, atol=1e-4, rtol=0)
    [(name, delta)] = model.trained().items()
    with torch.no_grad():
        delta[1] += 1.0  # token 2 begins one answer and ends another
        head = model.backbone.head(torch.ones(1, 32 if family != "opt" else 16))
    rows = model.backbone.model.get_input_embeddings().base_layer.weight.sum(1)
    assert float((head[0] - rows).detach().abs().argmax()) == 2, f"{name} is not in the head"


def test_a_token_beyond_the_vocabulary_is_refused(tiny_causal: Path) -> None:
    config = peft.TrainableTokensConfig(token_indices=[1, 99_999])
    with pytest.raises(InputError, match=r"token_indices names 99999; the tokens of backbone .* are 0 to \d+"):
        PeftTuning(config, backbone=str(tiny_causal)).configure_model()
