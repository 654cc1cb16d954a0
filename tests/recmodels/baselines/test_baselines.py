"""Classical baselines against independent computations, and what every one of them must refuse."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from implicit.nearest_neighbours import CosineRecommender
from scipy.sparse import csr_matrix
from sklearn.metrics.pairwise import cosine_similarity

import recmodels
from datamodules.contract.batch import EventBatch, InteractionBatch, SequenceBatch
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.slates import WindowOptions
from datamodules.protocol.hard_negatives import title_embeddings
from datamodules.protocol.rules import Protocol
from datamodules.sources.pretrained import load_tokenizer, pooling_of
from recmodels.backbones.encoder import load_encoder
from recmodels.baselines.bm25 import index_titles, terms
from recmodels.baselines.ease import ease_weights
from recmodels.baselines.item_knn import nearest_items
from recmodels.baselines.sentence_encoder import embed
from recmodels.baselines.sequential import ItemTransformer
from recmodels.layers.item_factors import item_factors

pytestmark = [
    # torch 2.11 says so once even where checks are switched off by name.
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]
SOLVED = ("Popularity", "ItemKNN", "EASE", "PureSVD", "BM25")
LEARNED = ("BPR", "SASRec", "BERT4Rec")


def dense_events(seed: int, users: int = 30, items: int = 17) -> tuple[np.ndarray, EventBatch]:
    matrix = (np.random.default_rng(seed).random((users, items)) < 0.3).astype(np.float64)
    user, item = (torch.from_numpy(place) for place in matrix.nonzero())
    return matrix, EventBatch(user, item, users, items, tuple(f"word{i % 5} of {i}" for i in range(items)))


def full_batch(history: list[list[int]], items: int) -> InteractionBatch:
    cases = len(history)
    return InteractionBatch(
        case=torch.arange(cases),
        branch_case=torch.arange(cases).repeat_interleave(items),
        branch_item=torch.arange(items).repeat(cases),
        relevance=torch.zeros(cases * items),
        answers="candidates",
        history=torch.tensor(history),
        user=torch.arange(cases),
    )


def solve(name: str, events: EventBatch, **options: Any) -> Any:
    model = getattr(recmodels, name)(**options)
    for key, value in model.solve(events).items():
        setattr(model, key, value)
    return model


HISTORY = [[-1, 3, 5], [0, 1, 2], [-1, -1, 16]]


@pytest.mark.parametrize("seed", range(3))
def test_item_knn_is_scikit_learns_cosine(seed: int) -> None:
    matrix, events = dense_events(seed)
    similar = cosine_similarity(matrix.T)
    np.fill_diagonal(similar, 0)
    kept = np.zeros_like(similar)
    for item, row in enumerate(similar.astype(np.float32)):
        near = np.argsort(-row, kind="stable")[:4]
        kept[item, near] = similar[item, near]
    expected = np.stack([kept[:, [i for i in row if i >= 0]].sum(1) for row in HISTORY])
    got = solve("ItemKNN", events, neighbours=4)(full_batch(HISTORY, 17)).reshape(3, 17)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Method expects CSR input")
@pytest.mark.parametrize("neighbours", [10, 59])
def test_item_knn_is_that_of_implicit(neighbours: int) -> None:
    """A library of its own: the same similarities, and with all neighbours the same list for every user."""
    matrix, events = dense_events(4, users=300, items=60)
    theirs = CosineRecommender(K=neighbours + 1, num_threads=1)  # an item is its own nearest one there
    theirs.fit(csr_matrix(matrix), show_progress=False)
    near = theirs.similarity.toarray()
    np.fill_diagonal(near, 0)
    ours = nearest_items(torch.from_numpy(matrix).float().to_sparse(), neighbours)[1]
    np.testing.assert_allclose(ours, -np.sort(-near, axis=1)[:, :neighbours], atol=1e-6)
    if neighbours < 59:
        return  # which of equally near items is kept differs
    history = [row.nonzero()[0].tolist() for row in matrix]
    longest = max(map(len, history))
    batch = full_batch([[-1] * (longest - len(row)) + row for row in history], 60)
    table = solve("ItemKNN", events, neighbours=neighbours)(batch).reshape(300, 60).numpy()
    item, score = theirs.recommend(np.arange(300), csr_matrix(matrix), N=10, filter_already_liked_items=True)
    np.testing.assert_allclose(np.take_along_axis(table, item, 1), score, rtol=1e-5)
    np.testing.assert_allclose(-np.sort(-np.where(matrix > 0, -np.inf, table), axis=1)[:, :10], score, rtol=1e-5)


def test_stripes_change_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, _ = dense_events(1)
    whole = nearest_items(torch.from_numpy(matrix).float().to_sparse(), 5, 2.0)
    monkeypatch.setattr("recmodels.baselines.item_knn._CELLS", 40)
    parts = nearest_items(torch.from_numpy(matrix).float().to_sparse(), 5, 2.0)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_ease_solves_each_items_ridge_regression(strength: float) -> None:
    """Column j minimises |X_j - X b|^2 + strength |b|^2 over b with b_j = 0: solved one by one, without an inverse."""
    matrix, _ = dense_events(2)
    got = ease_weights(torch.from_numpy(matrix.T @ matrix), strength).double().numpy()
    for item in range(matrix.shape[1]):
        others = np.delete(np.arange(matrix.shape[1]), item)
        x = matrix[:, others]
        alone = np.linalg.solve(x.T @ x + strength * np.eye(len(others)), x.T @ matrix[:, item])
        np.testing.assert_allclose(got[others, item], alone, atol=1e-6)
        assert got[item, item] == 0


def test_ease_says_when_the_catalogue_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recmodels.baselines.ease.psutil.virtual_memory", lambda: SimpleNamespace(available=2 * 2**30))
    events = EventBatch(torch.tensor([0]), torch.tensor([0]), 1, 16_859)
    with pytest.raises(InputError, match=r"16,859 items need 4.2 GiB of memory and 2.0 GiB are free.*ItemKNN"):
        recmodels.EASE().solve(events)


def test_ease_in_single_precision_is_that_in_double() -> None:
    """Above `MOST_DOUBLE` items; counts as skewed as a catalogue's, so that the matrix is as badly conditioned."""
    rng = np.random.default_rng(3)
    weight = 1 / np.arange(1, 201)
    matrix = (rng.random((5_000, 200)) < np.minimum(0.9, 3 * weight)).astype(np.float32)
    counts = torch.from_numpy(matrix.T @ matrix)
    before = counts.clone()
    single, double = ease_weights(counts, 500.0, most_double=100), ease_weights(counts, 500.0)
    assert torch.equal(counts, before), "the caller's counts stay as they are"
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, double, atol=2e-6, rtol=1e-4)
    assert not torch.equal(single, double)


