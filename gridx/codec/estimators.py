"""Fitted estimators of scikit-learn whose state is numbers: rebuilt without a pickle.

Only classes of the table below: their fitted state is values that the codec knows, and what they
do with it is numpy alone, so that wrong values give an error or a wrong number and nothing worse.
Trees, neighbours and whatever has compiled state travel closed.

The class is looked up in this table, never by what the message says; scikit-learn is loaded as
numpy and pandas are, when it is installed and a value needs it. Another version than that which
fitted the estimator opens nothing: then the value stays an Opaque, with its pickle.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import msgspec

from . import tags, user_values
from .failures import LibraryMissing, Unsupported
from .libraries import load, loaded
from .opaque import Opaque

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_MODULES: Final = {
    "sklearn.linear_model": (
        "LinearRegression Ridge RidgeCV Lasso LassoCV ElasticNet ElasticNetCV BayesianRidge "
        "ARDRegression HuberRegressor Lars LassoLars LassoLarsCV LassoLarsIC LarsCV "
        "OrthogonalMatchingPursuit MultiTaskLasso MultiTaskElasticNet LogisticRegression "
        "RidgeClassifier RidgeClassifierCV TheilSenRegressor QuantileRegressor"
    ),
    "sklearn.svm": "LinearSVC LinearSVR",
    "sklearn.preprocessing": (
        "StandardScaler MinMaxScaler MaxAbsScaler RobustScaler Normalizer Binarizer "
        "PowerTransformer QuantileTransformer LabelEncoder LabelBinarizer PolynomialFeatures"
    ),
    "sklearn.decomposition": "PCA TruncatedSVD FastICA FactorAnalysis",
    "sklearn.cluster": "KMeans",
    "sklearn.mixture": "GaussianMixture BayesianGaussianMixture",
    "sklearn.naive_bayes": "GaussianNB MultinomialNB BernoulliNB ComplementNB",
    "sklearn.discriminant_analysis": "LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis",
    "sklearn.impute": "SimpleImputer",
    "sklearn.dummy": "DummyClassifier DummyRegressor",
    "sklearn.pipeline": "Pipeline FeatureUnion",
}
ESTIMATORS: Final = {name: module for module, names in _MODULES.items() for name in names.split()}
"""Each class, and the public module that it is found in."""
# What a later `fit` would trust: a start that does not fit its data, a folder of pickles.
_MUST_BE_OFF: Final = ("warm_start", "memory")
_PRIVATE: Final = frozenset(
    [
        "_algorithm",
        "_fill_dtype",
        "_fit_dtype",
        "_fit_svd_solver",
        "_label_binarizer",
        "_max_components",
        "_max_degree",
        "_min_degree",
        "_n_features_out",
        "_n_init",
        "_n_out_full",
        "_n_threads",
        "_scaler",
        "_sklearn_output_config",
        "_strategy",
        "_tol",
        "_unmixing",
    ]
)
"""What these classes keep beside their parameters and fitted attributes."""
_MAX_FALLBACK_BYTES: Final = 4 << 20
_MAX_THREADS: Final = 256


def encode_estimator(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a fitted estimator of the table, and its pickle beside it."""
    name = type(value).__name__
    module = loaded(ESTIMATORS.get(name, ""))
    if module is None or getattr(module, name, None) is not type(value):
        raise Unsupported(type(value).__qualname__)
    fields = vars(value)
    if not _are_fields(type(value), list(fields)) or _is_off(fields):
        raise Unsupported(name)
    blobs = len(encoder.blobs)
    with encoder.all_open() as is_outermost:
        encoder.mark(value)
        parts = encoder.nodes(list(fields.values()), depth)
    fallback: Any = b""
    if is_outermost:
        size_bytes = sum(memoryview(blob).nbytes for blob in encoder.blobs[blobs:])
        if size_bytes + len(msgspec.msgpack.encode(parts)) <= _MAX_FALLBACK_BYTES:
            fallback = encoder.pickled(value)
    version = str(loaded("sklearn").__version__)
    return [tags.ESTIMATOR, name, version, list(fields), parts, fallback]


def _are_fields(cls: Any, names: list[Any]) -> bool:
    """Return whether ``names`` are parameters and fitted attributes: nothing of the class itself.

    An attribute in the place of a method, or of what makes its picture in a notebook, would act.
    """
    parameters = inspect.signature(cls.__init__).parameters
    return all(
        user_values.is_field_name(name)
        and (
            name in parameters or (not hasattr(cls, name) and (name[0] != "_" or name in _PRIVATE))
        )
        for name in names
    )


def _is_off(fields: dict[str, Any]) -> bool:
    return any(fields.get(name) not in (None, False) for name in _MUST_BE_OFF)


# ---------------------------------------------------------------- decode


def _decode_estimator(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 6 and type(node[1]) is type(node[2]) is str, "estimator")
    decoder.check(type(node[3]) is type(node[4]) is list, "estimator")
    decoder.check(node[1] in ESTIMATORS and len(node[2]) <= 40, "estimator")
    names, parts = node[3], node[4]
    decoder.check(all(map(user_values.is_field_name, names)), "estimator")
    decoder.check(len(names) == len(parts) == len(set(names)), "estimator")
    cls = _class(node[1], node[2])
    made = object.__new__(cls) if cls is not None else _closed(decoder, node)
    decoder.place(made)
    fields = dict(zip(names, decoder.parts(parts, depth), strict=True))
    decoder.check(not _is_off(fields), "estimator")
    if cls is None:
        return made
    decoder.check(_are_fields(cls, names), "estimator")
    _check_threads(decoder, fields)
    if node[1] == "KMeans":
        _check_centers(decoder, fields)
    vars(made).update(fields)
    return made


def _class(name: str, version: str) -> Any:
    try:
        sklearn, module = load("sklearn"), load(ESTIMATORS[name])
    except LibraryMissing:
        return None
    return getattr(module, name, None) if sklearn.__version__ == version else None


def _closed(decoder: Decoder, node: list[Any]) -> Opaque:
    decoder.opaque_count += 1
    summary = f"fitted by scikit-learn {node[2]}, which is not the one here"
    if not node[2].replace(".", "").isalnum():
        summary = "fitted by another scikit-learn than the one here"
    return Opaque(f"sklearn.{node[1]}", summary, bytes(decoder.raw(node[5])), decoder.source)


def _check_threads(decoder: Decoder, fields: dict[str, Any]) -> None:
    if "_n_threads" in fields:
        decoder.integer(fields["_n_threads"], 1, _MAX_THREADS)


def _check_centers(decoder: Decoder, fields: dict[str, Any]) -> None:
    """Check what the compiled part of KMeans takes on trust."""
    numpy = load("numpy")
    centers = fields.get("cluster_centers_")
    if centers is None:
        return
    is_plain = type(centers) is numpy.ndarray and centers.dtype.str in ("<f4", "<f8")
    decoder.check(is_plain and centers.flags.c_contiguous, "estimator")
    shape = (fields.get("n_clusters"), fields.get("n_features_in_"))
    decoder.check(all(type(side) is int for side in shape), "estimator")
    decoder.check(centers.shape == shape and centers.size > 0, "estimator")


DECODERS: Final = {tags.ESTIMATOR: _decode_estimator}
