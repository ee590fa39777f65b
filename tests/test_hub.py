"""Models from a hub, with huggingface_hub's own client: which files come, at which revision, and who is let in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from tests import models
from tests.hub_server import COMMIT, STRANGER, TOKEN, HubServer, Repository, ask

OTHER = "f" * 40
LOCATE = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from lading.config.checkpoint import locate
for name in sys.argv[1:]:
    model, _, revision = name.partition(" ")
    try: print("found", locate(model, revision).describe())
    except Exception as error: print(type(error).__name__, error)
"""
Asking = Callable[..., list[str]]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Repository]:
    """A model with much beside it that nobody needs, one of two shards, an adapter, and those that are not for everybody."""
    root = tmp_path_factory.mktemp("repositories")
    whole = models.tiny_encoder(root / "whole", dense=16)
    unneeded = [
        "pytorch_model.bin",
        "onnx/model.onnx",
        "onnx/config.json",
        "README.md",
        "model.fp16.safetensors",
        "vocab.txt",
    ]
    unneeded += [
        "consolidated.safetensors",
        "openvino/openvino_model.xml",
        "checkpoint-5/model.safetensors",
        "1_Pooling/note.md",
    ]
    for name in unneeded:
        (whole / name).parent.mkdir(exist_ok=True)
        (whole / name).write_bytes(b"unneeded")
    sharded = models.tiny_encoder(root / "sharded")
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00002.safetensors")
    for name in ("model-00002-of-00002", "model-00003-of-00003"):
        (sharded / f"{name}.safetensors").write_bytes(name.encode())
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (adapter / "optimizer.pt").write_bytes(b"unneeded")
    return {
        "owner/whole": Repository(whole, revisions={"main": COMMIT, "v2": OTHER}),
        "owner/sharded": Repository(sharded),
        "owner/adapter": Repository(adapter),
        "owner/private": Repository(whole, "private"),
        "owner/gated": Repository(whole, "gated"),
    }


@pytest.fixture
def hub(repositories: dict[str, Repository]) -> Iterator[HubServer]:
    server = HubServer(repositories)
    yield server
    server.close()


@pytest.fixture
def asking(hub: HubServer, tmp_path: Path) -> Asking:
    """What `locate` says of each name, one line each."""

    def lines(*names: str, **environ: str) -> list[str]:
        said = ask(hub.url, tmp_path, LOCATE, *names, **environ)
        assert not [one for one in (TOKEN, STRANGER, "hf_wrong") if one in said], "the token was told to somebody"
        return [line for line in said.splitlines() if line.startswith(("found ", "ModelError ", "HubAway "))]

    return lines


