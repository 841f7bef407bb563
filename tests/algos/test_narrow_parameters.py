"""Parameters of 16 bits: statistics are wide, and small steps need a wide copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.descent import descend, twice

from contrib_algos import (
    adam,
    adamw,
    cocob,
    dadapt_adamw,
    dog,
    dowg,
    lion,
    momo,
    momo_adam,
    normalize,
    prodigy,
    sgd,
)
from contrib_core import AbstractTransform, chain, masked
from contrib_wrappers import (
    average,
    master_weights,
    mechanize,
    sam,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
    split_real_and_imaginary,
)


TRANSFORMS: dict[str, AbstractTransform] = {
    "sgd": sgd(0.1, 0.9),
    "adam": adam(lambda count: 0.1),
    "adamw": adamw(0.1),
    "lion": lion(0.1),
    "dog": dog(weight_decay=0.1),
    "dog-init_learning_rate": dog(init_learning_rate=0.1),
    "dowg": dowg(),
    "prodigy": prodigy(growth_rate=2.0),
    "dadapt_adamw": dadapt_adamw(weight_decay=0.1),
    "cocob": cocob(),
    "momo": momo(weight_decay=0.1, adapt_lower_bound=True),
    "momo_adam": momo_adam(weight_decay=0.1, adapt_lower_bound=True),
    "mechanize": mechanize(adam(1.0)),
    "sam": sam(prodigy(), chain(normalize(), sgd(0.05))),
    "average": average(dog()),
    "schedule_free": schedule_free(sgd(0.1), 0.1, state_dtype=None),
    "schedule_free_sgd": schedule_free_sgd(warmup_steps=3),
    "schedule_free_adamw": schedule_free_adamw(weight_decay=0.1),
    "split": split_real_and_imaginary(prodigy()),
    "masked": masked(prodigy(), True),
    "master_weights": master_weights(schedule_free(dog(), 1.0)),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_scalars_of_16_bit_parameters_are_float32(name, dtype):
    opt = TRANSFORMS[name]
    params = {"a": jnp.ones(3, dtype), "b": jnp.ones((2, 2), dtype)}
    state = opt.init(params)
    _, new_state = opt.update(params, state, params, value=1.0)
    scalars = [x for x in jax.tree.leaves((state, new_state)) if x.ndim == 0]
    dtypes = {str(x.dtype) for x in scalars}
    assert dtypes <= {"float32", "int32", "bool"}
    assert "float32" in dtypes or name in (
        "sgd",
        "adam",
        "adamw",
        "lion",
        "cocob",
        "mechanize",
    )


@pytest.mark.parametrize(
    "rule, distance", [(dowg(), 3.0), (momo_adam(), 10.0)], ids=["dowg", "momo_adam"]
)
def test_steps_below_the_resolution_need_a_wide_copy(rule, distance):
    assert "master weights" in " ".join((type(rule).__doc__ or "").split())
    start = jnp.full(3, distance, jnp.bfloat16)
    stuck, _ = descend(rule, start, twice, 1000)
    np.testing.assert_array_equal(stuck[-1], start)
    moved, _ = descend(master_weights(rule), start, twice, 3000)
    assert np.abs(moved[-1].astype(jnp.float32)).max() < 0.1 * distance