@pytest.mark.parametrize("half_life", [None, 1.5])
@pytest.mark.parametrize("normalised", [True, False])
def test_pure_svd_projects_histories_onto_the_strongest_factors(normalised: bool, half_life: float | None) -> None:
    matrix, events = dense_events(0)
    if normalised:
        counts = matrix.sum(1, keepdims=True) * matrix.sum(0)
        matrix = matrix / np.sqrt(counts)
    _, _, right = np.linalg.svd(matrix)
    projection = right[:6].T @ right[:6]
    twice = EventBatch(events.user.repeat(2), events.item.repeat(2), events.users, events.items)
    model = solve("PureSVD", twice, factors=6, normalised=normalised, half_life=half_life)
    expected = np.zeros((len(HISTORY), events.items))
    for case, history in enumerate(HISTORY):
        known = [item for item in history if item >= 0]
        for later, item in enumerate(reversed(known)):
            expected[case] += projection[item] * (1.0 if half_life is None else 0.5 ** (later / half_life))
    scores = model.score(full_batch(HISTORY, events.items)).reshape(expected.shape)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_factors_leave_the_runs_own_draws_alone() -> None:
    _, events = dense_events(1)
    state = torch.get_rng_state()
    few, many = item_factors(events, 3), item_factors(events, 40)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(few, item_factors(events, 3))
    assert many.shape == (17, 40)
    assert many[:, 17:].eq(0).all()