def test_only_what_the_model_is_made_of_comes(
    hub: HubServer, asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Root JSON, its weights and the folders of its modules come, once; the recipe is that of the repository's folder."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub/models--owner--whole/snapshots" / COMMIT
    assert asking("owner/whole", "owner/whole") == [
        f"found owner/whole at {COMMIT[:12]} (hub: {folder})",
        f"found owner/whole at {COMMIT[:12]} (hub cache: {folder})",
    ]
    needed = {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
    }
    needed |= {"2_Dense/config.json", "2_Dense/model.safetensors", "3_Normalize/config.json"}
    needed |= {"sentence_bert_config.json", "config_sentence_transformers.json"}
    assert sorted(hub.sent) == sorted(needed)
    original = hub.models["owner/whole"].folder
    assert resolve(locate("owner/whole", offline=True), task="encode") == resolve(locate(str(original)), task="encode")


def test_shards_are_those_of_the_index(hub: HubServer, asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of weights in several files, those that the index names come; with one of them missing the snapshot is not whole."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    asking("owner/sharded")
    shards = [name for name in hub.sent if name.endswith(".safetensors")]
    assert sorted(shards) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    found = locate("owner/sharded", offline=True)
    (found.folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="only parts of it are in the hub's cache"):
        locate("owner/sharded", offline=True)


def test_a_module_s_folder_that_is_missing_is_fetched(asking: Asking, hub: HubServer, tmp_path: Path):
    """A download that stopped before the last folder is taken up again, not taken for the model."""
    asking("owner/whole")
    (tmp_path / "hub/models--owner--whole/snapshots" / COMMIT / "2_Dense/model.safetensors").unlink()
    hub.sent.clear()
    assert asking("owner/whole")[0].startswith("found owner/whole at 0123456789ab (hub: ")
    assert (tmp_path / "hub/models--owner--whole/snapshots" / COMMIT / "2_Dense/model.safetensors").exists()


def test_a_branch_that_moves_meanwhile_comes_whole(tmp_path: Path):
    """What is fetched is of one commit: the files that the later one is made of, not those that the earlier one was."""
    folder = models.tiny_encoder(tmp_path / "model")
    revisions, asked = {"main": OTHER}, list[str]()

    def moving(verb: str, path: str) -> None:
        if path.startswith("/api/models/"):
            asked.append(path)
        if len(asked) == 2 and revisions["main"] == OTHER:  # the names were told, the files are not yet asked for
            revisions["main"] = COMMIT
            (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
            index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    server = HubServer({"org/moving": Repository(folder, revisions=revisions)}, before=moving)
    try:
        said = ask(server.url, tmp_path / "home", LOCATE, "org/moving")
    finally:
        server.close()
    assert "found org/moving" in said, said
    found = tmp_path / "home/hub/models--org--moving/snapshots" / COMMIT
    assert (found / "model-00001-of-00001.safetensors").is_file()


def test_adapters_come_too(hub: HubServer, asking: Asking):
    """An adapter is two files, and is found in the cache afterwards."""
    first, second = asking("owner/adapter", "owner/adapter")
    assert sorted(hub.sent) == ["adapter_config.json", "adapter_model.safetensors"]
    assert "(hub: " in first
    assert "(hub cache: " in second


def test_a_revision_may_stand_behind_the_name(asking: Asking):
    """`name@revision` and the option mean the same, and two that differ are refused."""
    lines = asking("owner/whole@v2", "owner/whole v2", "owner/whole@v9", "owner/whole@v2 main", "owner/whole@v2 v2")
    assert lines[0].startswith(f"found owner/whole at {OTHER[:12]} (hub: ")
    assert lines[1].startswith(f"found owner/whole at {OTHER[:12]} (hub cache: ")
    assert "no model owner/whole at revision 'v9'" in lines[2]
    assert "the hub has the model, but no revision 'v9'" in lines[2]
    assert "owner/whole@v2 names another revision than 'main'" in lines[3]
    assert lines[4] == lines[1]


def test_private_models_need_a_token(asking: Asking, tmp_path: Path):
    """Without a token a private model is not there; with HF_TOKEN, or the login's file, it is. The token is never shown."""
    (without,) = asking("owner/private")
    assert "the hub has no such model (or it is private: set HF_TOKEN)" in without
    (stranger,) = asking("owner/private", HF_TOKEN=STRANGER)
    assert "the hub has no such model" in stranger
    (wrong,) = asking("owner/private", HF_TOKEN="hf_wrongwrongwrong")
    assert "the hub refuses the token that it was given (HF_TOKEN, or that of `hf auth login`)" in wrong
    (tmp_path / "token").write_text(TOKEN)
    (logged_in,) = asking("owner/private")
    assert logged_in.startswith("found owner/private at ")


def test_gated_models_say_how_to_get_in(hub: HubServer, asking: Asking):
    """A model whose terms were not accepted names its page and the two ways to be known; with the token it comes."""
    for environ in ({}, {"HF_TOKEN": STRANGER}):
        (closed,) = asking("owner/gated", **environ)
        assert f"accept them at {hub.url}/owner/gated, then set HF_TOKEN" in closed
        assert "`hf auth login`" in closed
    (opened,) = asking("owner/gated", HF_TOKEN=TOKEN)
    assert opened.startswith("found owner/gated at ")


def test_offline_nothing_is_asked(hub: HubServer, asking: Asking):
    """With the setting `offline`, or huggingface_hub's own switch, a name that is not in the cache is an error, and nothing is sent."""
    (ours,) = asking("intfloat/e5-smal-v2", LADING_OFFLINE="true")
    assert ours.startswith("ModelError ")
    assert "the hub was not asked (offline); did you mean 'intfloat/e5-small-v2'?" in ours
    (theirs,) = asking("owner/whole", HF_HUB_OFFLINE="1")
    assert theirs.startswith("HubAway ")
    assert "the hub could not be reached" in theirs
    assert hub.asked == []


def test_what_may_pass_is_told_from_what_will_not(asking: Asking, tmp_path: Path):
    """A hub that is away and a cache that takes nothing are HubAway, which is tried again; a name that the hub does not have is none."""
    (away,) = asking("owner/whole", HF_ENDPOINT="http://127.0.0.1:9")
    assert away.startswith("HubAway no model owner/whole: ")
    (tmp_path / "file").write_text("in the way")
    (blocked,) = asking("owner/whole", HF_HUB_CACHE=str(tmp_path / "file/hub"))
    assert blocked.startswith(f"HubAway owner/whole cannot be stored in the hub's cache ({tmp_path}/file/hub): ")
    (nobody,) = asking("owner/nobody")
    assert nobody.startswith("ModelError no model owner/nobody: ")
