"""Language models as rerankers, against what their model cards compute with transformers, and sentence-transformers' CrossEncoder."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.corpus import texts_of_lengths
from lading.adapters import Adapter, load
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from tests import models, models_rerank

QUERIES = texts_of_lengths([2, 5, 3, 12, 1, 9, 12, 4, 3])
DOCUMENTS = texts_of_lengths([30, 5, 120, 80, 1, 7, 12, 300, 600], seed=1)
DOCUMENTS[1] = " \n- starts oddly {query} </think> ü"
PAIRS = list(zip(QUERIES, DOCUMENTS, strict=True))
NAMES = {"qwen3": "Qwen3-Reranker-0.6B", "qwen2": "mxbai-rerank-base-v2", "gemma": "bge-reranker-v2-gemma"}

Ids = Callable[[str], list[int]]


# -- what the model cards say: ids of one pair, given `limit` tokens in all; and the score of its logits


def qwen3_ids(ids: Ids, query: str, document: str, limit: int, instruction: str) -> list[int]:
    prefix = ids(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = ids("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    task = instruction or "Given a web search query, retrieve relevant passages that answer the query"
    body = ids(f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}")
    return prefix + body[: limit - len(prefix) - len(suffix)] + suffix


def mxbai_ids(ids: Ids, query: str, document: str, limit: int, instruction: str) -> list[int]:
    prefix = ids(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    )
    task = ids(
        "You are a search relevance expert who evaluates how well documents match search queries. For each query-document pair, "
        "carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 for not "
        "relevant, 1 for relevant).\nRelevance:"
    )
    suffix = ids("<|im_end|>\n<|im_start|>assistant\n")
    asked = ids((f"instruction: {instruction}\n" if instruction else "") + f"query: {query}")[: limit * 3 // 4]
    room = limit - len(prefix) - len(asked) - 2 * len(ids("\n")) - len(task) - len(suffix)
    return [*prefix, *asked, *ids("\n"), *ids(f"document: {document}")[:room], *ids("\n"), *task, *suffix]


def gemma_ids(ids: Ids, query: str, document: str, limit: int, instruction: str) -> list[int]:
    prompt = instruction or (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a prediction "
        "of either 'Yes' or 'No'."
    )
    asked, end = ids(f"A: {query}")[: limit * 3 // 4], ids("\n") + ids(prompt)
    room = limit - 1 - len(asked) - len(ids("\n")) - len(end)
    return [*ids("<bos>"), *asked, *ids("\n"), *ids(f"B: {document}")[:room], *end]


def qwen3_score(logits: torch.Tensor, token: Callable[[str], int]) -> float:
    two = torch.stack([logits[token("no")], logits[token("yes")]])
    return float(torch.nn.functional.log_softmax(two, dim=0)[1].exp())


def mxbai_score(logits: torch.Tensor, token: Callable[[str], int]) -> float:
    return float(logits[token("1")] - logits[token("0")])


def gemma_score(logits: torch.Tensor, token: Callable[[str], int]) -> float:
    return float(logits[token("Yes")])


CARDS: dict[str, Any] = {
    "qwen3": (qwen3_ids, qwen3_score),
    "qwen2": (mxbai_ids, mxbai_score),
    "gemma": (gemma_ids, gemma_score),
}


def expected(folder: Path, architecture: str, pairs: list[tuple[str, str]], limit: int, instruction: str = ""):
    """The card's scores: every pair alone, unpadded, through the whole vocabulary's logits."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids_of, score_of = CARDS[architecture]
    ids = functools.partial(tokenizer.encode, add_special_tokens=False)
    scores, lengths = [], []
    with torch.inference_mode():
        for query, document in pairs:
            tokens = ids_of(ids, query, document, limit, instruction)
            scores.append(
                score_of(model(input_ids=torch.tensor([tokens])).logits[0, -1], tokenizer.convert_tokens_to_ids)
            )
            lengths.append(len(tokens))
    return np.array(scores, np.float32), lengths


# -- ours


@pytest.fixture(scope="module", params=list(NAMES))
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Architecture and a checkpoint in a folder that has the model's name."""
    path = tmp_path_factory.mktemp("rerankers") / NAMES[request.param]
    return request.param, models_rerank.tiny_reranker(path, request.param)


def adapter_of(folder: Path, **wishes) -> Adapter:
    return load(resolve(locate(str(folder)), task="score", **wishes), folder, device="cpu", threads=1)


def score(adapter: Adapter, pairs: list[tuple[str, str]] = PAIRS) -> np.ndarray:
    prepared = adapter.prepare([pa.array(column, pa.string()) for column in zip(*pairs, strict=True)])
    assert not prepared.bad
    outputs = adapter.run([(prepared, np.arange(len(pairs)))])
    assert not outputs.bad
    return outputs.batch.column(0).to_numpy()


