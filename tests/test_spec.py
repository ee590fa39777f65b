"""The job spec: what is accepted, what is refused and in which words."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.config.errors import SpecError
from lading.pipelines import spec as specs
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec

SMALL: dict[str, Any] = {
    "version": 1,
    "source": {"path": "corpus/*.parquet"},
    "steps": [{"encode": {"text": "body", "model": "m"}}],
    "sink": {"to": "lancedb://./db/docs"},
}


def changed(**sections: Any) -> dict[str, Any]:
    """SMALL with keys added to its sections; `encode`, `score` and `extract` make the step."""
    made = copy.deepcopy(SMALL)
    for name, keys in sections.items():
        if name in specs.VERBS:
            text = ["q", "d"] if name == "score" else "body"
            made["steps"] = [{name: {"text": text, "model": "m", **keys}}]
        elif isinstance(keys, dict):
            made[name] = {**made.get(name, {}), **keys}
        else:
            made[name] = keys
    return made


def test_small_spec_gets_every_default():
    """What is left out has the default of the dataclasses, and a single text stands for a list of one."""
    assert specs.from_dict(SMALL) == JobSpec(
        source=SourceSpec(paths=("corpus/*.parquet",)),
        steps=(StepSpec(verb="encode", model="m", text=("body",)),),
        sink=SinkSpec(to="lancedb://./db/docs"),
    )


REFUSED = {
    "unknown key": (changed(encode={"dimms": 3}), "steps[0].encode.dimms: unknown key; did you mean 'dims'?"),
    "unknown top key": (changed(sinks={"to": "x"}), "sinks: unknown key; did you mean 'sink'?"),
    "unknown verb": ({**SMALL, "steps": [{"encod": {}}]}, "steps[0].encod: unknown verb; did you mean 'encode'?"),
    "missing key": ({**SMALL, "steps": [{"encode": {"text": "body"}}]}, "steps[0].encode.model: is missing"),
    "missing section": ({key: SMALL[key] for key in ("version", "source", "steps")}, "sink: is missing"),
    "number as text": (changed(encode={"dims": "384"}), "steps[0].encode.dims: expected a whole number, found '384'"),
    "bool is no number": (changed(source={"limit": True}), "source.limit: expected a whole number, found true"),
    "number is no bool": (
        changed(source={"id": "i", "check_ids": 1}),
        "source.check_ids: expected true or false, found 1",
    ),
    "bool is no name": (
        changed(source={"id": False}),
        "source.id: expected text, found false (in YAML, yes, no, on and off",
    ),
    "list of numbers": (changed(source={"keep": [1]}), "source.keep: expected a list of texts"),
    "null": (changed(encode={"dims": None}), "steps[0].encode.dims: expected a whole number, found nothing"),
    "negative": (changed(policy={"max_rejects": -1}), "policy.max_rejects: must be at least 0, found -1"),
    "unknown key of queue": (changed(queue={"pol": "gpu"}), "queue.pol: unknown key; did you mean 'pool'?"),
    "priority of words": (changed(queue={"priority": "high"}), "queue.priority: expected a whole number, found 'high'"),
    "an end of what is not cut": (
        changed(policy={"long_text": "reject", "truncation_side": "left"}),
        "policy.truncation_side: left needs long_text: truncate",
    ),
    "an instruction for no prompt": (
        changed(extract={"instruction": "find cats"}),
        "steps[0].extract.instruction: only encode and score have this key",
    ),
    "no rows a shard": (changed(policy={"shard_rows": 0}), "policy.shard_rows: must be at least 1, found 0"),
    "bad choice": (
        changed(encode={"precision": "float31"}),
        "steps[0].encode.precision: 'float31' is none of the choices; did you mean 'float32'?",
    ),
    "bad on_existing": (
        changed(sink={"on_existing": "apend"}),
        "sink.on_existing: 'apend' is none of the choices; did you mean 'append'?",
    ),
    "empty model": (changed(encode={"model": ""}), "steps[0].encode.model: is empty"),
    "empty path": (changed(source={"path": ["a", ""]}), "source.paths: is empty"),
    "path and paths": (changed(source={"paths": ["a"]}), "source.path: give either path or paths"),
    "no steps": (changed(steps=[]), "steps: expected a list of one step"),
    "two verbs in a step": (changed(steps=[{"encode": {}, "score": {}}]), "steps[0]: expected one verb"),
    "two steps": (changed(steps=SMALL["steps"] * 2), "steps: a job has exactly one step for now, found 2"),
    "section is a text": (changed(source="corpus"), "source: expected keys and values, found 'corpus'"),
    "key of another verb": (changed(score={"dims": 3}), "steps[0].score.dims: only encode has this key"),
    "activation of encode": (
        changed(encode={"activation": "identity"}),
        "steps[0].encode.activation: only score has this key",
    ),
    "pooling of score": (changed(score={"pooling": "cls"}), "steps[0].score.pooling: only encode has this key"),
    "no such pooling": (
        changed(encode={"pooling": "clss"}),
        "steps[0].encode.pooling: 'clss' is none of the choices; did you mean 'cls'?",
    ),
    "normalize is a text": (
        changed(encode={"normalize": "yes"}),
        "steps[0].encode.normalize: expected true or false, found 'yes'",
    ),
    "known_as is no text": (changed(extract={"known_as": 3}), "steps[0].extract.known_as: expected text, found 3"),
    "a query beside two columns": (
        changed(score={"query": "q"}),
        "steps[0].score.text: score takes one column, the document's, where the query comes from elsewhere, found 2",
    ),
    "two kinds of queries": (
        {**changed(score={"query": "q", "text": "d"}), "queries": {"path": "q.csv"}},
        "steps[0].score.query: give either one query for all rows, or queries",
    ),
    "queries without a place": ({**changed(score={}), "queries": {"id": "q"}}, "queries.paths: is missing"),
    "queries of encode": ({**changed(), "queries": {"path": "q.csv"}}, "queries: only score has queries, not encode"),
    "score of one column": (
        changed(score={"text": "q"}),
        "steps[0].score.text: score takes two columns, like [query, document], found 1",
    ),
    "encode of two": (changed(encode={"text": ["a", "b"]}), "steps[0].encode.text: encode takes one column, found 2"),
    "prompt and its text": (
        changed(encode={"prompt": "query", "prompt_text": "q: "}),
        "steps[0].encode.prompt_text: give either",
    ),
    "an output that is none": (
        changed(encode={"outputs": ["dense", "spares"]}),
        "steps[0].encode.outputs: 'spares' is none of dense, sparse, multi_vector; did you mean 'sparse'",
    ),
    "a threshold in words": (
        changed(encode={"threshold": "high"}),
        "steps[0].encode.threshold: expected a number, found 'high'",
    ),
    "a threshold below 0": (changed(encode={"threshold": -0.5}), "steps[0].encode.threshold: must be at least 0"),
    "tokens joined to none": (
        changed(encode={"token_pooling": 0}),
        "steps[0].encode.token_pooling: must be at least 1",
    ),
    "a column of an output": (
        changed(source={"keep": ["v_sparse"]}, encode={"column": "v", "outputs": ["sparse", "dense"]}),
        "steps[0].encode.column: the result's column 'v_sparse'",
    ),
    "binary of odd dims": (
        changed(encode={"vector_type": "binary", "dims": 100}),
        "steps[0].encode.dims: binary packs 8",
    ),
    "chunks of score": (changed(score={}, policy={"long_text": "chunk"}), "policy.long_text: only encode can chunk"),
    "chunk size without chunks": (changed(policy={"chunk_tokens": 9}), "policy.chunk_tokens: needs long_text: chunk"),
    "overlap of a whole chunk": (
        changed(policy={"long_text": "chunk", "chunk_tokens": 9, "chunk_overlap": 5}),
        "policy.chunk_overlap: 5 is more than half of a chunk's 9 tokens",
    ),
    "version of a file": (changed(source={"version": 3}), "source.version: only a Lance table has versions"),
    "ids unchecked without id": (changed(source={"check_ids": False}), "source.check_ids: without source.id"),
    "replace without id": (changed(sink={"on_existing": "replace"}), "sink.on_existing: replace needs source.id"),
    "replace in parquet": (
        changed(source={"id": "i"}, sink={"to": "parquet://x", "on_existing": "replace"}),
        "sink.on_existing: replace goes by row id, which only a LanceDB table can do, not parquet",
    ),
    "no scheme": (
        changed(sink={"to": "./db/docs"}),
        "sink.to: './db/docs' does not say what to write: lancedb://FOLDER/TABLE or parquet://FOLDER",
    ),
    "unknown scheme": (
        changed(sink={"to": "lance://db/docs"}),
        "sink.to: unknown kind of output 'lance'; did you mean 'lancedb'?",
    ),
    "no table": (
        changed(sink={"to": "lancedb://docs"}),
        "sink.to: 'lancedb://docs' is incomplete: lancedb://FOLDER/TABLE",
    ),
    "no folder": (changed(sink={"to": "parquet://"}), "sink.to: 'parquet://' is incomplete"),
    "result over a kept column": (
        changed(source={"keep": ["vector"]}),
        "steps[0].encode.column: the result's column 'vector'",
    ),
    "scale over a kept column": (
        changed(source={"keep": ["v_scale"]}, encode={"column": "v", "vector_type": "int8"}),
        "steps[0].encode.column: the result's column 'v_scale'",
    ),
    "result named id": (changed(encode={"column": "id"}), "steps[0].encode.column: the result's column 'id'"),
    "two columns named id": (changed(source={"keep": ["id"]}), "source.keep: the output's own row id is called 'id'"),
    "chunk over a kept column": (
        changed(source={"keep": ["start"]}, policy={"long_text": "chunk"}),
        "source.keep: chunks have a column 'start'",
    ),
    "future version": ({**SMALL, "version": 2}, "version: spec version 2 is not 1, the one this release reads"),
    "version true": ({**SMALL, "version": True}, "version: spec version True is not 1"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusal_names_file_key_and_remedy(given: dict[str, Any], message: str):
    """A spec that makes no sense is refused with the file, the dotted key and what is wrong there."""
    with pytest.raises(SpecError) as refused:
        specs.from_dict(given, where="my.yaml")
    assert str(refused.value).startswith(f"my.yaml: {message}")


def test_python_callers_meet_the_same_rules():
    """`validate` refuses in a spec made of dataclasses what `from_dict` refuses in a file."""
    good = specs.from_dict(SMALL)
    specs.validate(good)
    step = good.steps[0]
    replace = dataclasses.replace
    wrong = {
        "source.limit: expected": replace(good, source=replace(good.source, limit=True)),
        "source.paths: expected a list": replace(good, source=replace(good.source, paths=["a"])),  # type: ignore[arg-type]
        "steps[0].encode.activation: only score": replace(good, steps=(replace(step, activation="sigmoid"),)),
        "steps[0].verb: unknown verb 'encod'": replace(good, steps=(replace(step, verb="encod"),)),
        "steps: expected a tuple": replace(good, steps=[step]),  # type: ignore[arg-type]
        "sink: expected SinkSpec, found 'x'": replace(good, sink="x"),  # type: ignore[arg-type]
        "version: spec version 9": replace(good, version=9),
    }
    for message, spec in wrong.items():
        with pytest.raises(SpecError, match=re.escape(f"job spec: {message}")):
            specs.validate(spec)


def test_yaml_errors_name_the_line(tmp_path: Path):
    """Broken YAML, a key given twice, an empty or absent file: each is said with the file, and the line where there is one."""
    cases = {
        "a.yaml, line 2: not valid YAML": "version: 1\nsource: {path: ]}\n",
        "b.yaml, line 3: not valid YAML: the key 'limit' is there twice": "source:\n  limit: 1\n  limit: 2\n",
        "c.yaml: expected keys and values at the top": "- encode\n",
        "d.yaml: source: is missing": "",
        "e.yaml, line 1: not valid YAML: could not determine a constructor": "!!python/object:os.system {}\n",
        "f.yaml, line 1: not valid YAML: a key must be a single word": "[a, b]: c\n",
    }
    for message, text in cases.items():
        file = tmp_path / re.split("[,:]", message)[0]
        file.write_text(text)
        with pytest.raises(SpecError, match=re.escape(f"{tmp_path}/{message}")):
            specs.load(file)
    with pytest.raises(SpecError, match=r"none\.yaml: no such file"):
        specs.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SpecError, match=r"latin\.yaml: cannot be read as UTF-8"):
        specs.load(tmp_path / "latin.yaml")


def test_every_spec_in_the_guide_loads(tmp_path: Path):
    """The YAML in docs/job-spec.md is valid, and its long form names every key of an encoding job."""
    guide = (Path(__file__).parent.parent / "docs" / "job-spec.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", guide, flags=re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        (tmp_path / "job.yaml").write_text(block)
        specs.load(tmp_path / "job.yaml")
    for field in dataclasses.fields(specs.QueriesSpec):
        assert re.search(rf"^ *{field.name.removesuffix('s')}: ", blocks[4], flags=re.MULTILINE), field.name
    for cls in (SourceSpec, StepSpec, SinkSpec, PolicySpec):
        for field in dataclasses.fields(cls):
            if field.name not in ("verb", "activation", "template", "instruction", "query", "version"):
                assert re.search(rf"^ *{field.name}: ", blocks[1], flags=re.MULTILINE), field.name


name = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
column = name.map("c_".__add__)


@st.composite
def job_specs(draw: st.DrawFn) -> JobSpec:
    verb = draw(st.sampled_from(sorted(specs.VERBS)))
    long_text = draw(st.sampled_from(["truncate", "reject", *(["chunk"] if verb == "encode" else [])]))
    step: dict[str, Any] = {
        "verb": verb,
        "model": draw(name),
        "text": tuple(draw(column) for _ in range(2 if verb == "score" else 1)),
    }
    step |= {
        "column": draw(st.sampled_from(["", "r"])),
        "max_tokens": draw(st.integers(0, 600)),
        "revision": draw(name),
        "adapter": draw(name),
    }
    step["precision"] = draw(st.sampled_from(["float32", "bfloat16", "float16", "int8"]))
    if verb == "encode":
        step |= {
            "dims": 8 * draw(st.integers(0, 99)),
            "vector_type": draw(st.sampled_from(["float32", "float16", "int8", "binary"])),
        }
        step |= {
            "outputs": tuple(draw(st.lists(st.sampled_from(["dense", "sparse", "multi_vector"]), unique=True))),
            "top_k": draw(st.integers(0, 9)),
            "threshold": draw(st.floats(0, 9)),
            "token_pooling": draw(st.integers(1, 9)),
        }
        step |= draw(
            st.sampled_from([{}, {"prompt": "query"}, {"prompt_text": "q: "}, {"normalize": False}, {"pooling": "cls"}])
        )
    elif verb == "score":
        step["activation"] = draw(st.sampled_from(["", "identity", "sigmoid"]))
        step |= {"template": draw(st.sampled_from(["", "qwen3"])), "instruction": draw(st.sampled_from(["", "i"]))}
    lance = draw(st.booleans())
    source = SourceSpec(
        paths=("lance://t",) if lance else tuple(draw(st.lists(name, min_size=1, max_size=3))),
        id=draw(column),
        keep=draw(st.none() | st.lists(column, max_size=3).map(tuple)),
        limit=draw(st.integers(0, 9)),
        check_ids=draw(st.booleans()),
        version=draw(st.integers(0, 9)) if lance else 0,
    )
    chunks = {"chunk_tokens": 9, "chunk_overlap": draw(st.integers(0, 4))} if long_text == "chunk" else {}
    policy = PolicySpec(
        max_rejects=draw(st.none() | st.integers(0, 9)),
        long_text=long_text,
        shard_rows=draw(st.integers(1, 9999)),
        **chunks,
    )
    sink = SinkSpec(
        to=draw(st.sampled_from(["lancedb://d/t", "parquet://d"])),
        on_existing=draw(st.sampled_from(["refuse", "append"])),
    )
    return JobSpec(source=source, steps=(StepSpec(**step),), sink=sink, policy=policy)


@given(job_specs())
def test_plain_data_and_back_is_the_same_spec(spec: JobSpec):
    """`to_dict` survives JSON, `from_dict` turns it back into an equal spec, and no default is written down."""
    specs.validate(spec)
    plain = json.loads(json.dumps(specs.to_dict(spec)))
    assert specs.from_dict(plain) == spec
    assert specs.to_dict(specs.from_dict(plain)) == plain


def test_identity_ignores_how_it_was_written_and_on_existing():
    """Spelling a default out, `path` for `paths` and on_existing make no other job; anything else does."""
    same = changed(
        source={"limit": 0},
        encode={"dims": 0, "prompt": "document"},
        sink={"on_existing": "append"},
        policy={},
        queue={"pool": "gpu", "priority": -3},
    )
    same["source"]["paths"] = [same["source"].pop("path")]
    assert specs.identity(specs.from_dict(same)) == specs.identity(specs.from_dict(SMALL))
    assert specs.to_dict(specs.from_dict(same)) != specs.to_dict(specs.from_dict(SMALL))
    for other in (changed(source={"limit": 1}), changed(encode={"dims": 8}), changed(policy={"shard_rows": 5})):
        assert specs.identity(specs.from_dict(other)) != specs.identity(specs.from_dict(SMALL))