def test_bm25_is_the_formula() -> None:
    titles = ["Alien", "Alien 3", "The Third Man", "Man of the Year", "Aliens"]
    model = solve("BM25", EventBatch(torch.tensor([0]), torch.tensor([0]), 1, 5, tuple(titles)))
    got = model(full_batch([[-1, 0], [2, 3]], 5)).reshape(2, 5)
    documents = [terms(title) for title in titles]
    mean = sum(map(len, documents)) / 5
    for case, history in enumerate(([0], [2, 3])):
        for item, document in enumerate(documents):
            score = 0.0
            for term in [t for i in history for t in documents[i]]:
                tf, n = document.count(term), sum(term in d for d in documents)
                idf = math.log(1 + (5 - n + 0.5) / (n + 0.5))
                score += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(document) / mean))
            assert got[case, item].item() == pytest.approx(score, abs=1e-5)


def test_titles_without_a_word_have_no_score() -> None:
    _, count, weight = index_titles(["!!!", "???"])
    assert count.sum() == weight.sum() == 0


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
"""As in all-MiniLM-L6-v2."""
FLAGS = dict.fromkeys(
    [f"pooling_mode_{mode}" for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")], False
)


def pooling_folder(encoder: Path, at: Path, modules: Any, pooling: dict[str, Any]) -> str:
    """A tiny encoder in the layout that sentence-transformers writes."""
    folder = Path(shutil.copytree(encoder, at))
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | pooling))
    return str(folder)


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(("mode", "flag"), [("cls", "cls_token"), ("mean", "mean_tokens"), ("max", "max_tokens")])
def test_embeddings_are_pooled_as_the_models_files_say(
    tiny_encoder: Path, tmp_path: Path, titles: list[str], mode: str, flag: str, newer: bool
) -> None:
    settings: dict[str, Any] = {"pooling_mode": mode} if newer else FLAGS | {f"pooling_mode_{flag}": True}
    name = pooling_folder(tiny_encoder, tmp_path / "encoder", MODULES, settings)
    encoder = load_encoder(name)
    encoder.model.eval()
    got = embed(encoder, name, titles, 7, torch.device("cpu"))
    tokenizer = load_tokenizer(name)
    for title, vector in zip(titles, got, strict=True):  # alone, so that nothing is padded
        with torch.no_grad():
            states = encoder.model(**tokenizer(title, return_tensors="pt", split_special_tokens=True))
        (state,) = states.last_hidden_state
        expected = {"cls": state[0], "mean": state.mean(0), "max": state.max(0).values}[mode]
        torch.testing.assert_close(vector, expected / expected.norm(), atol=1e-5, rtol=0)
    hard = title_embeddings(titles[:5], name)
    torch.testing.assert_close(torch.from_numpy(hard), got[:5], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("modules", "settings", "message"),
    [
        (MODULES, {"pooling_mode_lasttoken": True}, "pools by lasttoken; mean, cls and max are supported"),
        (MODULES, {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, "pools by cls, max; mean"),
        ([*MODULES, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}], {}, "has a Dense layer behind"),
        ({"a": 1}, {}, "modules.json cannot be read"),
    ],
)
def test_poolings_that_are_not_ours_are_refused(
    tiny_encoder: Path, tmp_path: Path, modules: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pooling_of(pooling_folder(tiny_encoder, tmp_path / "encoder", modules, settings))


def test_embeddings_are_those_of_titles_read_alone(tiny_encoder: Path, titles: list[str]) -> None:
    model = recmodels.SentenceEncoder(backbone=str(tiny_encoder))
    model.configure_model()
    model.encoder.model.eval()
    device = torch.device("cpu")
    together = embed(model.encoder, str(tiny_encoder), titles, 7, device)
    alone = torch.cat([embed(model.encoder, str(tiny_encoder), [title], 1, device) for title in titles])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(titles)))