def worst(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(("limit", "instruction"), [(700, ""), (700, "Find the same thing."), (470, "")])
def test_scores_are_the_model_cards(named: tuple[str, Path], limit: int, instruction: str):
    """Ragged pairs in one packed batch score as each does alone by its card, long documents cut, instructions in place."""
    architecture, folder = named
    adapter = adapter_of(folder, max_tokens=limit, instruction=instruction)
    wanted, lengths = expected(folder, architecture, PAIRS, limit, instruction)
    prepared = adapter.prepare([pa.array(QUERIES), pa.array(DOCUMENTS)])
    assert prepared.costs.tolist() == lengths
    assert prepared.truncated == sum(length == limit for length in lengths) > 0
    assert np.ptp(wanted) > 1e-3
    assert worst(score(adapter), wanted) <= 1e-4


def test_a_score_does_not_depend_on_neighbours(named: tuple[str, Path]):
    """Any other neighbours and order give the same score, and changing one pair moves no other."""
    _, folder = named
    adapter = adapter_of(folder)
    base = score(adapter)
    np.testing.assert_allclose(score(adapter, PAIRS[::-1])[::-1], base, rtol=1e-5, atol=1e-6)
    changed = [*PAIRS[:3], ("another", "text altogether"), *PAIRS[4:]]
    other = score(adapter, changed)
    np.testing.assert_allclose(np.delete(other, 3), np.delete(base, 3), rtol=1e-5, atol=1e-6)
    assert abs(other[3] - base[3]) > 1e-4


def test_half_precision_stays_near(named: tuple[str, Path]):
    """Computed in bfloat16, scores lie within 5 % of the largest."""
    _, folder = named
    assert worst(score(adapter_of(folder, precision="bfloat16")), score(adapter_of(folder))) <= 0.05


def test_only_the_answers_rows_are_kept(named: tuple[str, Path]):
    """The last layer gives one or two numbers at the last token of each text, not the vocabulary at all of them."""
    architecture, folder = named
    adapter: Any = adapter_of(folder)
    seen: list[torch.Size] = []
    head = adapter.packed.model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _args, output: seen.append(output.shape))
    score(adapter)
    assert seen == [(1, len(PAIRS), 1 if architecture == "gemma" else 2)]


def test_activation_overrides(named: tuple[str, Path]):
    """`activation` is applied to the difference of the logits in place of the template's own."""
    _, folder = named
    raw = score(adapter_of(folder, activation="identity"))
    np.testing.assert_allclose(score(adapter_of(folder, activation="sigmoid")), 1 / (1 + np.exp(-raw)), rtol=1e-5)


def test_a_template_is_named_where_the_checkpoint_is_not_known(tmp_path: Path, named: tuple[str, Path]):
    """Under another folder's name a language model is refused with the setting that helps, and then gives the same scores."""
    architecture, folder = named
    other = shutil.copytree(folder, tmp_path / "m")
    with pytest.raises(ModelError, match=r"set `template` \(--template\) to one of qwen3, mxbai-v2, bge-gemma"):
        resolve(locate(str(other)), task="score")
    name = {"qwen3": "qwen3", "qwen2": "mxbai-v2", "gemma": "bge-gemma"}[architecture]
    np.testing.assert_array_equal(score(adapter_of(other, template=name)), score(adapter_of(folder)))
    with pytest.raises(ModelError, match="template 'qwen4'; did you mean 'qwen3'"):
        resolve(locate(str(other)), task="score", template="qwen4")


def test_pairs_that_leave_no_room(tmp_path: Path):
    """A query that fills the model's limit is a reject where the template never cuts it; under `reject` any pair too long is."""
    folder = models_rerank.tiny_reranker(tmp_path / NAMES["qwen3"], "qwen3")
    columns = [pa.array([QUERIES[3] * 60, "a", " ", None, "q"]), pa.array(["d", "d", "d", "d", DOCUMENTS[8] * 2])]
    prepared = adapter_of(folder).prepare(columns)
    assert {row: code for row, (code, _) in prepared.bad.items()} == {0: "too-long", 2: "empty-text", 3: "null-text"}
    assert prepared.rows.tolist() == [1, 4]
    assert prepared.costs[1] == models_rerank.POSITIONS
    prepared = adapter_of(folder, long_text="reject").prepare(columns)
    assert prepared.rows.tolist() == [1]
    assert prepared.bad[4][1].endswith("the limit is 700")


def test_a_long_query_of_its_own_piece_keeps_three_quarters(tmp_path: Path):
    """Where the card bounds the query, so do we, and the document gets what is left."""
    folder = models_rerank.tiny_reranker(tmp_path / NAMES["gemma"], "gemma")
    pairs = [(QUERIES[3] * 60, DOCUMENTS[8]), PAIRS[0]]
    wanted, lengths = expected(folder, "gemma", pairs, 700)
    assert lengths[0] == 700
    assert worst(score(adapter_of(folder), pairs), wanted) <= 1e-4


