"""Labels of a map: the groups that form regions, and where their names are written."""

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.maps.map_labels import Labels, choose_labels, place_names

ITEMS = 120
CENTERS = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])


def places(seed: int = 1) -> FloatArray:
    """Return three islands of forty items, in turn."""
    noise_N2 = np.random.default_rng(seed).standard_normal((ITEMS, 2))
    return (CENTERS[np.arange(ITEMS) % 3] + noise_N2).astype(np.float32)


def neighbors(place_N2: FloatArray, count: int = 5) -> IntArray:
    distance_NN = np.square(place_N2[:, None] - place_N2[None]).sum(axis=2)
    np.fill_diagonal(distance_NN, np.inf)
    return np.argsort(distance_NN, axis=1)[:, :count]


def test_groups_that_form_regions_are_chosen() -> None:
    generator = np.random.default_rng(2)
    names = ("everywhere", "first", "first again", "second", "rare")
    lists = []
    for item in range(ITEMS):
        values = [0] if generator.random() < 0.7 else []
        values += {0: [1, 2], 1: [3], 2: []}[item % 3]
        lists.append([*values, 4] if item == 3 else values)
    labels = choose_labels(JaggedArray.of(lists), names, neighbors(places()), colors=2)
    assert set(labels.names) in ({"first", "second"}, {"first again", "second"})
    numbers = {name: number for number, name in enumerate(labels.names)}
    expected = {0: next(number for name, number in numbers.items() if "first" in name), 1: numbers["second"], 2: -1}
    assert labels.label_N.tolist() == [expected[item % 3] for item in range(ITEMS)]


def test_item_of_several_groups_gets_the_smallest() -> None:
    lists = [[0, 1] if item % 3 == 0 and item < 60 else [0] if item % 3 == 0 else [2] for item in range(ITEMS)]
    names = ("large", "small", "others")
    labels = choose_labels(JaggedArray.of(lists), names, neighbors(places()), colors=3)
    assert labels.names == ("others", "large")  # "small" is contained in "large"
    lists = [[0, 1] if item % 3 == 0 and item < 30 else [0] if item % 3 == 0 else [1] for item in range(ITEMS)]
    labels = choose_labels(JaggedArray.of(lists), names, neighbors(places()), colors=2)
    assert labels.names == ("small", "large")
    assert [labels.names[number] for number in labels.label_N[[0, 30, 1]]] == ["large", "large", "small"]


def test_name_is_placed_amid_its_region() -> None:
    place_N2, label_N = places(), np.arange(ITEMS) % 3
    label_N[[0, 3]] = 1  # two strays on the first island do not move the name of the second
    found = place_names(Labels(("a", "b", "c"), label_N), place_N2, neighbors(place_N2))
    for name, center in zip("abc", CENTERS, strict=True):
        assert np.hypot(*(np.array(found[name]) - center)) < 3
