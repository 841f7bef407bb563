"""Objects that count as a transform, and objects that do not."""

import optax
import pytest

from contrib_algos import Adam, adam, Lion, sgd
from contrib_core import as_transform, chain, masked, to_optax
from contrib_wrappers import master_weights, schedule_free, split_real_and_imaginary


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "wrong, message",
    [
        (Adam, r"Adam is a class: pass an instance, `Adam\(\)`"),
        (Lion, r"Lion is a class"),
        (adam, "is not a transform; call it"),
        (optax.adam, "is not a transform; call it"),
        (0.1, "is not a transform; a transform has `init` and `update`"),
        ("adam", "is not a transform; a transform has `init` and `update`"),
        (None, "is not a transform"),
    ],
)
def test_other_objects_are_refused_as_transforms(wrong, message):
    with pytest.raises(TypeError, match=message):
        as_transform(wrong)


@pytest.mark.parametrize(
    "accepts",
    [
        chain,
        lambda t: chain(sgd(0.1), t),
        lambda t: masked(t, True),
        split_real_and_imaginary,
        master_weights,
        lambda t: schedule_free(t, 0.1),
        to_optax,
    ],
)
def test_classes_are_refused_wherever_a_transform_is_taken(accepts):
    with pytest.raises(TypeError, match=r"Adam is a class: pass an instance"):
        accepts(Adam)


def test_our_own_transforms_are_returned_unchanged():
    opt = adam(0.1)
    assert as_transform(opt) is opt
