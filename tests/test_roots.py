"""What a message may name lies under the worker's roots, whatever detours it takes."""

from pathlib import Path

import pytest

from lading.config.errors import UsageError
from lading.config.roots import check_under, parse


@pytest.mark.parametrize("place", ["{root}", "{root}/a/b", "{root}/a/../b", "s3://bucket/db/t", "s3://bucket/db"])
def test_what_lies_under_a_root_passes(tmp_path: Path, place: str) -> None:
    """The root itself and everything below it."""
    check_under(place.format(root=tmp_path), parse(f"{tmp_path}, s3://bucket/db"), "model")


@pytest.mark.parametrize(
    "place",
    ["/etc", "{root}/..", "{root}/../x", "{root}x", "{root}/link", "{root}/link/x", "s3://bucket/dbx", "s3://bucket/db/../x", "s3://other/db", "file:///etc"],
)  # fmt: skip
def test_what_leads_out_of_the_roots_is_refused(tmp_path: Path, place: str) -> None:
    """By a longer name, by .., by a symbolic link, by another scheme."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=r"model .* LADING_ROOTS"):
        check_under(place.format(root=root), parse(f"{root},s3://bucket/db"), "model")


def test_without_roots_it_is_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default allows what lies below where the worker was started."""
    monkeypatch.chdir(tmp_path)
    assert parse("") == (str(tmp_path.resolve()),)
