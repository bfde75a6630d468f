"""``crossfade.Recommender`` works with scikit-learn's tools, which take a second to import."""

import pandas as pd
import pytest

import crossfade

from .conftest import SETTINGS

pytestmark = pytest.mark.slow


def test_search_chooses_the_longer_training(plays: pd.DataFrame) -> None:
    from sklearn.model_selection import GridSearchCV

    estimator = crossfade.Recommender(item="track", dim=8, settings=SETTINGS)
    with pytest.raises(crossfade.InputError, match="call fit with events first"):
        estimator.predict(plays)
    search = GridSearchCV(estimator, {"epochs": [1, 9]}, cv=2).fit(plays)
    assert search.best_params_ == {"epochs": 9}
    assert search.best_score_ > 0.1
    found = search.predict(plays[:1])
    assert found["user"].unique().tolist() == plays["user"][:1].tolist()
    assert len(found) == 10


def test_parameters_are_arguments_of_fit_with_their_defaults() -> None:
    from inspect import signature

    own, of_fit = signature(crossfade.Recommender).parameters, signature(crossfade.fit).parameters
    assert own.keys() - of_fit.keys() == {"k"}
    assert of_fit.keys() - own.keys() == {"plays", "names", "valid", "test", "progress"}
    shared = [name for name in own if name not in ("k", "query", "item")]
    assert {name: own[name].default for name in shared} == {name: of_fit[name].default for name in shared}


def test_score_is_the_recall_of_new_items(plays: pd.DataFrame) -> None:
    estimator = crossfade.Recommender(item="track", dim=8, epochs=1, k=5, settings=SETTINGS).fit(plays)
    ranked = estimator.predict(plays[plays["user"] == "user_7"])["track"].tolist()
    strangers = estimator.predict(pd.DataFrame({"user": ["nobody", "user_7"]}), on_unknown="popular")
    assert strangers["is_fallback"].tolist() == [True] * 5 + [False] * 5
    assert strangers["track"].tolist()[5:] == ranked
    known = plays["track"][plays["user"] == "user_7"].iloc[0]
    held_out = pd.DataFrame({"user": "user_7", "track": [ranked[0], ranked[3], known, 10**6]})
    assert estimator.score(held_out) == 1.0
    missed = next(track for track in range(200) if track not in {*ranked, *plays["track"][plays["user"] == "user_7"]})
    assert estimator.score(pd.DataFrame({"user": "user_7", "track": [ranked[0], missed]})) == 0.5
    with pytest.raises(crossfade.InputError, match="expected at least one"):
        estimator.score(pd.DataFrame({"user": ["user_7", "nobody"], "track": [known, 3]}))
    with pytest.raises(crossfade.InputError, match="k 0: expected an integer from 1"):
        estimator.set_params(k=0).score(held_out)
