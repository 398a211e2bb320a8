"""Fitted estimators of scikit-learn: each class of the table comes home and predicts the same."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import sklearn
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gridx.codec import CodecError, Opaque, decode, encode, tags
from gridx.codec.estimators import ESTIMATORS
from gridx.codec.framing import join
from gridx.codec.tags import VALUE_MAGIC

_chance = np.random.default_rng(0)
_X = np.abs(_chance.normal(size=(60, 4))) + 0.1
_Y = (_X[:, 0] > _X[:, 1]).astype(int)
_REAL = _X @ np.array([1.0, -2.0, 0.5, 3.0]) + 10
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "Pipeline": {"steps": [("scale", StandardScaler()), ("fit", LogisticRegression())]},
    "FeatureUnion": {"transformer_list": [("a", StandardScaler()), ("b", StandardScaler())]},
    "QuantileTransformer": {"n_quantiles": 20},
    "KMeans": {"n_clusters": 3, "n_init": 1, "random_state": 0},
    "QuantileRegressor": {"solver": "highs"},
}
_CLASSIFIES = ("NB", "Classifier", "LogisticRegression", "LinearSVC", "Discriminant", "Pipeline")
_ASKS = ("predict", "transform", "score_samples", "predict_proba")


def _fitted(name: str) -> Any:
    module = __import__(ESTIMATORS[name], fromlist=[name])
    made = getattr(module, name)(**_ARGUMENTS.get(name, {}))
    if name.startswith("Label"):
        return made.fit(["a", "b", "a"])
    if name.startswith("MultiTask"):
        return made.fit(_X, np.column_stack([_REAL, _REAL * 2]))
    is_class = any(word in name for word in _CLASSIFIES)
    return made.fit(_X, _Y if is_class else _REAL)


def _answers(estimator: Any, name: str) -> list[Any]:
    if name.startswith("Label"):
        return [estimator.transform(["b", "a"])]
    return [getattr(estimator, ask)(_X) for ask in _ASKS if hasattr(estimator, ask)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_of_the_table_comes_home_open_and_answers_the_same(name: str) -> None:
    fitted = _fitted(name)
    back = decode(encode(fitted))
    assert type(back) is type(fitted), back
    answers, wanted = _answers(back, name), _answers(fitted, name)
    assert answers
    for answer, want in zip(answers, wanted, strict=True):
        np.testing.assert_array_equal(answer, want)
    assert repr(back) == repr(fitted)


def test_a_pipeline_keeps_its_parts_and_they_are_open() -> None:
    scaler = StandardScaler()
    model = make_pipeline(scaler, Ridge()).fit(_X, _REAL)
    back, scaler_again = decode(encode([model, scaler]))
    assert back[0] is scaler_again
    np.testing.assert_array_equal(back.predict(_X), model.predict(_X))


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(n_estimators=2),
        KNeighborsClassifier(),
        make_pipeline(StandardScaler(), RandomForestClassifier(n_estimators=2)),
        LogisticRegression(warm_start=True),
    ],
)
def test_trees_neighbours_and_what_holds_them_come_home_closed(model: Any) -> None:
    back = decode(encode([model.fit(_X, _Y), 1]))
    assert isinstance(back[0], Opaque)
    assert not back[0].is_lost
    assert back[1] == 1


def test_an_estimator_of_another_version_stays_closed_and_can_be_sent_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encode([Ridge().fit(_X, _REAL), "after"])
    monkeypatch.setattr(sklearn, "__version__", "0.1")
    back = decode(data)
    assert isinstance(back[0], Opaque)
    assert not back[0].is_lost
    assert f"scikit-learn {data and sklearn.__version__}" not in repr(back[0])
    assert back[1] == "after"


def _node(name: str, **fields: Any) -> list[Any]:
    version = sklearn.__version__
    return [tags.ESTIMATOR, name, version, list(fields), list(fields.values()), b""]


@pytest.mark.parametrize(
    "node",
    [
        _node("RandomForestClassifier", a=1),
        _node("os.system", a=1),
        _node("BaseEstimator"),
        _node("Ridge", __class__=1),
        _node("Ridge", warm_start=True),
        _node("Ridge", predict=1),
        _node("Ridge", _doc_link_template="javascript:alert(1)"),
        _node("Ridge", _repr_html_="x"),
        _node("Ridge", _unknown=1),
        _node("Pipeline", memory="/tmp"),
        _node("KMeans", _n_threads=10**6),
        _node("KMeans", cluster_centers_=[1.0], n_clusters=1, n_features_in_=1),
        _node(
            "KMeans",
            cluster_centers_=[tags.ARRAY, "<f8", [2, 1], bytes(16)],
            n_clusters=2,
            n_features_in_=9,
        ),
        [tags.ESTIMATOR, "Ridge", sklearn.__version__, ["a", "a"], [1, 2], b""],
        [tags.ESTIMATOR, "Ridge", sklearn.__version__, ["a"], [], b""],
        [tags.ESTIMATOR, "Ridge", 5, ["a"], [1], b""],
    ],
)
def test_a_forged_estimator_is_refused(node: Any) -> None:
    with pytest.raises(CodecError):
        decode(join(VALUE_MAGIC, node, []))


def test_no_method_of_an_estimator_runs_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Ridge().fit(_X, _REAL))

    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a method ran")

    for name, member in inspect.getmembers(Ridge):
        if name in ("__setstate__", "__setattr__", "set_params"):
            assert member
            monkeypatch.setattr(Ridge, name, forbidden)
    decode(data)
