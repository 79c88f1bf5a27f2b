"""What is drawn for people: shares, repeats with the sides swapped, gold pairs, and everything once."""

import csv
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from votes_tiny import write_candidates

from embed.spec import InputError
from runtime.collect.candidates import Candidates, gold_pairs, read_candidates
from runtime.collect.choose import split_pools
from runtime.collect.collector import Collector, Known
from runtime.collect.database import Database, open_database
from runtime.collect.ledger import Picture, Showing, Vote, cast_vote
from runtime.config import VotingConfig


@pytest.fixture
def candidates(tmp_path: Path) -> Candidates:
    return read_candidates(write_candidates(tmp_path, prompts=12, each=5))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Database]:
    database = open_database(str(tmp_path / "votes.db"))
    yield database
    database.close()


def collect(collector: Collector, database: Database, voter: str, count: int) -> list[Showing]:
    """So many pairs, each shown and answered before the next."""
    found = []
    for _ in range(count):
        proposals = collector.propose(voter, 1)
        if not proposals:
            break
        one = proposals[0]
        pictures = [Picture(c.id, c.key, c.addresses[0], None, 4, 3) for c in (one.first, one.second)]
        (showing,) = collector.show(voter, [(one, pictures[0], pictures[1])])
        vote = Vote(showing.id, "left", None, 2.0, "", float(len(found)))
        database.write(partial(cast_vote, vote=vote, voter=None))
        found.append(showing)
    return found


def test_shares_are_kept_and_no_pair_comes_twice_but_as_a_repeat(candidates: Candidates, opened: Database) -> None:
    config = VotingConfig(random_share=0.3, repeat_share=0.2)
    collector = Collector(opened, candidates, [], config, seed=0)
    shown = collect(collector, opened, "ann", 80)
    drawn = Counter(one.drawn for one in shown)
    assert 8 <= drawn["repeat"] <= 24 and 12 <= drawn["random"] <= 32 and drawn["active"] > 30
    by_id = {one.id: one for one in shown}
    place = {one.id: i for i, one in enumerate(shown)}
    for one in shown:
        if one.drawn == "repeat":
            before = by_id[one.original]
            assert (one.left, one.right) == (before.right, before.left) and place[one.id] - place[before.id] > 5
    firsts = [one.pair for one in shown if one.drawn != "repeat"]
    assert len(firsts) == len(set(firsts)) == 80 - drawn["repeat"]
    sides = Counter(candidates.of_id[one.left].key < candidates.of_id[one.right].key for one in shown)
    assert min(sides.values()) > 20
    measuring = split_pools(candidates.groups, [c.key for c in candidates.pictures], candidates.prompts, 0.3)[0]
    apart = {candidates.prompt_of(int(item)) for group in measuring.groups for item in group}
    assert {one.prompt for one in shown if one.drawn == "random"} <= apart
    assert not {one.prompt for one in shown if one.drawn == "active"} & apart


def test_it_ends_when_all_is_seen_and_another_person_begins_anew(candidates: Candidates, opened: Database) -> None:
    collector = Collector(opened, candidates, [], VotingConfig(repeat_share=0.0), seed=1)
    assert len(collect(collector, opened, "ann", 500)) == 12 * 10
    assert len(collect(collector, opened, "ben", 3)) == 3
    again = Collector(opened, candidates, [], VotingConfig(repeat_share=0.0), seed=1)
    assert again._shown.sum() == 2 * (12 * 10 + 3) and not again.propose("ann", 1)


def test_the_pair_that_tells_most_comes_first(candidates: Candidates, opened: Database) -> None:
    collector = Collector(opened, candidates, [], VotingConfig(random_share=0.0, repeat_share=0.0), seed=2)
    score = np.random.default_rng(0).permutation(len(candidates.picture)) * 10.0
    score[17] = score[18] + 0.01  # all others are far apart
    collector.learn(Known(score, np.random.default_rng(1).normal(size=(len(score), 8))))
    (first,) = collect(collector, opened, "ann", 1)
    pictures = {candidates.of_item(item).id for item in (17, 18)}
    assert candidates.group[17] == candidates.group[18] and {first.left, first.right} == pictures


def test_gold_pairs_are_shown_among_others_with_what_is_expected(
    candidates: Candidates, opened: Database, tmp_path: Path
) -> None:
    with open(tmp_path / "gold.csv", "w", newline="") as file:
        rows = [("prompt 0", "0-0.png", "0-1.png"), ("prompt 1", "1-2.png", "1-0.png")]
        csv.writer(file).writerows([("prompt", "pos_path", "neg_path"), *rows])
    known, pairs = gold_pairs(tmp_path / "gold.csv")
    assert pairs == rows
    gold = [(prompt, known[good], known[bad]) for prompt, good, bad in pairs]
    shown = collect(Collector(opened, candidates, gold, VotingConfig(gold_share=0.5), seed=3), opened, "ann", 30)
    found = [one for one in shown if one.drawn == "gold"]
    assert len(found) == 2
    for one in found:
        assert candidates.of_id[one.left if one.expected == "left" else one.right].key in ("0-0.png", "1-2.png")
    with pytest.raises(InputError, match="not a table of comparisons"):
        gold_pairs(tmp_path / "candidates.csv")


def test_pictures_without_prompts_are_all_compared(tmp_path: Path) -> None:
    write_candidates(tmp_path / "pictures", prompts=2, each=2)
    (tmp_path / "pictures" / "candidates.csv").unlink()
    found = read_candidates(tmp_path / "pictures")
    assert found.prompts == [""] and [len(group) for group in found.groups] == [4]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="fewer than two pictures"):
        read_candidates(tmp_path / "one")


def test_what_cannot_be_shown_is_drawn_no_more(candidates: Candidates, opened: Database) -> None:
    collector = Collector(opened, candidates, [], VotingConfig(), seed=4)
    (one,) = collector.propose("ann", 1)
    collector.broken(one, {one.first.id})
    rest = collect(collector, opened, "ann", 500)
    assert rest and one.first.id not in {id for showing in rest for id in (showing.left, showing.right)}