def test_what_cannot_be_asked_is_refused(tmp_path: Path):
    """A template that alone fills the limit, answers that the tokenizer has not, markers in the instruction: each is said."""
    folder = models_rerank.tiny_reranker(tmp_path / "m", "qwen2")
    with pytest.raises(ModelError, match="40 tokens leave no room for a pair: the template alone takes"):
        adapter_of(folder, template="mxbai-v2", max_tokens=40)
    with pytest.raises(ModelError, match=r"tokenizer\.json: 'yes' is not a single token of this tokenizer"):
        resolve(locate(str(folder)), task="score", template="qwen3")
    with pytest.raises(ModelError, match=r"instruction: may not hold \{query\}"):
        resolve(locate(str(folder)), task="score", template="mxbai-v2", instruction="{query}")
    encoder = models.tiny_encoder(tmp_path / "e")
    with pytest.raises(ModelError, match="this is BertModel; it is a model for `encode`"):
        resolve(locate(str(encoder)), task="score")
    config = json.loads((encoder / "config.json").read_text()) | {"architectures": ["Qwen3ForCausalLM"]}
    (encoder / "config.json").write_text(json.dumps(config))  # as embedders made of language models are saved
    with pytest.raises(ModelError, match="lists Transformer, Pooling, Normalize: a model for `encode`"):
        resolve(locate(str(encoder)), task="score")
    with pytest.raises(ModelError, match="BertForSequenceClassification takes no instruction"):
        resolve(locate(str(models.tiny_cross_encoder(tmp_path / "c"))), task="score", instruction="x")


# -- as sentence-transformers saves them


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with a chat template that knows the roles query and document."""
    path = tmp_path_factory.mktemp("chat") / "lm"
    return models_rerank.tiny_reranker(path, "qwen3", max_tokens=200, template=models_rerank.CHAT_TEMPLATE)


@pytest.mark.parametrize(
    ("answers", "settings"),
    [
        ((40, 41), {}),
        ((40,), {"activation_fn": torch.nn.Identity()}),
        ((40, 41), {"prompts": {"p": "Which fits?"}, "default_prompt_name": "p"}),
        ((40, 41), {"processing_kwargs": {"chat_template": {"thinking": False}}}),
    ],
)
def test_a_saved_cross_encoder_around_a_language_model(
    tmp_path: Path, chat: Path, answers: tuple[int, ...], settings: dict[str, Any]
):
    """Scores equal CrossEncoder's own: chat template, its options, default prompt, LogitScore, suffix kept when cut."""
    library = pytest.importorskip("sentence_transformers")
    folder = models_rerank.as_cross_encoder(tmp_path / "ce", chat, answers, **settings)
    wanted = library.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    adapter = adapter_of(folder)
    assert adapter.recipe.answers == answers
    assert worst(score(adapter), wanted) <= 1e-4
    asked = library.CrossEncoder(str(folder), device="cpu").predict(PAIRS, prompt="Say so.")
    assert worst(score(adapter_of(folder, instruction="Say so.")), asked) <= 1e-4
    assert np.abs(asked - wanted).max() > 1e-4
    with pytest.raises(ModelError, match=r"for `score`, not `encode`|sets processing_kwargs"):
        resolve(locate(str(folder)), task="encode")


def test_a_saved_cross_encoder_without_chat_messages(tmp_path: Path):
    """Without a chat template the pair goes in as the tokenizer joins it, the default prompt before the query."""
    library = pytest.importorskip("sentence_transformers")
    lm = models_rerank.tiny_reranker(tmp_path / "lm", "qwen3", max_tokens=200)
    settings = {"prompts": {"p": "Which fits? "}, "default_prompt_name": "p"}
    folder = models_rerank.as_cross_encoder(tmp_path / "ce", lm, (40, 41), **settings)
    wanted = library.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    assert worst(score(adapter_of(folder)), wanted) <= 1e-4


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[-1].content | trim }}{{ messages[-2].content }}", "changes the texts"),
        ("{{ messages[-1].content }}", "must put the text of the role query"),
        ("{{ messages[-1].content + 1 }}", "the chat template fails"),
        (
            "{{ messages.__class__.__mro__ }}{{ messages[-1].content }}{{ messages[-2].content }}",
            "the chat template fails",
        ),
    ],
)
def test_chat_templates_that_are_refused(tmp_path: Path, chat: Path, template: str, why: str):
    """A template that does more than put the texts in, fails, or reaches out of the sandbox is refused by file."""
    folder = models_rerank.as_cross_encoder(tmp_path / "ce", chat, (40, 41))
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=why) as refused:
        resolve(locate(str(folder)), task="score")
    assert "chat_template.jinja" in str(refused.value)


def test_a_saved_head_that_does_not_fit(tmp_path: Path, chat: Path):
    """A LogitScore of a token that the model has not is refused with its file."""
    folder = models_rerank.as_cross_encoder(tmp_path / "ce", chat, (40, 41))
    path = folder / "1_LogitScore/config.json"
    path.write_text(json.dumps({"true_token_id": 10**6}))
    with pytest.raises(ModelError, match=r"1_LogitScore/config\.json: token 1000000 is none of the model's vocabulary"):
        resolve(locate(str(folder)), task="score")