@pytest.mark.parametrize("name", [*SOLVED, *LEARNED])
def test_an_unfitted_baseline_says_so(name: str) -> None:
    with pytest.raises(InputError, match="has not been fitted"):
        getattr(recmodels, name)()(full_batch(HISTORY, 17))


def test_bpr_refuses_users_it_never_saw() -> None:
    model = recmodels.BPR()
    model.make(3, 17)
    batch = full_batch(HISTORY, 17)
    batch.user[1] = -1
    with pytest.raises(InputError, match="only the users it was trained on"):
        model(batch)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ItemKNN", {"neighbours": 0}),
        ("ItemKNN", {"shrink": -1.0}),
        ("EASE", {"regularization": 0.0}),
        ("PureSVD", {"factors": 0}),
        ("PureSVD", {"half_life": 0.0}),
        ("BM25", {"b": 1.5}),
        ("BM25", {"k1": -1.0}),
        ("BPR", {"dimensions": 0}),
        ("SASRec", {"heads": 3}),
        ("SASRec", {"dropout": 1.0}),
        ("BERT4Rec", {"mask_share": 0.0}),
    ],
)
def test_options_out_of_range_are_named(name: str, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"model.{next(iter(wrong))} is"):
        getattr(recmodels, name)(**wrong)


def network(causal: bool) -> ItemTransformer:
    torch.manual_seed(0)
    return ItemTransformer(20, 8, 16, 2, 2, 32, 0.5, causal).eval()


def test_padding_changes_nothing() -> None:
    for causal in (True, False):
        short = network(causal)(torch.tensor([[4, 5, 6]]))
        long = network(causal)(torch.tensor([[-1, -1, 4, 5, 6]]))
        torch.testing.assert_close(short, long[:, 2:], atol=1e-6, rtol=0)


def test_sasrec_never_sees_the_future() -> None:
    one, other = network(True)(torch.tensor([[4, 5, 6], [4, 5, 9]]))
    torch.testing.assert_close(one[:2], other[:2])
    assert not torch.allclose(one[2], other[2])
    one, other = network(False)(torch.tensor([[4, 5, 6], [4, 5, 9]]))
    assert not torch.allclose(one[0], other[0])


def sasrec(loss: str) -> recmodels.SASRec:
    torch.manual_seed(0)
    model = recmodels.SASRec(loss, dimensions=16, inner=32, max_length=4)  # type: ignore[arg-type]
    model.make(9, 20)
    return model.eval()


