from embed.cache.ledger import Ledger
from embed.cache.store import FAILURES


def rows(ledger: Ledger) -> list[tuple[str, str]]:
    return list(zip(ledger.table["key"].to_pylist(), ledger.table["reason"].to_pylist(), strict=True))


def test_a_later_failure_of_a_key_takes_the_place_of_the_earlier_one() -> None:
    ledger = Ledger(FAILURES.empty_table())
    for key, reason in (("a", "1"), ("b", "2"), ("c", "3")):
        ledger.add(key, "read", reason, "", None, None)
    assert ledger.settle() and rows(ledger) == [("a", "1"), ("b", "2"), ("c", "3")]
    ledger.add("d", "read", "4", "", None, None)
    ledger.add("b", "read", "5", "", 7, 8)
    assert ledger.settle() and rows(ledger) == [("a", "1"), ("b", "5"), ("c", "3"), ("d", "4")]


def test_the_same_failure_again_changes_nothing() -> None:
    ledger = Ledger(FAILURES.empty_table())
    ledger.add("a", "read", "1", "", None, None)
    assert ledger.settle()
    ledger.add("a", "read", "1", "", None, None)
    assert not ledger.settle() and rows(ledger) == [("a", "1")]


def test_a_mended_key_leaves() -> None:
    ledger = Ledger(FAILURES.empty_table())
    for key in "abc":
        ledger.add(key, "read", "1", "", None, None)
    ledger.settle()
    ledger.mend(["b", "x"])
    assert ledger.settle() and rows(ledger) == [("a", "1"), ("c", "1")]
