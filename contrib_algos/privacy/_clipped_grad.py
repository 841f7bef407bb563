"""Clipped sums of gradients, without the gradients of all examples in memory."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from contrib_core import trainable, tree
from contrib_core.ranges import enforce_ranges, Natural, static
from contrib_core.typing import AnyTree, Tree

from ._clip import Bound, clipped_rows, ClippedSum
from ._devices import per_device, summed_over_devices, varying_axes
from ._examples import map_rows, number_of_examples, rows_at
from ._precise import add_pairs, as_pair, Pair, sum_rows


_CALLER = "value_and_clipped_grad"


class ClippedGrad(eqx.Module):
    """A function `(model, batch, mask=None) -> ClippedSum` that computes the losses of
    a batch, and the sum of their clipped gradients.

    It processes one block of examples after the other, and adds the gradients in the
    order of the examples. It needs memory for `microbatch_size` gradients and two sums,
    for any number of examples. A masked row adds nothing, even if it is NaN.

    ```python
    >>> import jax.numpy as jnp
    >>> from contrib_algos import GaussianNoise, sgd, value_and_clipped_grad
    >>> from contrib_core import chain
    >>> clipped_grad = value_and_clipped_grad(lambda w, x: (w @ x) ** 2, 1.0)
    >>> w, batch = jnp.ones(2), jnp.array([[1.0, 2.0], [30.0, 40.0], [5.0, 6.0]])
    >>> clipped = clipped_grad(w, batch, mask=jnp.array([True, True, False]))
    >>> print(clipped.values, jnp.round(clipped.sum, 4))
    [   9. 4900.    0.] [1.0472 1.6944]
    >>> opt = chain(GaussianNoise(1.1, key=42, normalize_by=2), sgd(0.1))
    >>> updates, state = opt.update(clipped, opt.init(w), w)

    ```

    **Arguments:**

    - `loss`: `(model, example) -> value`, one real number for one row of the batch. It
        must not depend on other examples, as batch normalisation does.
    - `l2_norm_clip`: the bound on the norm of the gradient of one example, in units of
        the gradients, from 1e-30 to 1e30.
    - `microbatch_size`: the number of gradients that are computed at once. More need
        more memory, and less time on accelerators; on CPUs 1 to 4 are quickest. It need
        not divide the number of examples. The result is the same up to the rounding of
        the gradients.

    Pass the whole [`contrib_algos.ClippedSum`][] to `update` of a chain that begins
    with [`contrib_algos.GaussianNoise`][]. Its `values` are the losses.

    **Raises:** `ValueError` for an `l2_norm_clip` out of range, and for a
    `microbatch_size` that is not a whole number above 0.
    """

    loss: Callable[..., Any]
    l2_norm_clip: Bound
    _: KW_ONLY
    microbatch_size: Natural = static(1)

    def __check_init__(self):
        enforce_ranges(self)

    def __call__(
        self,
        model: AnyTree,
        batch: AnyTree,
        mask: Bool[Array | np.ndarray, " examples"] | None = None,
    ) -> ClippedSum:
        """The clipped sum of a batch.

        **Arguments:**

        - `model`: the parameters, or a whole equinox model. Leaves that are not
            floating-point arrays get no gradient.
        - `batch`: a tree of arrays whose first axis counts the examples; there may be
            0. Random keys for the loss belong here, one for each example.
        - `mask`: one bool for each example: whether it counts. By default all count.
            Other examples add exactly 0, even if they are NaN.

        **Raises:** `ValueError`, at trace time, for a leaf of `batch` without an axis
        of examples or with another number of examples, for a mask that is not one bool
        for each example, and for a loss that is not one real number.
        """
        number = number_of_examples(_CALLER, batch)
        mask = jnp.ones(number, bool) if mask is None else _checked_mask(mask, number)
        # `self` is shared too, because the loss and the bound may hold arrays.
        shared = self, model
        return summed_over_devices(_clipped_sum, shared, (batch, mask))


def _clipped_sum(
    shared: tuple[ClippedGrad, AnyTree], batch: AnyTree, mask: Array
) -> ClippedSum:
    """The clipped sum of the rows on one device."""
    (grad, model), rows = shared, (batch, mask)
    if axes := varying_axes(model) - varying_axes(rows):
        raise ValueError(
            f"{_CALLER}: parameters differ between devices, along {sorted(axes)} of a "
            "`jax.shard_map`: their gradients would be clipped in parts. Give each "
            "device all parameters, and a part of the batch."
        )
    model = per_device(model, like=rows)
    params = trainable(model)
    number = mask.shape[0]

    def value(params: Tree, example: AnyTree) -> Array:
        loss = _checked_loss(_call(grad.loss, eqx.combine(params, model), example))
        if axes := varying_axes(loss) - varying_axes(rows):
            raise ValueError(
                f"{_CALLER}: the loss looks at data that differ between devices, along "
                f"{sorted(axes)} of a `jax.shard_map`, but are not in the batch. Put "
                "them into it, so that each example is clipped with its own data."
            )
        return loss

    def block(total: Pair, index: Array) -> tuple[Pair, Any]:
        examples, is_kept = rows_at(rows, index)
        keep = is_kept & (index < number)
        values, grads = map_rows(
            lambda example: jax.value_and_grad(value)(params, example), examples
        )
        clipped, norms = clipped_rows(grads, grad.l2_norm_clip, keep)
        values = jnp.where(keep, tree.cast_like(values, bound), 0)
        return add_pairs(total, sum_rows(clipped)), (values, norms)

    bound = tree.scalar(grad.l2_norm_clip, params)
    size = min(grad.microbatch_size, max(1, number))
    blocks = jnp.arange(-(-number // size) * size).reshape(-1, size)
    zeros = tree.widen(tree.zeros_like(params), tree.accumulator_dtype(params))
    total, (values, norms) = lax.scan(block, as_pair(zeros), blocks)
    return ClippedSum(
        *total,
        values.reshape(-1)[:number],
        norms.reshape(-1)[:number],
        bound,
    )


def _call(loss: Callable[..., Any], model: AnyTree, example: AnyTree) -> Any:
    try:
        return loss(model, example)
    except Exception as error:
        shapes = jax.eval_shape(lambda: example)
        error.add_note(
            f"{_CALLER} called `loss(model, example)` with one row of the batch: "
            f"{shapes}."
        )
        raise


def _checked_loss(loss: Any) -> Any:
    is_number = eqx.is_array_like(loss) and jnp.shape(loss) == ()
    if not is_number or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        got = type(loss).__name__
        if eqx.is_array_like(loss):
            got = f"shape {jnp.shape(loss)}, {jnp.result_type(loss)}"
        raise ValueError(
            f"{_CALLER}: `loss(model, example)` must be one real number, of one "
            f"example: a row of the batch, without the first axis; got {got}."
        )
    return loss


def _checked_mask(mask: Any, number: int) -> Array:
    mask = jnp.asarray(mask)
    if mask.shape != (number,) or mask.dtype != jnp.bool_:
        raise ValueError(
            f"{_CALLER}: `mask` must be one bool for each of the {number} examples, as "
            f"`weights > 0`; got shape {mask.shape}, {mask.dtype}. Pass several arrays "
            "of a batch as one tree, `(x, y)`."
        )
    return mask


value_and_clipped_grad = ClippedGrad
