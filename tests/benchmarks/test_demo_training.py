"""The training of the demo: a sweep, a loop and the evaluation."""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest

from benchmarks.demo import digits, train as training
from benchmarks.demo.methods import Method
from contrib_algos import adam, sgd
from contrib_wrappers import schedule_free_sgd


@pytest.fixture(scope="module")
def data():
    return digits.load()


def train(method, data, steps=3, seeds=1, tell=lambda done, loss: None):
    return training.train("name", method, data, steps, seeds, tell)


def test_a_sweep_is_its_runs_one_by_one(data):
    told = []
    method = Method(adam, (1e-3, 1e-2))
    sweep = train(method, data, seeds=2, tell=lambda *args: told.append(args))
    assert sweep.losses.shape == (2, 2, 3)
    alone = train(Method(lambda: adam(1e-2)), data, seeds=2)
    np.testing.assert_allclose(sweep.losses[1], alone.losses[0], rtol=1e-4)
    np.testing.assert_allclose(sweep.train_loss[1], alone.train_loss[0], rtol=1e-4)
    # Runs with different rates share the network and its first batch only. Runs with
    # different seeds share nothing.
    np.testing.assert_allclose(sweep.losses[0, :, 0], sweep.losses[1, :, 0], rtol=1e-5)
    assert np.all(sweep.losses[0, :, 1:] != sweep.losses[1, :, 1:])
    assert np.all(sweep.losses[:, 0] != sweep.losses[:, 1])
    # The smallest of the losses is reported.
    smallest = sweep.losses[..., -1].mean(axis=1).min()
    assert told == [(3, pytest.approx(smallest, rel=1e-6))]


def test_training_is_the_loop_that_a_user_would_write(data, monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 2)
    told = []
    method = Method(lambda: sgd(0.5))
    result = train(method, data, tell=lambda *args: told.append(args))

    model_key, key = jr.split(jr.split(jr.key(0), 1)[0])
    model, losses = digits.Network(model_key), []
    value_and_grad = eqx.filter_jit(eqx.filter_value_and_grad(digits.loss))
    for _ in range(3):
        key, batch_key = jr.split(key)
        batch = data[0].sample(batch_key, training.BATCH_SIZE)
        loss, grads = value_and_grad(model, batch)
        losses.append(float(loss))
        model = jax.tree.map(lambda p, g: p - 0.5 * g, model, grads)
    assert result.losses[0, 0] == pytest.approx(losses, rel=1e-4)
    train_loss = float(digits.loss(model, data[0]))
    assert result.train_loss.item() == pytest.approx(train_loss, rel=1e-4)
    # A report after every chunk; the last chunk is shorter.
    assert told == [
        (2, pytest.approx(losses[1], rel=1e-4)),
        (3, pytest.approx(losses[2], rel=1e-4)),
    ]


def test_models_are_evaluated_at_eval_params(data):
    opt = schedule_free_sgd()
    run, _ = training._advance(training._start(opt, jr.key(0)), data[0], 5)
    at = opt.eval_params(run.state, run.model)
    loss, accuracy = training._evaluate(run, data)
    assert float(loss) == pytest.approx(float(digits.loss(at, data[0])), rel=1e-5)
    assert float(accuracy) == float(digits.accuracy(at, data[1]))
    assert float(loss) != pytest.approx(
        float(digits.loss(run.model, data[0])), rel=1e-2
    )
