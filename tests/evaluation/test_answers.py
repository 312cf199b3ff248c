"""The benchmark of answers: what counts as an answer, and the figures against plain loops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.answers import judge
from benchmarks.answers.baselines import Baselines
from benchmarks.answers.cities import AnswerCity
from benchmarks.answers.held_out import auc
from benchmarks.answers.questions import read_questions
from benchmarks.answers.score import Judge, Score, summarise
from benchmarks.answers.words import Verdict, WordJudge, read_places, summarise_words
from callipper_db.arrays import Array


def question(folder: Path, *lines: str) -> Path:
    path = folder / "questions.toml"
    path.write_text("\n".join(["[[question]]", 'text = "q"', 'kind = "everyday"', 'half = "dev"', *lines]), "utf-8")
    return path


def test_a_category_matches_as_a_whole_and_a_name_in_part(tmp_path: Path) -> None:
    [asked] = read_questions(question(tmp_path, "category = 'pub'", "name = 'arms'", "name_in = 'Bar|.*venue'"))
    names = ["The Bell", "Bell Arms", "King's ARMS", "King's Arms", "Arms"]
    kinds = ["Pub", "Pub/bar", "Bar", "Bus stop", "Music venue"]
    assert asked.relevant(names, kinds, "london").tolist() == [True, False, True, False, True]


def test_but_takes_back_what_category_and_name_give(tmp_path: Path) -> None:
    [asked] = read_questions(question(tmp_path, "category = 'Pub'", "name = 'inn'", "but = 'old'"))
    assert asked.relevant(["Old Inn", "Old Inn", "Inn"], ["Pub", "Bar", "Bar"], "london").tolist() == [
        False,
        False,
        True,
    ]


def test_names_that_are_those_of_something_near_do_not_count_unless_asked_for(tmp_path: Path) -> None:
    [asked] = read_questions(question(tmp_path, "name = 'library'"))
    assert asked.relevant(["Town Library"] * 2, ["Bus stop", "Cafe"], "london").tolist() == [False, True]
    [asked] = read_questions(question(tmp_path, "name = 'library'", "name_in = 'Bus stop'"))
    assert asked.relevant(["Town Library"] * 2, ["Bus stop", "Cafe"], "london").tolist() == [True, False]


def test_the_patterns_of_a_city_replace_the_others(tmp_path: Path) -> None:
    [asked] = read_questions(question(tmp_path, "category = 'Pub'", "[question.berlin]", "category = 'bar'"))
    assert asked.relevant(["", ""], ["Pub", "bar"], "berlin").tolist() == [False, True]
    assert asked.relevant(["", ""], ["Pub", "bar"], "tokyo").tolist() == [True, False]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["catgory = 'Pub'"], "catgory"),
        (["but = 'Pub'"], "needs a pattern"),
        (["name = '('"], "no regular expression"),
        (["category = 'Pub'", "[question.tokyo]", "nam = 'bar'"], "nam"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_question(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"'q'.*{message}"):
        read_questions(question(tmp_path, *lines))


def test_the_file_holds_enough_distinct_questions_in_equal_halves() -> None:
    questions = read_questions()
    assert len({q.text for q in questions}) == len(questions)
    for kind, least in (("everyday", 80), ("category", 12)):
        halves = Counter(q.half for q in questions if q.kind == kind)
        assert halves.total() >= least
        assert abs(halves["dev"] - halves["test"]) <= halves.total() * 0.1


def by_loops(pois: Array, cells: Array, places: Array, relevant: Array) -> Score:
    """The definitions word by word."""
    near = [{n for n, poi in enumerate(pois) if np.hypot(*(poi - place)) <= 250} for place in places[:10]]
    pooled = set().union(*near)
    lift = sum(relevant[n] for n in pooled) / len(pooled) / (relevant.sum() / len(relevant)) if pooled else 0.0
    around = [[n for n, poi in enumerate(pois) if np.hypot(*(poi - cell)) <= 250] for cell in cells]
    usual = np.mean([sum(relevant[n] for n in row) for row in around if row])
    found = [sum(relevant[n] for n in row) for row in near]
    return Score(
        lift=float(lift),
        hits=float(sum(found) / 10 / usual),
        found=sum(n > 0 for n in found) / 10,
        pois=sum(len(row) for row in near) / 10,
    )


@pytest.mark.parametrize("places", [0, 1, 7, 10, 14])
def test_scores_are_those_of_plain_loops(places: int) -> None:
    random = np.random.default_rng(places)
    pois = random.uniform(0, 3000, (120, 2))
    cells = np.stack(np.meshgrid(np.arange(-2000, 5000, 200.0), np.arange(-2000, 5000, 200.0)), -1).reshape(-1, 2)
    relevant = random.uniform(size=120) < 0.1
    chosen = cells[random.integers(0, len(cells), places)]
    found, wanted = Judge(pois, cells).score(chosen, relevant), by_loops(pois, cells, chosen, relevant)
    assert [found.lift, found.hits, found.found, found.pois] == pytest.approx(
        [wanted.lift, wanted.hits, wanted.found, wanted.pois]
    )


def test_a_poi_at_exactly_250_m_is_near() -> None:
    judge = Judge(pois=np.array([[250.0, 0.0], [0.0, 250.1]]), cells=np.array([[0.0, 0.0], [5000.0, 0.0]]))
    assert judge.score(np.zeros((1, 2)), np.array([True, False])) == Score(lift=2.0, hits=0.1, found=0.1, pois=0.1)


def test_g_is_the_geometric_mean_and_forgives_a_question_without_any() -> None:
    summary = summarise([Score(3.9, 0.9, 1.0, 10.0), Score(0.0, 0.0, 0.0, 2.0), Score(0.9, 8.9, 0.5, 3.0)])
    assert summary.g == pytest.approx((2.0 * 0.1 * 3.0) ** (1 / 3))
    assert (summary.lift, summary.hits, summary.below_1, summary.pois) == (0.9, 0.9, 2, 3.0)
    assert summary.found == pytest.approx(0.5)


def test_baselines_find_the_corner_that_is_asked_for() -> None:
    """Bakeries west, banks east; the vectors say so, and so do the words."""
    random = np.random.default_rng(0)
    west, east = random.normal(0, 100, (30, 2)), random.normal([5000, 0], 100, (30, 2))
    pois = np.concatenate([west, east])
    cells = np.stack(np.meshgrid(np.arange(-500, 5600, 100.0), np.arange(-500, 600, 100.0)), -1).reshape(-1, 2)
    # Two texts and a question near each, in 130 dimensions so that 128 components leave something out.
    axes = np.eye(130, dtype=np.float32)
    asked = np.stack([axes[0] + 0.3 * axes[2], axes[1] + 0.3 * axes[2]])
    baselines = Baselines(
        pois=pois,
        cells=cells,
        texts=["Bread and more, Bakery", "Savings, Bank"],
        text_id=np.repeat([0, 1], 30),
        vectors=axes[:2],
        questions=["a bakery, please", "the bank"],
        asked=asked / np.linalg.norm(asked, axis=1, keepdims=True),
    )
    rows = dict(baselines.rows())
    assert len(rows) == 7
    for name, places in rows.items():
        assert places.shape == (2, 10, 2)
        assert (places[0, :, 0] < 600).all(), name
        assert (places[1, :, 0] > 4400).all(), name


def test_bm25_is_that_of_its_formula() -> None:
    texts = ["fish fish bar", "fish market", "tea room with garden"]
    pois = np.array([[0.0, 0.0], [0.0, 10.0], [1000.0, 0.0], [1000.0, 5.0]])
    baselines = Baselines(
        pois,
        np.array([[0.0, 0.0], [1000.0, 0.0]]),
        texts,
        np.array([0, 1, 2, 2]),
        np.eye(3),
        ["Fish tea"],
        np.eye(3)[:1],
    )
    words = [texts[0].split(), texts[1].split(), texts[2].split(), texts[2].split()]
    usual = np.mean([len(row) for row in words])

    def bm25(row: list[str]) -> float:
        total = 0.0
        for word in ("fish", "tea"):
            having = sum(word in other for other in words)
            idf = np.log(1 + (len(words) - having + 0.5) / (having + 0.5))
            count = row.count(word)
            total += idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(row) / usual))
        return total

    scores = [bm25(row) for row in words]
    assert baselines._bm25()[:, 0] == pytest.approx([scores[0] + scores[1], scores[2] + scores[3]])


def small_city() -> AnswerCity:
    """A bakery street west and ten banks east, three of each with names; one lonely library far off."""
    kinds = ["Bakery"] * 3 + ["Bank"] * 6 + ["Library"]
    metres = np.array([[0.0, 10.0 * n] for n in range(3)] + [[5000.0, 10.0 * n] for n in range(6)] + [[9000.0, 0.0]])
    return AnswerCity(
        name="london",
        dsn="",
        poi_id=np.arange(10),
        names=["Crumb"] * 3 + [""] * 7,
        categories=kinds,
        lonlat=metres / 1e5,
        metres=metres,
        cell_id=np.arange(2),
        cells=np.array([[0.0, 0.0], [5000.0, 0.0]]),
    )


def vectors_of(texts: list[str]) -> Array:
    """Bread and bakeries on one axis, all else each on its own."""
    axes = {"loaves": 0, "bakery": 0, "Bakery": 0, "Crumb, Bakery": 0, "Bank": 1, "Library": 2, "zeppelin": 3}
    return np.eye(4, dtype=np.float32)[[axes[text] for text in texts]]


def test_words_are_judged_by_the_pois_that_they_stand_for() -> None:
    judge = WordJudge(small_city(), vectors_of)
    [west, east] = judge.judge(
        np.array([[0.0, 0.0], [5000.0, 0.0]]), [["bakery", "loaves", "Bank"], ["Bank", "zeppelin"]]
    )
    assert west[0] == Verdict(category=True, count=3, lift=pytest.approx(10 / 3))
    assert west[1] == Verdict(category=False, count=3, lift=pytest.approx(10 / 3))
    assert west[2] == Verdict(category=True, count=0, lift=0.0)
    assert east[0] == Verdict(category=True, count=6, lift=pytest.approx(10 / 6))
    summary = summarise_words([west, east])
    assert summary == {"places": 2, "words": 5, "over_represented": 0.4, "unsupported": 0.4, "categories": 0.6}


def test_local_lift_names_what_is_there_and_rarer_elsewhere() -> None:
    assert WordJudge(small_city(), vectors_of).local_lift(np.array([[0.0, 0.0], [9000.0, 100.0]])) == [
        ["Bakery"],
        ["Library"],
    ]


def test_named_places_are_thirty_with_patterns_that_find_words() -> None:
    places = read_places()
    assert len({place.name for place in places}) == 30
    tower = next(place for place in places if place.name == "Tower of London")
    assert tower.apt_words(["Old castle", "sushi bar", "MUSEUM"]) == ["Old castle", "MUSEUM"]


def test_auc_is_that_of_scikit_learn_with_ties() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        scores, hit = random.integers(0, 6, 40).astype(float), random.uniform(size=40) < 0.3
        assert auc(scores, hit) == pytest.approx(roc_auc_score(hit, scores))


def test_the_verdict_is_on_the_test_half_against_the_best_baseline() -> None:
    def row(test: float, dev: float) -> dict[str, dict[str, float]]:
        base = {"lift": 20.0, "hits": 20.0, "below_1": 0, "questions": 25}
        return {"test": base | {"g": test}, "dev": base | {"g": dev}}

    rows = {"BM25": row(3, 50), "mean": row(10, 1), "emb <-> text_embed": row(10, 1), "search": row(12.9, 99)}
    bars = judge({"london": {"rows": rows}, "berlin": {"rows": rows}})
    assert [held for bar, held in bars.items() if "1.3 times" in bar] == [False]
    assert sum(bars.values()) == len(bars) - 1


@pytest.mark.parametrize(
    "word", ["fire station", "fuel station", "stationery", "supermarket", "car park", "post office", "food bank"]
)
def test_words_that_only_contain_an_apt_one_are_not_apt(word: str) -> None:
    for name in ("King's Cross", "Victoria Coach Station", "Camden Market", "Hyde Park, the centre", "Canary Wharf"):
        place = next(place for place in read_places() if place.name == name)
        assert place.apt_words([word]) == []
