"""The tokenizer under a recipe: limits that leave no room are refused before any row is read."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lading.adapters import load
from lading.adapters.tokens import TextTokenizer, encode_chunks, encode_rows
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from lading.config.weights import token_rows
from tests import models, models_outputs, models_rerank


@pytest.fixture
def recipe(tiny_encoder):
    return resolve(locate(str(tiny_encoder)), task="encode")


@pytest.mark.parametrize("limit", [{"max_tokens": 1}, {"max_tokens": 2}, {"long_text": "chunk", "chunk_tokens": 2}])
def test_a_limit_without_room_for_a_text_is_refused(tiny_encoder, recipe, limit):
    """Special tokens alone must not fill the limit: every text would get the same vector."""
    with pytest.raises(ModelError, match="no room"):
        TextTokenizer(tiny_encoder, dataclasses.replace(recipe, **limit))


def test_recipes_share_what_was_read_of_a_tokenizer(tiny_encoder, recipe, tmp_path):
    """Prompts, and adapters of one base, come by the thousand: a file is in memory once, as long as it is the same file, with a copy for
    each limit, and each recipe has its own tokens all the same."""
    folder = shutil.copytree(tiny_encoder, tmp_path / "model")
    plain, asked, short = (
        TextTokenizer(folder, dataclasses.replace(recipe, **wish))
        for wish in ({}, {"prompt": "query: "}, {"max_tokens": 5})
    )
    assert plain.whole is asked.whole is short.whole
    (one,), (two,) = plain.encode(["a cat sat on a mat"], cut=True), short.encode(["a cat sat on a mat"], cut=True)
    assert (len(one) > 5, len(two)) == (True, 5)
    assert asked.shape("a cat") == "query: a cat"
    marked = TextTokenizer(folder, dataclasses.replace(recipe, markers=("a cat",)))
    assert marked.whole is not plain.whole
    changed = json.loads((folder / "tokenizer.json").read_text())
    changed["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    assert TextTokenizer(folder, recipe).whole is not plain.whole


@pytest.mark.parametrize("encode", ["rows", "chunks"])
def test_a_text_without_tokens_is_a_reject(tiny_encoder, recipe, tmp_path, encode):
    """Where no special tokens are added, a text that normalises to nothing has no item, and its neighbours keep theirs."""
    bare = Tokenizer.from_file(str(tiny_encoder / "tokenizer.json"))
    bare.post_processor = None
    bare.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path, recipe)
    texts = pa.array(["a cat", "\u0000", "a dog"])
    found = encode_rows(tokenizer, [texts]) if encode == "rows" else encode_chunks(tokenizer, texts)
    assert found.rows.tolist() == [0, 2]
    assert found.bad[1][0] == "empty-text"


@pytest.fixture(params=["bert", "roberta", "xlm-roberta"])
def tokenizer(request, tmp_path):
    """WordPiece, byte-level BPE and Unigram, under a limit of 32 tokens."""
    folder = models.tiny_encoder(tmp_path / request.param, request.param)
    recipe = resolve(locate(str(folder)), task="encode", max_tokens=32)
    return TextTokenizer(folder, recipe)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=12), times=st.integers(50, 400))
def test_of_a_book_the_beginning_gives_the_same_tokens(tokenizer, words, times):
    """A text far above the limit is encoded as it would be as a whole, and counted as truncated as before."""
    text = " ".join(words * times)
    (found,) = tokenizer.encode([text], cut=True)
    whole = tokenizer._cut.encode(text)
    assert (found.ids, found.offsets) == (whole.ids, whole.offsets)
    assert bool(found.overflowing) == bool(whole.overflowing)


@pytest.mark.parametrize(
    "text",
    [
        "a cat " + " " * 100_000 + "a dog on the mat " * 40,
        "cat" * 50_000,
        "a dog \u200b" + "\u200b" * 9_000 + " cat " * 900,
    ],
)
def test_a_beginning_that_does_not_reach_the_limit_is_not_taken_for_the_text(tokenizer, text):
    """Where the first characters hold few tokens, or no space to cut at, all of the text is looked at."""
    (found,) = tokenizer.encode([text], cut=True)
    assert found.ids == tokenizer._cut.encode(text).ids


def test_only_the_beginning_of_a_book_is_tokenised(tokenizer):
    """What is cut off is a small part of what there is: a book costs what its first pages cost."""
    (found,) = tokenizer.encode(["the cat looked at the dog " * 100_000], cut=True)
    assert 64 <= sum(len(more.ids) for more in found.overflowing) < 5_000


@pytest.fixture(params=["bert", "roberta", "xlm-roberta"])
def folder(request, tmp_path):
    """A checkpoint with a WordPiece, byte-level BPE or Unigram tokenizer."""
    return models.tiny_encoder(tmp_path / request.param, request.param, prompts={"query": "find the cat: "})


def left(folder, prompt="none"):
    """The tokenizer that keeps 32 tokens of the end."""
    found = resolve(locate(str(folder)), task="encode", max_tokens=32, truncation_side="left", prompt=prompt)
    return TextTokenizer(folder, found)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=12), times=st.integers(50, 400))
def test_of_a_book_the_ending_gives_the_same_tokens(folder, words, times):
    """With truncation_side left the last tokens and their characters are those of the whole text, cut by the library."""
    tokenizer, text = left(folder), " ".join(words * times)
    (found,) = tokenizer.encode([text], cut=True)
    whole = tokenizer._cut.encode(text)
    assert (found.ids, found.type_ids, found.offsets) == (whole.ids, whole.type_ids, whole.offsets)
    assert found.special_tokens_mask == whole.special_tokens_mask
    assert bool(found.overflowing) == bool(whole.overflowing)


@pytest.mark.parametrize(
    "text",
    [
        "a dog on the mat " * 40 + " " * 100_000 + "a cat",
        "cat" * 50_000,
        " cat " * 900 + "\u200b" * 9_000 + " \u200b a dog",
        "a cat",
        "",
    ],
)
def test_an_ending_that_does_not_reach_the_limit_is_not_taken_for_the_text(folder, text):
    """Where the last characters hold few tokens, or no space to cut at, all of the text is looked at."""
    tokenizer = left(folder)
    (found,) = tokenizer.encode([text], cut=True)
    assert found.ids == tokenizer._cut.encode(text).ids


def test_only_the_ending_of_a_book_is_tokenised(folder):
    """What was cut off, as far as it was looked at, is a small part of what there is."""
    (found,) = left(folder).encode(["the cat looked at the dog " * 100_000], cut=True)
    assert 64 <= sum(map(len, found.overflowing)) < 5_000


def test_the_end_is_kept_as_the_reference_keeps_it(folder):
    """Token ids equal those of transformers' tokenizer with truncation_side left, also where the checkpoint asks for it."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(folder, truncation_side="left")
    texts = ["a cat", "the cat looked at the dog on the mat " * 20, "one " * 5_000 + "end"]
    expected = reference(texts, truncation=True, max_length=32)["input_ids"]
    assert [found.ids for found in left(folder).encode(texts, cut=True)] == expected
    reference.save_pretrained(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["truncation_side"] == "left"
    own = resolve(locate(str(folder)), task="encode", max_tokens=32)
    assert own.truncation_side == "left"
    assert own.hash == left(folder).recipe.hash
    assert resolve(locate(str(folder)), task="encode", long_text="reject").truncation_side == "right"


def test_the_prompt_stays_where_the_beginning_goes(folder):
    """A text that loses its beginning keeps the prompt before what is left, and the special tokens around them."""
    tokenizer = left(folder, "query")
    text = "the cat looked at the dog on the mat and went away " * 30
    (found,) = encode_rows(tokenizer, [pa.array([text])]).encodings
    prompt = tokenizer.whole.encode("find the cat: ").ids
    count = tokenizer.prompt_tokens
    assert found.ids[:count] == prompt[:count]
    bare = left(folder)._cut.encode(text)
    assert found.ids[count:] == bare.ids[-(32 - count) :]
    assert len(found.ids) == 32


def test_a_side_without_truncation_is_refused(tiny_encoder):
    """Only `truncate` cuts anything off."""
    with pytest.raises(ModelError, match="cuts nothing off"):
        resolve(locate(str(tiny_encoder)), task="encode", long_text="reject", truncation_side="left")


def test_vectors_of_endings_are_those_of_the_reference(folder):
    """sentence-transformers with a tokenizer that truncates on the left gives the same vectors."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["a cat", "the cat looked at the dog on the mat " * 20, "one two three " * 300 + "end"]
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 32
    right = model.encode(texts)
    model.tokenizer.truncation_side = "left"
    expected = model.encode(texts)
    assert np.abs(expected - right)[1:].max() > 1e-2
    adapter = load(left(folder).recipe, folder, device="cpu")
    found = adapter.run([(adapter.prepare([pa.array(texts)]), np.arange(3))]).batch.column(0)
    np.testing.assert_allclose(np.stack(found.to_numpy(zero_copy_only=False)), expected, atol=2e-6)


def test_pairs_lose_their_beginnings_as_in_the_reference(tiny_cross_encoder):
    """The longer text of a pair first, its first tokens: CrossEncoder's scores with a tokenizer that truncates on the left."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    pairs = [("a cat", "the dog on the mat " * 60 + "and a cat"), ("one two " * 90, "three four five " * 90)]
    model = sentence_transformers.CrossEncoder(str(tiny_cross_encoder), device="cpu")
    right = model.predict(pairs)
    model.tokenizer.truncation_side = "left"
    expected = model.predict(pairs)
    assert np.abs(expected - right).min() > 1e-4
    recipe = resolve(locate(str(tiny_cross_encoder)), task="score", truncation_side="left")
    adapter = load(recipe, tiny_cross_encoder, device="cpu")
    prepared = adapter.prepare([pa.array(side) for side in zip(*pairs, strict=True)])
    found = adapter.run([(prepared, np.arange(2))]).batch.column(0).to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_entities_of_an_ending_have_the_characters_of_the_text(tiny_token_classifier):
    """Spans count from the beginning of the whole text, also where only its ending was tokenised."""
    recipe = resolve(locate(str(tiny_token_classifier)), task="extract", truncation_side="left")
    adapter = load(recipe, tiny_token_classifier, device="cpu")
    text = "the cat looked at the dog on the mat " * 1_000
    found = adapter.run([(adapter.prepare([pa.array([text])]), np.arange(1))]).batch.column(0)[0].as_py()
    assert found
    assert all(text[one["start"] : one["end"]] == one["text"] for one in found)
    assert min(one["start"] for one in found) > len(text) - 1_500


def test_an_instruction_gives_the_vectors_of_the_reference_with_that_prompt(folder):
    """An instruct embedder's query with an instruction of the job's own equals sentence-transformers with the whole prompt."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    path = folder / "config_sentence_transformers.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"prompts": {"query": "Instruct: Given a question\nQuery: "}}))
    texts = ["where is the cat", "the dog on the mat"]
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = model.encode(texts, prompt="Instruct: find the text about cats\nQuery: ")
    assert np.abs(expected - model.encode(texts, prompt_name="query")).max() > 1e-3
    wish = {"prompt": "query", "instruction": "find the text about cats"}
    adapter = load(resolve(locate(str(folder)), task="encode", **wish), folder, device="cpu")
    found = adapter.run([(adapter.prepare([pa.array(texts)]), np.arange(2))]).batch.column(0)
    np.testing.assert_allclose(np.stack(found.to_numpy(zero_copy_only=False)), expected, atol=2e-6)


def changed(folder, to, **keys):
    """The checkpoint with other keys in its tokenizer.json."""
    shutil.copytree(folder, to)
    path = to / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return to


def test_a_tokenizer_without_the_special_tokens_that_its_model_needs_is_refused(tmp_path, tiny_cross_encoder):
    """No CLS where it is the vector, no SEP between a pair, and a template whose tokens are not in the vocabulary."""
    pooled = models.tiny_encoder(tmp_path / "cls", "bert", pooling="cls")
    bare = changed(pooled, tmp_path / "bare", post_processor=None)
    with pytest.raises(ModelError, match=r"bare/tokenizer.json puts no special token \(CLS\) before a text"):
        load(resolve(locate(str(bare)), task="encode"), bare, device="cpu")
    pairs = changed(tiny_cross_encoder, tmp_path / "pairs", post_processor=None)
    with pytest.raises(ModelError, match=r"pairs/tokenizer.json puts no special token \(SEP\) between the texts"):
        load(resolve(locate(str(pairs)), task="score"), pairs, device="cpu")
    saved = json.loads((pooled / "tokenizer.json").read_text())["post_processor"]
    template = json.loads(json.dumps(saved).replace("[SEP]", "[END]"))
    lost = changed(pooled, tmp_path / "lost", post_processor=template)
    with pytest.raises(
        ModelError, match=r"its template adds '\[END\]' as number 2, .* is '\[SEP\]' \('\[END\]' is missing\)"
    ):
        load(resolve(locate(str(lost)), task="encode"), lost, device="cpu")


def test_a_model_whose_positions_begin_after_an_unknown_pad_token_is_refused(tmp_path):
    """config.json must have the number."""
    folder = models.tiny_encoder(tmp_path / "m", "roberta")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": None}))
    with pytest.raises(ModelError, match=r"config.json: pad_token_id is null"):
        resolve(locate(str(folder)), task="encode")


# -- tokens for which the model has no row


def with_tokens(folder, to, *tokens, **keys):
    """The checkpoint with added tokens, numbered from where its vocabulary and the model's rows end."""
    changed(folder, to, **keys)
    tokenizer = Tokenizer.from_file(str(to / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == models.VOCABULARY == token_rows(to)
    assert tokenizer.add_tokens(list(tokens)) == len(tokens)
    tokenizer.save(str(to / "tokenizer.json"))
    return to


def results(folder, columns, **wishes):
    """Rows that are kept, their results, and why the others are not."""
    task = wishes.pop("task", "encode")
    adapter = load(resolve(locate(str(folder)), task=task, **wishes), folder, device="cpu", threads=1)
    prepared = adapter.prepare([pa.array(column) for column in columns])
    outputs = adapter.run([(prepared, np.arange(len(prepared.rows)))])
    assert not outputs.bad
    return prepared.rows.tolist(), outputs.batch.column(0).to_pylist(), prepared.bad


UNKNOWN = {1: ("unknown-token", "the model has no vector for '<new>', token 501 of its tokenizer")}
WAYS = {
    "a vector": (lambda path: models.tiny_encoder(path), {}),
    "chunks": (lambda path: models.tiny_encoder(path), {"long_text": "chunk", "chunk_tokens": 12}),
    "a BPE's": (lambda path: models.tiny_encoder(path, "roberta"), {}),
    "entities": (models.tiny_token_classifier, {"task": "extract"}),
    "a score": (models.tiny_cross_encoder, {"task": "score"}),
}


@pytest.mark.parametrize(("build", "wishes"), WAYS.values(), ids=WAYS)
def test_an_added_token_without_a_row_stops_the_texts_that_have_it_alone(tmp_path, build, wishes):
    """The model runs; a text with that token is a reject that says so, and the others get what they get without it."""
    folder = build(tmp_path / "m")
    more = with_tokens(folder, tmp_path / "more", "<other>", "<new>")
    texts = ["a cat", "the dog on the mat and <new> on it, " * 4, "the cat looked at the dog"]
    columns = [texts, texts[::-1]] if wishes.get("task") == "score" else [texts]
    rows, found, bad = results(more, columns, **wishes)
    assert bad == UNKNOWN
    assert set(rows) == {0, 2}
    kept = [column[:1] + column[2:] for column in columns]
    _, expected, _ = results(folder, kept, **wishes)
    assert numbers(expected)
    np.testing.assert_allclose(numbers(found), numbers(expected), atol=1e-6)


def numbers(found):
    """All numbers of vectors, scores or entities, one after the other."""
    if isinstance(found, float | int):
        return [found]
    inner = found.values() if isinstance(found, dict) else [] if isinstance(found, str) else found
    return [one for part in inner for one in numbers(part)]


def test_templates_meet_such_tokens_too(tmp_path):
    """A language model's pair with one is a reject; a template that holds one itself refuses the model."""
    folder = models_rerank.tiny_reranker(tmp_path / "m", "gemma")
    wishes = {"task": "score", "template": "bge-gemma"}
    for place, token in (("text", "<new>"), ("template", "A: ")):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert tokenizer.add_tokens([token]) == 1
        shutil.copytree(folder, tmp_path / place)
        tokenizer.save(str(tmp_path / place / "tokenizer.json"))
    rows, _, bad = results(tmp_path / "text", [["a cat", "a <new> cat", "a dog"], ["x", "y", "z"]], **wishes)
    assert (rows, bad[1][0]) == ([0, 2], "unknown-token")
    with pytest.raises(ModelError, match=r"puts 'A: ' .* into every text, a token for which the model has no vector"):
        results(tmp_path / "template", [["a"], ["b"]], **wishes)


def test_a_token_that_is_cut_off_does_no_harm(tmp_path):
    """What the model does not see of a text need not have a row."""
    folder = with_tokens(models.tiny_encoder(tmp_path / "m"), tmp_path / "more", "<new>")
    long = "the dog on the mat " * 60
    rows, _, bad = results(folder, [[long + "<new>", "<new> " + long]])
    assert (rows, list(bad)) == ([0], [1])
    rows, _, bad = results(folder, [[long + "<new>", "<new> " + long]], truncation_side="left")
    assert (rows, list(bad)) == ([1], [0])


def test_a_token_without_a_row_in_every_text_refuses_the_model(tmp_path):
    """One of the vocabulary itself, of the template, of a prompt, or that queries are filled up with."""
    folder = models.tiny_encoder(tmp_path / "m", prompts={"query": "<new> "})
    more = with_tokens(folder, tmp_path / "more", "<new>")
    assert results(more, [["a cat"]])[0] == [0]
    every = "puts '<new>' .number 500. into every text, a token for which the model has no vector"
    with pytest.raises(ModelError, match=every):
        results(more, [["a cat"]], prompt="query")
    saved = json.loads((more / "tokenizer.json").read_text())
    template = json.loads(json.dumps(saved["post_processor"]).replace("[SEP]", "<new>"))
    template["special_tokens"]["<new>"]["ids"] = [500]
    with pytest.raises(ModelError, match=every):
        results(changed(more, tmp_path / "template", post_processor=template), [["a cat"]])
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    model["vocab"]["extra"] = 500
    with pytest.raises(ModelError, match="has tokens up to number 500, and the model 500 of them from 0"):
        results(changed(folder, tmp_path / "own", model=model), [["a cat"]])
    late = models_outputs.late_interaction(tmp_path / "late", expansion={"strategy": "fixed", "length": 16})
    path = late / "sentence_bert_config.json"
    path.write_text(path.read_text().replace('"token": null', '"token": "<new>"'))
    late = with_tokens(late, tmp_path / "expanded", "<new>")
    assert results(late, [["a cat"]])[0] == [0]
    with pytest.raises(ModelError, match=every):
        results(late, [["a cat"]], prompt="query")


# -- which side the files ask for

CAT = "the cat looked at the dog on the mat and went away " * 30 + "one two three"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta", "qwen2"])
@pytest.mark.parametrize(
    ("config", "direction", "side"),
    [
        (None, "Left", "left"),
        (None, "Right", "right"),
        (None, None, "right"),
        ("right", "Left", "right"),
        ("left", "Right", "left"),
        ("left", None, "left"),
    ],
)
def test_the_side_is_the_one_that_the_reference_takes(tmp_path, architecture, config, direction, side):
    """tokenizer_config.json's truncation_side, else tokenizer.json's truncation.direction: vectors are sentence-transformers'."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = models.tiny_encoder(tmp_path / "m", architecture)
    truncation = {"direction": direction, "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    folder = changed(folder, tmp_path / "side", truncation=truncation if direction else None)
    path = folder / "tokenizer_config.json"
    saved = {key: value for key, value in json.loads(path.read_text()).items() if key != "truncation_side"}
    path.write_text(json.dumps(saved | ({"truncation_side": config} if config else {})))
    recipe = resolve(locate(str(folder)), task="encode")
    assert recipe.truncation_side == side
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode([CAT])
    other = {"left": "right", "right": "left"}[side]
    found, wrong = (np.array(results(folder, [[CAT]], truncation_side=one)[1]) for one in ("", other))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(wrong - expected).max() > 1e-2


def test_a_table_is_cut_by_its_tokenizer_alone(tmp_path):
    """StaticEmbedding reads length and side from tokenizer.json, whatever tokenizer_config.json says."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = models_outputs.static(tmp_path / "m")
    truncation = {"direction": "Left", "max_length": 20, "strategy": "LongestFirst", "stride": 0}
    folder = changed(folder, tmp_path / "side", truncation=truncation)
    (folder / "tokenizer_config.json").write_text(json.dumps({"truncation_side": "right"}))
    recipe = resolve(locate(str(folder)), task="encode")
    assert (recipe.truncation_side, recipe.max_tokens) == ("left", 20)
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode([CAT])
    np.testing.assert_allclose(np.array(results(folder, [[CAT]])[1]), expected, atol=1e-5)
    assert np.abs(np.array(results(folder, [[CAT]], truncation_side="right")[1]) - expected).max() > 1e-2


def test_a_side_that_is_none_is_refused(tmp_path):
    """A direction that nobody knows, and a truncation that is no object, are named with their file."""
    folder = models.tiny_encoder(tmp_path / "m")
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "truncation_side"})
    )
    with pytest.raises(ModelError, match=r"truncation_side 'middle' of .* is neither right nor left"):
        resolve(locate(str(changed(folder, tmp_path / "a", truncation={"direction": "Middle"}))), task="encode")
    with pytest.raises(ModelError, match=r"b/tokenizer.json: truncation: expected a JSON object, found 'Left'"):
        resolve(locate(str(changed(folder, tmp_path / "b", truncation="Left"))), task="encode")
