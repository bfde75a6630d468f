"""Dense layers: their formulas, and what a warm start needs. ``test_all_towers.py`` resumes and exports runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_data import write_job, write_planted
from dense_runs import CHECKPOINT, LAYERS, MODEL, TRAIN, final_layers, newest

from crossfade.base.errors import DivergedError, InputError
from crossfade.cli.main import main
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.model.dense import DenseLayers, backward_layers, forward_layers
from crossfade.trainer.model.spec import LayerSpec


@pytest.mark.slow
def test_vector_does_not_depend_on_batch_and_gradients_add_up() -> None:
    spec = LAYERS
    dense = DenseLayers([spec], OptimizerSpec("sgd", learning_rate=1.0), seed=5)
    before = {name: values.astype(np.float64) for name, values in dense.parameters.items()}
    draw = np.random.default_rng(0)
    rows_AD, gradient_AD = (draw.standard_normal((2500, 5)).astype(np.float32) for _ in range(2))
    vectors_by_entity, tape = dense.forward({"track": rows_AD, "customer": rows_AD})
    assert vectors_by_entity["customer"] is rows_AD
    applied_AD = dense.apply("track", rows_AD)
    np.testing.assert_allclose(vectors_by_entity["track"], applied_AD, atol=1e-5)
    for count in (1, 7, 700):
        parts = [dense.apply("track", rows_AD[first : first + count]) for first in range(0, 2500, count)]
        np.testing.assert_array_equal(np.concatenate(parts), applied_AD)
    by_rows, expected = backward_layers(spec, before, forward_layers(spec, before, rows_AD.astype(float)), gradient_AD)
    by_inputs, gradients = dense.backward(tape, {"track": gradient_AD, "customer": gradient_AD})
    assert by_inputs["customer"] is gradient_AD
    np.testing.assert_allclose(by_inputs["track"], by_rows, atol=1e-4)
    dense.update(gradients, 1.0)
    for name, values in dense.parameters.items():
        np.testing.assert_allclose(before[name] - values, expected[name], rtol=1e-4, atol=1e-2, err_msg=name)


def test_initial_layers_follow_from_seed_with_expected_scale() -> None:
    spec = LayerSpec("track", (200, 100, 200))
    one, same, other = (DenseLayers([spec], OptimizerSpec(), seed).parameters for seed in (1, 1, 2))
    weights = one["track/0/weights"]
    assert weights.tobytes() == same["track/0/weights"].tobytes()
    assert np.abs(weights - other["track/0/weights"]).max() > 0.05
    assert weights.std() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert np.abs(weights.T - one["track/1/weights"]).max() > 0.05, "each layer has its own numbers"
    assert (one["track/0/gain"] == 1).all()
    assert not one["track/0/bias"].any()


def test_weight_decay_applies_to_weights_only() -> None:
    spec = LAYERS
    dense = DenseLayers([spec], OptimizerSpec("sgd", learning_rate=1.0, weight_decay=0.5), seed=1)
    before = {name: values.copy() for name, values in dense.parameters.items()}
    rows_AD = np.ones((3, 5), np.float32)
    _, tape = dense.forward({"track": rows_AD})
    _, gradients = dense.backward(tape, {"track": np.zeros_like(rows_AD)})
    dense.update(gradients, 1.0)
    for name, values in dense.parameters.items():
        np.testing.assert_allclose(values, before[name] * (0.5 if name.endswith("weights") else 1), err_msg=name)


def test_diverged_layer_is_named() -> None:
    dense = DenseLayers([LAYERS], OptimizerSpec(), seed=1)
    _, tape = dense.forward({"track": np.ones((2, 5), np.float32)})
    _, gradients = dense.backward(tape, {"track": np.full((2, 5), np.nan, np.float32)})
    with pytest.raises(DivergedError, match=r"dense layers \(track/0/weights\): .* not finite"):
        dense.update(gradients, 1.0)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {"dim": 8, "dense": {"item": [16, 4]}}}, "dense.item is [16, 4]: its last width must equal dim"),
        ({"model": {"dim": 8, "dense": {"item": [0, 8]}}}, "model.dense.item.0: input should be greater than"),
        ({"model": {"dim": 8, "dense": {"items": [8]}}}, "unknown key 'model.dense.items'; did you mean 'item'?"),
    ],
)
def test_invalid_layers_are_rejected(sections: Mapping[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as raised:
        check_job({"name": "a", "data": {"path": "data"}, **sections}, "job.yaml")
    assert expected in str(raised.value)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write data and a job whose towers both have dense layers."""
    folder = tmp_path_factory.mktemp("dense")
    data = write_planted(folder / "data")
    optimizer = {"kind": "adagrad", "learning_rate": 0.1, "warmup_steps": 3}
    write_job(folder / "job.yaml", data, model=MODEL, train=TRAIN, checkpoint=CHECKPOINT, optimizer=optimizer)
    return folder


def command(workspace: Path, run: str, *options: object) -> int:
    words = ["train", workspace / "job.yaml", "--run-dir", workspace / run, "--set", "metrics.port=null", *options]
    return main([str(word) for word in words])


def train(workspace: Path, run: str, *options: object) -> Path:
    assert command(workspace, run, *options) == 0
    return workspace / run


@pytest.fixture(scope="module")
def trained(workspace: Path) -> Path:
    """Train an undisturbed run, in process."""
    return train(workspace, "trained")


@pytest.mark.slow
def test_warm_start_with_other_layers_is_rejected(
    workspace: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(workspace, "plain", "--set", "model.dense={}", "--set", "train.max_steps=2")
    assert '"files"' not in (newest(plain) / "manifest.json").read_text()

    def error_of(source: Path, *options: object) -> str:
        capsys.readouterr()
        assert command(workspace, "rejected", "--set", f"checkpoint.warm_start_from={newest(source)}", *options) == 2
        assert not (workspace / "rejected").exists()
        return capsys.readouterr().err

    assert "has no dense layers, but the job has some for customer and track" in error_of(plain)
    assert "customer/0/bias is float32 1 x 16 in the checkpoint and missing in the job" in error_of(
        trained, "--set", "model.dense={}"
    )
    narrower = error_of(trained, "--set", "model.dense.query=[15, 8]")
    assert "customer/0/bias is float32 1 x 16 in the checkpoint and float32 1 x 15 in the job" in narrower
    assert command(workspace, "trained", "--resume", "--set", "model.dense.item=[8]") == 2
    assert "cannot resume: model.dense.item was [12, 10, 8] and is now [8]" in capsys.readouterr().err
    train(workspace, "slower", "--set", "train.max_steps=1")
    train(workspace, "slower", "--resume", "--set", "train.max_steps=2", "--set", "model.dense.learning_rate=1e-3")
    assert "and is 0.001 from here on" in capsys.readouterr().err
    still = ("--set", "optimizer.learning_rate=1e-30", "--set", "model.dense.learning_rate=1e-30")
    start = ("--set", f"checkpoint.warm_start_from={trained / 'checkpoints'}", "--set", "train.max_steps=1", *still)
    warm = train(workspace, "warm", *start)
    np.testing.assert_array_equal(final_layers(warm)["track/2/weights"], final_layers(trained)["track/2/weights"])
