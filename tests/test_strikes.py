"""Notes of what a process was about to do: a row that kills is found, its neighbours are not blamed, whatever else dies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lading.pipelines.folder import open_folder
from lading.pipelines.strikes import BEGUN, DEATHS, READING, Strikes, Struck, step_of


def test_notes_of_others_are_seen_and_ours_are_not(tmp_path: Path) -> None:
    """What a process left and did not erase is there for the next one; its own notes are no strike against it."""
    first, second = Strikes(open_folder(str(tmp_path))), Strikes(open_folder(str(tmp_path)))
    first.note(3, 0, BEGUN)
    first.note(3, 1, READING)
    assert not first.left_by_others(3, 0)
    assert second.left_by_others(3, 0).notes == Counter({BEGUN: 1})
    first.erase(3, 0, BEGUN)
    assert not second.left_by_others(3, 0)
    second.clear(3, 1)
    assert not second.left_by_others(3, 1)
    second.clear(9, 0)  # nothing there


def test_a_process_that_ends_in_good_order_leaves_no_note(tmp_path: Path) -> None:
    """Whatever it was doing; the notes of others stay."""
    ours, others = Strikes(open_folder(str(tmp_path)), "us"), Strikes(open_folder(str(tmp_path)), "them")
    ours.note(1, 0, BEGUN)
    others.note(1, 0, BEGUN)
    with ours.loading("recipe"), ours.noted(2, 0, READING):
        ours.erase_all()
        assert [path.name for path in tmp_path.rglob("*.*") if path.is_file()] == ["begun.them"]


@given(st.integers(1, 5000), st.sets(st.integers(0, 4999), min_size=1, max_size=3), st.data())
def test_rows_that_kill_are_found_and_no_other_row_is_given_up(
    rows: int, killers: set[int], data: st.DataObject
) -> None:
    """Process after process runs the shard until it dies; in the end only the rows that kill are given up, after few deaths."""
    killers = {row % rows for row in killers}
    notes: Counter[str] = Counter({BEGUN: 1})
    died = 1
    while True:
        pieces, given_up = Struck(notes).pieces(rows)
        covered = sorted([row for start, stop in pieces for row in range(start, stop)] + given_up)
        assert covered == list(range(rows))
        assert set(given_up) <= killers
        fatal = next((piece for piece in pieces if killers & set(range(*piece))), None)
        if fatal is None:
            break
        if data.draw(st.booleans()):  # something else kills it, in a piece before: that one is suspected for nothing
            fatal = data.draw(st.sampled_from(pieces[: pieces.index(fatal) + 1]))
            died -= 1
        if fatal[1] - fatal[0] == 1 and fatal[0] not in killers and notes[step_of(fatal)] == DEATHS - 1:
            continue  # three strangers in one row are more than anybody can tell from the row
        notes[step_of(fatal)] += 1
        died += 1
    assert set(given_up) == killers
    assert died <= 1 + len(killers) * (4 + DEATHS)


def test_a_shard_that_kills_its_readers_is_given_up_whole() -> None:
    """Three deaths while reading."""
    assert not Struck(Counter({READING: DEATHS - 1})).unreadable
    assert Struck(Counter({READING: DEATHS})).unreadable


def test_a_shard_of_no_rows_has_no_pieces() -> None:
    """Nothing to run, nothing given up."""
    assert Struck(Counter({BEGUN: 1})).pieces(0) == ([], [])


def test_deaths_while_loading_are_of_those_that_do_not_live(tmp_path: Path) -> None:
    """The living may be loading it at this moment; where the broker has forgotten even us, nobody is taken for dead."""
    living = {"us", "busy"}
    ours = Strikes(open_folder(str(tmp_path)), "us", lambda: living)
    for who in ("busy", "dead", "gone"):
        Strikes(open_folder(str(tmp_path)), who)._leave("strikes/loading-recipe/loading")
    assert ours.deaths_while_loading("recipe") == 2
    living.clear()
    assert ours.deaths_while_loading("recipe") == 0
    living.add("us")
    ours.forgive_loading("recipe")
    assert ours.deaths_while_loading("recipe") == 0