def windows(items: list[list[int]], own: list[list[bool]]) -> SequenceBatch:
    item = torch.tensor(items)
    negative = torch.stack([(item + 3) % 20, (item + 8) % 20], dim=-1)  # the same beside an item wherever it stands
    return SequenceBatch(torch.arange(len(items)), item, torch.tensor(own), negative)


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_the_loss_of_sasrec_is_that_of_each_owned_target_after_all_events_before_it(loss: str) -> None:
    """Windows as long as the model reads, longer and shorter; the oracle asks for one target at a time."""
    model = sasrec(loss)
    items = [[1, 2, 3, 4, 5], [7, 0, 5, 0, 3], [-1, -1, 8, 9, 10]]
    own = [[True] * 5, [False, False, True, False, True], [False, False, True, True, True]]
    batch = windows(items, own)
    asked = [(row, at) for row in range(3) for at in range(1, 5) if own[row][at] and items[row][at - 1] >= 0]
    assert len(asked) == 4 + 2 + 2
    read = [torch.tensor([*items[row][:at], *[0] * (4 - at)]) for row, at in asked]  # what follows is not seen
    state = torch.stack([model.network(ids[None])[0, at - 1] for ids, (_, at) in zip(read, asked, strict=True)])
    logits = state @ model.item_vectors().T
    target = torch.tensor([items[row][at] for row, at in asked])
    if loss == "softmax":
        expected = torch.nn.functional.cross_entropy(logits, target)
    else:
        other = torch.stack([batch.negative[row, at] for row, at in asked])
        entropy = torch.nn.functional.binary_cross_entropy_with_logits
        right, wrong = logits.gather(1, target[:, None]), logits.gather(1, other)
        expected = entropy(right, torch.ones_like(right)) + entropy(wrong, torch.zeros_like(wrong))
    torch.testing.assert_close(model.loss(batch), expected)

    model.loss(batch).backward()  # type: ignore[no-untyped-call]
    gradient = model.network.position.weight.grad
    assert (gradient.abs().sum(1) > 0).all(), "the earliest position of the longest window learns, too"


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_padding_and_events_beyond_its_reach_change_no_loss_of_sasrec(loss: str) -> None:
    model = sasrec(loss)
    plain = model.loss(windows([[4, 5, 6]], [[True, True, True]]))
    padded = model.loss(windows([[-1, -1, 4, 5, 6]], [[False, False, True, True, True]]))
    torch.testing.assert_close(padded, plain)
    reached = model.loss(windows([[2, 3, 4, 5, 6]], [[True] * 5]))
    longer = model.loss(windows([[9, 1, 2, 3, 4, 5, 6]], [[False, True, True, True, True, True, True]]))
    torch.testing.assert_close(longer, reached)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("options", [{}, {"loss": "bce"}])
def test_learned_baselines_learn_a_cycle(name: str, options: dict[str, Any]) -> None:
    if options and name != "SASRec":
        pytest.skip("one loss only")
    torch.manual_seed(0)
    sized = {"dimensions": 16} if name == "BPR" else {"dimensions": 16, "inner": 32, "dropout": 0.0, "max_length": 6}
    model = getattr(recmodels, name)(**sized, **options)
    model.make(12, 12)
    start = torch.arange(12)[:, None]
    item = (start + torch.arange(7)) % 12

    def drawn() -> SequenceBatch:  # anew each step, as training draws them anew each epoch
        negative = (item + torch.randint(1, 12, item.shape))[..., None] % 12  # never the item itself
        if name == "BPR":  # its user chose seven of the twelve
            negative = (start + torch.randint(7, 12, item.shape))[..., None] % 12
        return SequenceBatch(torch.arange(12), item, torch.ones(12, 7, dtype=torch.bool), negative)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    first = model.loss(drawn()).item()
    for _ in range(400):
        optimizer.zero_grad()
        loss = model.loss(drawn())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    if name != "BPR":
        model.eval()
        best = model(full_batch(item[:, :6].tolist(), 12)).reshape(12, 12).argmax(1)
        assert (best == item[:, 6]).float().mean() > 0.9


def test_every_training_event_is_owned_once_and_no_other_is_shown(mini_data: Path) -> None:
    protocol = Protocol(history=4, negatives=3)
    data = MovieLens100K(needs=ModelNeeds("sequences"), protocol=protocol, windows=WindowOptions(targets_per_window=3))
    data.setup()
    made = data.sequences
    owned: dict[int, list[int]] = {}
    for batch in data.train_dataloader():
        for user, items, own, negative in zip(batch.user.tolist(), batch.item, batch.own, batch.negative, strict=True):
            seen = made.item[made.start[user] : made.train_end[user]].tolist()
            shown = items[items >= 0].tolist()
            assert any(shown == seen[i : i + len(shown)] for i in range(len(seen)))
            assert not set(negative[items >= 0].flatten().tolist()) & set(seen)
            owned.setdefault(user, []).extend(items[own].tolist())
    for user in range(len(made.user_ids)):
        assert sorted(owned[user]) == sorted(made.item[made.start[user] : made.train_end[user]].tolist())
