"""Relevance models in numpy, their fitting, and the page about them."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from sklearn.metrics import average_precision_score, ndcg_score

import sqlvec.fit
from sqlvec.errors import DeclarationError, EncodingError, FittingError, MissingRequirement
from sqlvec.fit.background import background_labels, fit_background, unanswerable
from sqlvec.fit.judgements import read_judgements
from sqlvec.fit.ranking import Quality
from sqlvec.fit.relevance import (
    Cuts,
    Examples,
    _folds,
    _Loss,
    apply,
    best_of_queries,
    fit_best,
    fit_fused,
    fit_leg,
    reliability,
    threshold,
)
from sqlvec.fit.relevance_report import Judged, page
from sqlvec.relevance import EXPONENTS, Background, Curve, FusedModel, LegModel, logistic, logit

FITTED = [family for family in EXPONENTS if family != "raw"]


def curve(slope: float, intercept: float, exponent: float) -> Curve:
    return Curve(*(np.array([value]) for value in (slope, intercept, exponent)))


def synthetic(queries: int = 120, rows: int = 60, seed: int = 0) -> tuple[Examples, Background]:
    """Make queries of two kinds, whose relevant rows lie at quite different cosines."""
    random = np.random.default_rng(seed)
    sample = random.normal(size=(400, 16))
    kind = np.arange(queries) % 2
    asked = random.normal(size=(queries, 16)) + 3 * np.where(kind, 1, -1)[:, None] * np.eye(16)[0]
    background = fit_background(sample, asked)
    x = random.uniform(0, 1, (queries, rows))
    truth = logistic(20 * (x - np.where(kind, 0.4, 0.8)[:, None]))
    label = random.random((queries, rows)) < truth
    return Examples.of_lists(background.features(asked), list(x), list(label)), background


@example(39.0, 2.7e-108, 0.1, 0.5, 0.0)
@given(
    st.floats(1e-3, 100),
    st.floats(-20, 20),
    st.floats(0.1, 2),
    st.floats(0.001, 0.999),
    st.floats(-1, 1),
)
def test_inverse_of_a_curve(slope, intercept, exponent, wanted, x):
    some = curve(slope, intercept, exponent)
    bound = some.inverse(wanted)[0]
    # exp(-230), a little above 1e-100, is the smallest bound: scores beneath it count as 0.
    if 1e-99 < abs(bound) <= 10:
        assert some.relevance([bound])[0] == pytest.approx(wanted, abs=1e-9)
    if abs(x - bound) > 1e-9:
        assert (some.relevance([x])[0] >= wanted) == (x >= bound) or some.relevance([x])[
            0
        ] == pytest.approx(wanted, abs=1e-9)


def test_a_curve_rises() -> None:
    x = np.linspace(-1, 1, 101)
    for exponent in (0.1, 0.5, 1, 2):
        assert (np.diff(curve(3, -1, exponent).relevance(x)) >= 0).all()


def test_ends_of_a_curve() -> None:
    some = curve(1, 0, 1)
    assert some.inverse(0)[0] == -np.inf
    assert some.inverse(1)[0] == np.inf
    assert some.inverse(0.5)[0] == 0
    with pytest.raises(DeclarationError, match="min_relevance is from 0 to 1, not 2"):
        some.inverse(2)


def test_logit_and_logistic() -> None:
    p = np.array([0, 1e-9, 0.3, 1 - 1e-9, 1])
    np.testing.assert_allclose(logistic(logit(p)), p, atol=1e-12)


def test_features_do_not_depend_on_length() -> None:
    _, background = synthetic()
    query = np.random.default_rng(1).normal(size=16)
    # Powers of two change no digit.
    np.testing.assert_array_equal(background.features(query), background.features(query * 8))
    assert np.isnan(background.features(np.zeros(16))).all()
    with pytest.raises(EncodingError, match="takes queries of 16 dimensions, not 3"):
        background.features([1, 2, 3])


def test_features_are_what_they_are_called() -> None:
    random = np.random.default_rng(2)
    centroids = random.normal(size=(9, 32))
    weights = random.integers(5, 40, 9)
    directions = random.normal(size=(2, 32))
    q = random.normal(size=32)
    found = Background.of(centroids, weights, directions, (10.0,)).features(q)
    q /= np.linalg.norm(q)
    cosines, share = centroids @ q, weights / weights.sum()
    mean = share @ cosines
    expected = np.hstack(
        [
            mean,
            np.sqrt(share @ (cosines - mean) ** 2),
            np.log(share @ np.exp(10 * cosines)) / 10,
            directions @ q / np.linalg.norm(directions, axis=1),
        ]
    )
    # The integers hold about three digits.
    np.testing.assert_allclose(found[0], expected, atol=0.03)


@pytest.mark.parametrize("family", FITTED)
def test_gradient(family: str) -> None:
    examples, _ = synthetic(30, 10)
    loss = _Loss(examples, family, 1.0)
    random = np.random.default_rng(0)
    for _ in range(3):
        weights = random.normal(size=3 * (examples.features.shape[1] + 1))
        error = check_grad(lambda w: loss(w)[0], lambda w: loss(w)[1], weights)
        assert error < 1e-4 * max(1, float(np.linalg.norm(loss(weights)[1])))


def test_fit_tells_queries_apart() -> None:
    examples, background = synthetic()
    removed = {}
    for family in EXPONENTS:
        fit = fit_leg("vector", examples, family, background=background)
        cut = fit.thresholds[0.95]
        kept = fit.relevance >= cut
        assert kept[fit.label == 1].mean() >= 0.95
        removed[family] = 1 - kept.mean()
        assert isinstance(fit.model, LegModel) and fit.queries == 120
        # The model of all queries and those of the folds say much the same.
        assert np.corrcoef(apply(fit.model, examples), fit.relevance)[0, 1] > 0.95
    assert max(removed, key=removed.__getitem__) != "raw"
    assert max(removed.values()) > removed["raw"] + 0.1


def test_family_is_chosen_without_the_queries_it_is_reported_on() -> None:
    examples, background = synthetic(60, 30)
    families = ("raw", "linear", "quadratic")
    fits = {f: fit_leg("vector", examples, f, background=background) for f in families}
    best = fit_best("vector", examples, families, background=background)
    assert isinstance(best.model, LegModel)
    removed = {family: fit.removed(0.95) for family, fit in fits.items()}
    assert best.model.family == max(removed, key=removed.__getitem__)
    own = fits[best.model.family]
    assert best.thresholds == own.thresholds
    assert isinstance(own.model, LegModel)
    np.testing.assert_array_equal(apply(best.model, examples), apply(own.model, examples))
    assert best.brier == pytest.approx(np.mean((best.relevance - best.label) ** 2))
    assert best.removed(0.95) > fits["raw"].removed(0.95) and best.recall(0.95) > 0.85
    # Other labels of one fifth change what is chosen and fitted for the others, never for itself.
    fold = next(_folds(60, 0))
    turned = replace(examples, label=np.where(fold[examples.query], 0, examples.label))
    again = fit_best("vector", turned, families, background=background)
    np.testing.assert_array_equal(
        again.relevance[fold[examples.query]], best.relevance[fold[examples.query]]
    )
    with pytest.raises(FittingError, match="compared at a recall that is asked for, not 0.7"):
        fit_best("vector", examples, recall=0.7, background=background)


def test_thresholds_of_kept_candidates_come_from_other_queries() -> None:
    examples, background = synthetic(60, 30)
    fit = fit_leg("vector", examples, background=background)
    for recall, kept in fit.kept.items():
        assert fit.recall(recall) == pytest.approx(recall, abs=0.1)
        own = next(_folds(60, 0))[examples.query]
        cut = threshold(fit.relevance[~own], fit.label[~own], recall)
        np.testing.assert_array_equal(kept[own], fit.relevance[own] >= cut)


def test_queries_are_cut_by_their_best_candidate() -> None:
    examples, background = synthetic(100, 30)
    plain = fit_leg("vector", examples, background=background)
    fit = fit_leg("vector", examples, background=background, answered=0.9)
    assert plain.min_best is None and fit.min_best is not None
    np.testing.assert_array_equal(fit.relevance, plain.relevance)
    best = best_of_queries(fit.relevance, examples.query)
    answers = np.bincount(examples.query, examples.label)
    # The largest that leaves nine queries with an answer in ten.
    assert (best[answers > 0] >= fit.min_best).mean() >= 0.9
    assert (best[answers > 0] > fit.min_best).mean() < 0.9
    # Recall is over all queries, and not to be had where too much is left out already.
    left = best[examples.query] >= fit.min_best
    share = fit.label[left].sum() / fit.label.sum()
    assert share < 0.99 and set(fit.thresholds) == {r for r in plain.thresholds if r <= share}
    for recall, cut in fit.thresholds.items():
        kept = left & (fit.relevance >= cut)
        assert fit.label[kept].sum() / fit.label.sum() >= recall
        assert cut <= plain.thresholds[recall]
    # What the folds keep of a query is cut by the others.
    own = next(_folds(100, 0))[examples.query]
    cuts = Cuts.chosen(
        fit.relevance[~own], fit.label[~own], examples.query[~own], (0.8,), answered=0.9
    )
    assert cuts.min_best is not None
    wanted = (fit.relevance >= cuts.thresholds[0.8]) & (best[examples.query] >= cuts.min_best)
    np.testing.assert_array_equal(fit.kept[0.8][own], wanted[own])
    chosen = fit_best(
        "vector", examples, ("raw", "linear"), recall=0.8, background=background, answered=0.9
    )
    assert chosen.min_best is not None and 0.7 < chosen.recall(0.8) < 0.95
    with pytest.raises(FittingError, match="answered is a share above 0, at most 1, not 0"):
        fit_leg("vector", examples, background=background, answered=0)


def test_a_family_that_reaches_the_recall_goes_first() -> None:
    """A family may remove much by leaving queries with nothing, and lose too many answers."""
    random = np.random.default_rng(7)
    level = random.normal(size=40) * random.uniform(0, 0.4)
    x = np.clip(random.normal(0.3, 0.2, (40, 20)) + level[:, None], -1, 1)
    relevant = np.arange(20) < random.integers(0, 6, 40)[:, None]
    x += relevant * random.uniform(0, 0.5, (40, 1))
    examples = Examples.of_lists(random.normal(size=(40, 2)), list(x), list(relevant))
    families = ("linear", "sqrt", "quadratic")
    fits = [fit_leg("text", examples, f, recalls=(0.95,), answered=0.9) for f in families]
    reaching = [0.95 in fit.thresholds for fit in fits]
    most = int(np.argmax([fit.removed(0.95) for fit in fits]))
    assert any(reaching)
    assert not reaching[most]
    chosen = fit_best("text", examples, families, recall=0.95, recalls=(0.95,), answered=0.9)
    assert 0.95 in chosen.thresholds


def test_questions_about_other_matters_find_nothing() -> None:
    examples, background = synthetic()
    rows = np.random.default_rng(0).normal(size=(400, 16)) + 6 * np.eye(16)[0]
    random = np.random.default_rng(5)
    asked = random.normal(size=(120, 16)) + 6 * np.eye(16)[0]
    background = fit_background(rows, asked)
    x = np.sort(random.uniform(0.5, 1, (120, 60)))[:, ::-1]
    examples = Examples.of_lists(background.features(asked), list(x), list(x > 0.9))
    far = np.vstack([-np.eye(16)[0] + random.normal(size=16) for _ in range(50)])
    empty = {}
    for name, nothing in {"with": unanswerable(background, rows, 120), "without": None}.items():
        fit = fit_leg("vector", examples, background=background, unanswerable=nothing)
        assert isinstance(fit.model, LegModel) and fit.queries == 120
        assert len(fit.relevance) == len(examples.x)
        best = fit.model.vector_curve(far).relevance(np.full((50, 1), 0.3))
        empty[name] = (best < fit.thresholds[0.95]).mean()
    assert empty["with"] == 1 >= empty["without"]


def test_fit_is_calibrated() -> None:
    examples, background = synthetic(300)
    fit = fit_leg("vector", examples, "linear", background=background)
    for each in reliability(fit.relevance, fit.label):
        assert each.observed == pytest.approx(each.predicted, abs=0.06)
    assert reliability([], []) == []
    assert [each.count for each in reliability([0.1] * 5 + [0.5], np.zeros(6), 2)] == [5, 1]
    assert fit.brier < 0.6 * fit.label.mean() * (1 - fit.label.mean())


def test_fit_is_deterministic() -> None:
    examples, background = synthetic(60)
    one, two = (fit_leg("vector", examples, "power", background=background) for _ in range(2))
    np.testing.assert_array_equal(one.relevance, two.relevance)


def test_text_leg_needs_no_background() -> None:
    examples, _ = synthetic(60)
    random = np.random.default_rng(3)
    of_text = Examples(random.uniform(1, 3, (60, 2)), examples.query, examples.x, examples.label)
    fit = fit_leg("text", of_text, "sqrt", recalls=(0.9,))
    assert isinstance(fit.model, LegModel) and fit.model.background is None
    assert list(fit.thresholds) == [0.9]
    with pytest.raises(FittingError, match="the vector leg, and no other, takes a background"):
        fit_leg("vector", of_text, "sqrt")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (0.0, "found 0 queries, 0 relevant and 3600 other candidates"),
        (1.0, "found 60 queries, 3600 relevant and 0 other candidates"),
    ],
)
def test_one_class_is_refused(label: float, message: str) -> None:
    examples, background = synthetic(60)
    examples.label[:] = label
    with pytest.raises(FittingError, match=message):
        fit_leg("vector", examples, background=background)


def test_too_few_queries_are_refused() -> None:
    examples, background = synthetic(19)
    with pytest.raises(FittingError, match="needs 20 queries with a relevant candidate"):
        fit_leg("vector", examples, background=background)
    with pytest.raises(FittingError, match="needs 20 queries"):
        fit_leg("vector", Examples.of_lists(np.zeros((0, 2)), [], []), background=background)
    with pytest.raises(FittingError, match="20 rows and 4 queries"):
        fit_background(np.ones((3, 2)), np.ones((30, 2)))


def test_numbers_that_are_none_are_refused() -> None:
    examples, background = synthetic(60)
    examples.x[3] = np.nan
    with pytest.raises(FittingError, match="not finite"):
        fit_leg("vector", examples, background=background)
    examples, background = synthetic(60)
    with pytest.raises(FittingError, match="no family 'cubic'"):
        fit_leg("vector", examples, "cubic", background=background)


def test_no_centroid_stands_for_a_few_rows() -> None:
    rows = np.vstack([np.eye(4)[[0] * 50], np.eye(4)[[1] * 50], np.eye(4)[[2]]])
    background = fit_background(rows, np.eye(4))
    assert (background.centroid_weight * 101 >= 4.9).all()


def test_fused_weighs_what_knows() -> None:
    random = np.random.default_rng(0)
    query = np.repeat(np.arange(100), 20)
    truth = random.random(2000) < 0.2
    knows = logistic(np.where(truth, 2, -3) + random.normal(0, 1, 2000))
    ignorant = np.full(2000, 0.2) + random.normal(0, 0.01, 2000)
    knows[::7] = np.nan
    fit = fit_fused({"vector": ignorant, "text": knows}, query, truth)
    model = fit.model
    assert isinstance(model, FusedModel)
    assert (model.weights >= 0).all() and model.weights[2] == 0 == model.missing[2]
    assert model.relevance(text=0.9) > model.relevance(vector=0.2) > model.relevance(text=0.01)
    assert fit.brier < 0.06
    with pytest.raises(FittingError, match="legs are vector, text and tokens, not audio"):
        fit_fused({"audio": knows}, query, truth)
    with pytest.raises(FittingError, match="0 relevant"):
        fit_fused({"text": knows}, query, np.zeros(2000))


def test_fused_of_nothing() -> None:
    model = FusedModel(np.ones(3), 0.0, np.array([-1.0, 0, 0]))
    assert np.isnan(model.relevance())
    np.testing.assert_allclose(model.relevance(text=[0.5, np.nan]), [float(logistic(-1)), np.nan])


def test_labels_of_the_background() -> None:
    random = np.random.default_rng(0)
    sample = random.normal(0.1, 0.05, 2000)
    chance = np.sort(random.normal(0.1, 0.05, 10_000))[::-1]
    standing_out = np.concatenate([[0.6, 0.55], chance[:50]])
    with_answer, without = background_labels([standing_out, chance[:50]], [sample] * 2, 10_000)
    assert (with_answer[:2] > 0.99).all() and with_answer[10:].max() < 0.6
    assert (np.diff(with_answer) <= 0).all() and without.mean() < 0.3
    with pytest.raises(FittingError, match="all the same"):
        background_labels([chance[:5]], [np.zeros(5)], 10)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1), st.floats(0.01, 1))
def test_threshold_keeps_the_recall_and_is_the_largest(pairs, recall):
    relevance, label = (np.array(column) for column in zip(*pairs, strict=True))
    if not label.any():
        with pytest.raises(FittingError):
            threshold(relevance, label, recall)
        return
    found = threshold(relevance, label, recall)
    assert (relevance[label] >= found).mean() >= recall - 1e-9
    above = relevance[label & (relevance > found)]
    assert len(above) < recall * label.sum() + 1e-6


JUDGED = {"q1": {"d1": 2.0, "d2": 0.0}, "q2": {"d 3": 1.0}}


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td 3\t1\n",
        "q1\td1\t2\n\nq1\td2\t0\nq2\td 3\t1",
        '{"query-id": "q1", "corpus-id": "d1", "score": 2}\n'
        '{"query-id": "q1", "corpus-id": "d2", "score": 0}\n'
        '{"query-id": "q2", "corpus-id": "d 3", "score": 1}\n',
        "q1\t0\td1\t2\nq1\t0\td2\t0\nq2\t0\td 3\t1\n",
        "\ufeffquery-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td 3\t1\n",
    ],
)
def test_judgements(tmp_path: Path, content: str) -> None:
    (tmp_path / "judgements").write_text(content)
    assert read_judgements(tmp_path / "judgements") == JUDGED


@pytest.mark.parametrize(
    "line",
    [
        "q1\td1",
        "q1\td1\tgood",
        "q1\td1\tnan",
        '{"query-id": 1}',
        '{"query-id": 1, "corpus-id": 2, "score": "good"}',
        '{"query-id": 1, "corpus-id": 2, "score": null}',
        "{",
        "q1 d1 1 2 3",
    ],
)
def test_bad_judgements(tmp_path: Path, line: str) -> None:
    (tmp_path / "judgements").write_text(f"q1\td1\t2\n{line}\n")
    with pytest.raises(DeclarationError, match="line 2 is no judgement"):
        read_judgements(tmp_path / "judgements")
    (tmp_path / "judgements").write_bytes(b"q1\td\xe9\t1\n")
    with pytest.raises(DeclarationError, match="is not in UTF-8"):
        read_judgements(tmp_path / "judgements")
    (tmp_path / "judgements").write_text("\n")
    with pytest.raises(FittingError, match="there are no judgements"):
        read_judgements(tmp_path / "judgements")


def test_quality_is_that_of_the_definition() -> None:
    judgements = {"a": {"1": 2.0, "2": 1.0, "9": 1.0, "3": 0.0}, "b": {"1": 1.0}, "c": {"1": 0.0}}
    # a: rows 3, 1, 2 in this order; b found nothing; c has no answer and does not count.
    quality = Quality.of_candidates(
        [0.5, 0.9, 0.4, 0.2],
        ["a", "a", "a", "c"],
        ["1", "3", "2", "1"],
        judgements,
        ["a", "b", "c"],
    )
    ideal = 2 + 1 / np.log2(3) + 1 / 2
    assert quality.ndcg == pytest.approx((2 / np.log2(3) + 1 / 2) / ideal / 2)
    assert quality.average_precision == pytest.approx((1 / 2 + 2 / 3) / 3 / 2)
    assert quality.found == pytest.approx(2 / 3 / 2)
    perfect = Quality.of_candidates([1, 1], ["b", "b"], ["1", "2"], judgements, ["b"])
    assert perfect == Quality(1, 1, 1)  # on a tie as they come
    assert np.isnan(Quality.of_candidates([], [], [], judgements, []).ndcg)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3)), min_size=1, max_size=40))
def test_quality_equals_scikit_learn(candidates):
    scores, grades = (
        np.array(column, dtype=np.float64) for column in zip(*candidates, strict=True)
    )
    # Ties of scikit-learn are averaged: rank without any.
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    rows = [str(number) for number in range(len(candidates))]
    judgements = {"q": dict(zip(rows, map(float, grades), strict=True))}
    quality = Quality.of_candidates(ranks, ["q"] * len(rows), rows, judgements, ["q"])
    if not grades.any():
        assert np.isnan(quality.ndcg)
        return
    if len(rows) > 1:
        assert quality.ndcg == pytest.approx(ndcg_score([grades], [ranks], k=10))
    assert quality.average_precision == pytest.approx(average_precision_score(grades > 0, ranks))
    assert quality.found == 1


@pytest.mark.parametrize("module", ["scipy", "sklearn", "threadpoolctl"])
def test_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingRequirement, match=rf"needs {module}: pip install 'sqlvec\[fit\]'"):
        importlib.reload(sqlvec.fit)


def test_page() -> None:
    examples, background = synthetic(60)
    fit = fit_leg("vector", examples, "raw", background=background)
    text = page([Judged.of_fit("<model>", fit, 0.95)])
    root = ElementTree.fromstring(
        text.replace("<!doctype html>", "").replace('<meta charset="utf-8">', "")
    )
    assert len(list(root.iter("svg"))) == 3
    assert "&lt;model&gt;" in text and "<model>" not in text
    assert "http" not in text and "src=" not in text
    assert f"{fit.thresholds[0.95]:.4f}" in text
