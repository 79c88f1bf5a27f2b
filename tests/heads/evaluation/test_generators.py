"""Rankings of generators: against loops, closed forms, another library's fit, and people's mean ratings."""

import csv

import numpy as np
import pyarrow as pa
import pytest
from heads_labels import GROUPS, SIZE, comparisons, single
from paths import DATA
from scipy.stats import t
from sklearn.linear_model import LogisticRegression

from embed.spec import InputError
from heads.data.comparisons import Labels
from heads.evaluation.generators import (
    Choices,
    bradley_terry,
    choices,
    choices_in,
    elo,
    elo_agreement,
    found_at_k,
    generators_of,
    win_rates,
)

AGIQA = DATA / "agiqa3k" / "data.csv"


def simulated(strength: list[float], m: int, seed: int = 0, ties: bool = True) -> Choices:
    """Independent choices, one a prompt, with the given log odds; one in ten a tie."""
    rng = np.random.default_rng(seed)
    a = rng.integers(len(strength), size=m)
    b = (a + rng.integers(1, len(strength), size=m)) % len(strength)
    target = (rng.random(m) < 1 / (1 + np.exp(np.take(strength, b) - np.take(strength, a)))).astype(float)
    target[:: 10 if ties else m + 1] = 0.5
    return Choices(tuple("abcdefgh"[: len(strength)]), a, b, target, np.arange(m))


def test_choices_are_all_pairs_of_different_generators_in_a_prompt() -> None:
    got = choices([3.0, 1.0, 2.0, 2.0, 5.0], ["p", "p", "p", "q", "q"], ["x", "y", "x", "y", "z"])
    assert got.generators == ("x", "y", "z")
    rows = [
        (got.generators[i], got.generators[j], t, p)
        for i, j, t, p in zip(got.a, got.b, got.target.tolist(), got.prompt, strict=True)
    ]
    assert rows == [("x", "y", 1.0, "p"), ("y", "x", 0.0, "p"), ("y", "z", 0.0, "q")]
    assert choices([1.0, 1.0], ["p", "p"], ["x", "y"]).target.tolist() == [0.5]
    with pytest.raises(InputError, match="no prompt has pictures by two of the 2 generators"):
        choices([1.0, 2.0], ["p", "q"], ["x", "y"])
    with pytest.raises(InputError, match="1 of 2 values are NaN"):
        choices([1.0, np.nan], ["p", "p"], ["x", "y"])


def test_elo_against_a_loop() -> None:
    played = simulated([0.0, 1.0, -0.5], 60)
    orders = np.random.default_rng(4).permuted(np.tile(np.arange(60), (7, 1)), axis=1)
    expected = []
    for order in orders:
        rating = dict.fromkeys(range(3), 1000.0)
        for i in order:
            a, b, target = int(played.a[i]), int(played.b[i]), played.target[i]
            move = 32 * (target - 1 / (1 + 10 ** ((rating[b] - rating[a]) / 400)))
            rating[a], rating[b] = rating[a] + move, rating[b] - move
        expected.append([rating[0], rating[1], rating[2]])
    got = elo(played, np.random.default_rng(4), orders=7)
    for name, mean, sd in zip("abc", np.mean(expected, 0), np.std(expected, 0), strict=True):
        assert got[name] == pytest.approx({"mean": mean, "sd": sd})
    assert len({tuple(order) for order in orders}) == 7 and np.std(expected, 0).min() > 0


def test_bradley_terry_against_logistic_regression() -> None:
    played = simulated([0.0, 1.0, -0.5, 2.0], 3000)
    fitted = np.array([s.value for s in bradley_terry(played).values()])
    # A tie is half a choice each way; a logistic regression on who plays whom has the same likelihood.
    design = np.eye(4)[played.a] - np.eye(4)[played.b]
    oracle = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=1000, solver="newton-cg")
    oracle.fit(np.tile(design, (2, 1)), np.repeat([1, 0], 3000), np.concatenate([played.target, 1 - played.target]))
    np.testing.assert_allclose(fitted, oracle.coef_[0] - oracle.coef_[0].mean(), atol=1e-5)
    assert fitted.sum() == pytest.approx(0, abs=1e-12)


def test_bradley_terry_of_lopsided_and_thin_wins_converges() -> None:
    # A chain in which each beats the next 9,999 times in 10,000: log odds of 9.21 at every step.
    a, b = np.repeat([0, 1, 2, 3], 10_000), np.repeat([1, 2, 3, 4], 10_000)
    target = np.tile(np.arange(10_000) > 0, 4).astype(float)
    got = bradley_terry(Choices(tuple("abcde"), a, b, target, np.arange(40_000)))
    steps = -np.diff([s.value for s in got.values()])
    np.testing.assert_allclose(steps, np.log(9999), rtol=1e-6)


