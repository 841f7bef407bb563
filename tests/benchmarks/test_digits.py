"""The handwritten digits and the network that the demo trains on them."""

import jax
import jax.random as jr
import numpy as np
import pytest

from benchmarks.demo import digits


@pytest.fixture(scope="module")
def data():
    return digits.load()


def test_split_is_fixed_and_disjoint(data):
    train, test = data
    assert train.images.shape == (1200, 8, 8, 1)
    assert test.images.shape == (597, 8, 8, 1)
    images = np.concatenate([split.images for split in data])
    assert len({x.tobytes() for x in images}) == 1797
    assert train.labels[:10].tolist() == [1, 5, 5, 2, 7, 1, 4, 4, 1, 3]
    assert test.labels[:10].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5]


def test_images_are_standardised_by_those_to_train_on(data):
    train, _ = data
    assert float(train.images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(train.images.std()) == pytest.approx(1, abs=1e-5)


def test_a_batch_pairs_images_with_their_labels(data):
    train, _ = data
    images, labels = np.asarray(train.images), np.asarray(train.labels)
    label = {x.tobytes(): y for x, y in zip(images, labels, strict=True)}
    batch = train.sample(jr.key(0), 64)
    drawn = [x.tobytes() for x in np.asarray(batch.images)]
    assert [label[x] for x in drawn] == batch.labels.tolist()
    assert len(set(drawn)) > 50


def test_conv_is_a_convolution():
    conv = digits.Conv(2, 3, key=jr.key(0))
    x = jr.normal(jr.key(1), (8, 6, 2))
    kernel = conv.linear.weight.reshape(3, 3, 3, 2).transpose(1, 2, 3, 0)
    (expected,) = jax.lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert conv.linear.bias is not None
    np.testing.assert_allclose(
        conv(x), expected + conv.linear.bias[None, None], rtol=1e-5, atol=1e-5
    )


def test_loss_and_accuracy(data):
    _, test = data
    model = digits.Network(jr.key(0))
    scores = np.asarray(jax.vmap(model)(test.images), np.float64)
    right = scores[np.arange(len(scores)), test.labels]
    loss = np.mean(np.log(np.exp(scores).sum(axis=1)) - right)
    assert float(digits.loss(model, test)) == pytest.approx(loss, rel=1e-5)
    correct = np.mean(right == scores.max(axis=1))
    assert float(digits.accuracy(model, test)) == pytest.approx(correct, rel=1e-6)
