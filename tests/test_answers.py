"""The benchmark of answers: what counts as an answer, and the figures against plain loops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.answers.baselines import Baselines
from benchmarks.answers.questions import read_questions
from benchmarks.answers.score import Judge, Score, summarise
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