def test_two_generators_have_closed_forms() -> None:
    m, wins = 400, 300
    both = np.zeros(m, np.intp), np.ones(m, np.intp)
    played = Choices(("x", "y"), *both, np.repeat([1.0, 0.0], [wins, m - wins]), np.arange(m))
    x, y = bradley_terry(played).values()
    assert x.value == pytest.approx(np.log(wins / (m - wins)) / 2)
    half = 1.96 * np.sqrt(1 / wins + 1 / (m - wins)) / 2  # the standard error of log odds
    assert (x.low, x.high) == pytest.approx((x.value - half, x.value + half), rel=0.01)
    assert y.value == pytest.approx(-x.value)
    # Each choice written down five times under its prompt is no more evidence than once.
    five = Choices(("x", "y"), *(np.repeat(c, 5) for c in (*both, played.target, played.prompt)))
    again = bradley_terry(five)["x"]
    assert (again.value, again.low, again.high) == pytest.approx((x.value, x.low, x.high))


@pytest.mark.parametrize("prompts", [2, 3, 12])
def test_intervals_of_few_prompts_are_students_with_the_factor_for_small_samples(prompts: int) -> None:
    """Of two generators, strength x is half the log odds p: prompt by prompt, their residuals give its variance."""
    rng = np.random.default_rng(prompts)
    target, prompt = rng.integers(0, 2, 20 * prompts).astype(float), np.repeat(np.arange(prompts), 20)
    both = np.zeros(len(target), np.intp), np.ones(len(target), np.intp)
    x = bradley_terry(Choices(("x", "y"), *both, target, prompt))["x"]
    p = target.mean()
    of_prompts = [(target[prompt == one] - p).sum() for one in range(prompts)]
    variance = prompts / (prompts - 1) * np.square(of_prompts).sum() / (len(target) * p * (1 - p)) ** 2
    half = t.ppf(0.975, prompts - 1) * np.sqrt(variance) / 2
    assert (x.low, x.high) == pytest.approx((x.value - half, x.value + half))


def test_choices_of_one_prompt_have_strengths_without_intervals() -> None:
    both = np.zeros(3, np.intp), np.ones(3, np.intp)
    x = bradley_terry(Choices(("x", "y"), *both, np.array([1.0, 1.0, 0.0]), np.zeros(3)))["x"]
    assert x.value == pytest.approx(np.log(2) / 2)
    assert np.isnan([x.low, x.high]).all() and x.reason == "fewer than two prompts"


def test_intervals_hold_the_truth_as_often_as_stated() -> None:
    truth = np.array([0.0, 1.0, -1.0])
    inside = [
        s.low <= true <= s.high
        for seed in range(150)
        for s, true in zip(bradley_terry(simulated(truth.tolist(), 300, seed, ties=False)).values(), truth, strict=True)
    ]
    assert 0.91 <= np.mean(inside) <= 0.98


def test_no_finite_strengths_is_said() -> None:
    never = Choices(("good", "bad"), np.zeros(5, np.intp), np.ones(5, np.intp), np.ones(5), np.arange(5))
    with pytest.raises(InputError, match=r"between \(good\) and \(bad\)"):
        bradley_terry(never)
    apart = Choices(("a", "b", "c", "d"), np.array([0, 2]), np.array([1, 3]), np.array([0.5, 0.5]), np.arange(2))
    with pytest.raises(InputError, match=r"\(a, b\) and \(c, d\)"):
        bradley_terry(apart)


def test_agreement_of_a_head_with_people() -> None:
    people = simulated([0.0, 1.5, -1.5, 3.0], 2000)
    mean, sd = elo_agreement(people, people, np.random.default_rng(0))
    assert (mean, sd) == (1.0, 0.0)
    opposite = Choices(people.generators, people.a, people.b, 1 - people.target, people.prompt)
    assert elo_agreement(people, opposite, np.random.default_rng(0))[0] < -0.9
    with pytest.raises(ValueError, match="same pairs"):
        elo_agreement(people, simulated([0.0, 1.0, 2.0, 3.0], 10), np.random.default_rng(0))


@pytest.mark.skipif(not AGIQA.exists(), reason="the AGIQA-3K ratings are not on this machine")
def test_six_generators_come_out_in_the_order_of_their_mean_quality() -> None:
    with AGIQA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    generator = [row["name"].split("_")[0] for row in rows]  # such as sd1.5_lowstep_017.jpg
    quality, prompt = [float(row["mos_quality"]) for row in rows], [row["prompt"] for row in rows]
    people = choices(quality, prompt, generator)
    order = ["AttnGAN", "glide", "DALLE2", "sd1.5", "midjourney", "xl2.2"]
    strengths = bradley_terry(people)
    ratings = elo(people, np.random.default_rng(0))
    assert sorted(strengths, key=lambda name: strengths[name].value) == order
    assert sorted(ratings, key=lambda name: ratings[name]["mean"]) == order
    # A worse rater of the same pictures: ratings and noise as large as their spread.
    noisy = choices(quality + np.random.default_rng(1).normal(0, 1.0, len(quality)), prompt, generator)
    mean, sd = elo_agreement(people, noisy, np.random.default_rng(0))
    assert 0.8 < mean <= 1 and sd < 0.2


def test_choices_of_a_table_and_of_a_head_are_the_same_pairs() -> None:
    # Six pictures of two prompts by three generators; the last prompt's rows lie in different folds.
    rank = np.array([1.0, 2.0, 2.0, 3.0, 1.0, 2.0])
    table = pa.table({"file": ["x_0", "y_0", "z_0", "x_1", "y_1", "z_1"]})
    group = np.repeat([0, 1], 3)
    labels = Labels("groups", np.arange(6), group, np.arange(6)[:, None], {"rank": rank, "group": group}, table, 0)
    names = generators_of(labels, "file", "^[a-z]")
    fold = np.array([0, 0, 0, 0, 0, 1])
    people = choices_in(labels, names, fold)
    rows = list(zip(people.a.tolist(), people.b.tolist(), people.target.tolist(), strict=True))
    assert rows == [(0, 1, 1.0), (0, 2, 1.0), (1, 2, 0.5), (0, 1, 0.0)]
    head = choices_in(labels, names, fold, -np.arange(6.0)[:, None])
    np.testing.assert_array_equal(head.a, people.a)
    assert head.target.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert win_rates(people) == {"x": 2 / 3, "y": 1.5 / 3, "z": 0.5 / 2}
    with pytest.raises(InputError, match="finds nothing in 'x_0'"):
        generators_of(labels, "file", "^[0-9]")
    with pytest.raises(InputError, match="not a regular expression"):
        generators_of(labels, "file", "(")


def test_comparisons_name_a_generator_on_each_side() -> None:
    table = pa.table({"a": ["x", "y", "x"], "b": ["y", "z", "x"]})
    own = {"target": np.array([1.0, 0.5, 0.0]), "weight": np.ones(3)}
    labels = Labels("comparisons", np.arange(6), np.repeat([0, 1, 2], 2), np.arange(6).reshape(3, 2), own, table, 0)
    names = generators_of(labels, "a,b")
    people = choices_in(labels, names, np.zeros(3, int))
    # x against x says nothing about generators.
    assert [(people.generators[a], people.generators[b]) for a, b in zip(people.a, people.b, strict=True)] == [
        ("x", "y"),
        ("y", "z"),
    ]
    assert people.target.tolist() == [1.0, 0.5]
    head = choices_in(labels, names, np.zeros(3, int), np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 0.0]]))
    assert head.target.tolist() == [0.0, 1.0]
    with pytest.raises(InputError, match="no pair compares two"):
        choices_in(labels, names, np.array([-1, -1, 0]))


@pytest.mark.parametrize("kind", ["ratings", "groups"])
def test_recall_and_filter_are_those_of_a_loop(kind: str) -> None:
    rng = np.random.default_rng(5)
    values, scores = rng.integers(1, 4, GROUPS * SIZE), rng.integers(0, 4, (GROUPS * SIZE, 1)).astype(float)
    labels = single(kind, values)
    fold = np.repeat(np.arange(GROUPS) % 3 - 1, SIZE)  # a third of the prompts is left out
    liked = values if kind == "ratings" else -values
    found = found_at_k(labels, fold, scores)
    for k in (1, 2, 4):
        hits: dict[str, list[bool]] = {"recall": [], "filter": []}
        for group in range(GROUPS):
            rows = range(group * SIZE, (group + 1) * SIZE)
            if fold[rows[0]] < 0:
                continue
            for name, sign in (("recall", 1), ("filter", -1)):
                best = max(sign * liked[i] for i in rows)
                wanted = {i for i in rows if sign * liked[i] == best}
                if SIZE - len(wanted) < k:
                    continue  # it could not miss
                order = sorted(rows, key=lambda i: (-sign * scores[i, 0], i in wanted))
                hits[name].append(bool(wanted & set(order[:k])))
        for name, credit in hits.items():
            value = found[f"{name}_at_{k}"]
            assert value.value == pytest.approx(np.mean(credit)) and 0 <= value.low <= value.value <= value.high <= 1
    with pytest.raises(InputError, match="need several pictures"):
        found_at_k(comparisons(np.ones(4), np.arange(4)), np.zeros(4), np.zeros((4, 2)))
