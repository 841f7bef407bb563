"""Sums of clipped gradients without the gradients of all examples in memory."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, PyTree

from contrib_core import (
    check_whole,
    number_of_examples,
    per_device,
    RealLike,
    rows_at,
    summed_over_devices,
    trainable,
    Tree,
    tree,
    varying_axes,
)

from ._clip import check_bound, clipped_rows, ClippedSum


_WHO = "value_and_clipped_grad"


class ClippedGrad(eqx.Module):
    """`(model, batch, mask=None) -> ClippedSum`: losses, and the clipped sum of their
    gradients.

    A block of examples after the other: memory is that of `microbatch_size` gradients
    and of two sums, whatever the number of examples, and the order in which these are
    added is theirs. So a masked row, NaN or not, is a row that is not there.

    **Arguments:** as for [`contrib_algos.value_and_clipped_grad`][].
    """

    loss: Callable[..., Any]
    l2_norm_clip: RealLike
    microbatch_size: int = eqx.field(default=1, static=True)

    def __post_init__(self):
        check_bound(self)
        check_whole(self, "microbatch_size")

    def __call__(
        self,
        model: PyTree[Any],
        batch: PyTree[Any],
        mask: Bool[Array | np.ndarray, " examples"] | None = None,
    ) -> ClippedSum:
        """The clipped sum of a batch.

        **Arguments:**

        - `model`: the parameters, or a whole equinox model. Leaves that are not
            floating-point arrays are set aside.
        - `batch`: a tree of arrays whose first axis counts the examples, 0 of them or
            more. Random keys for the loss belong here, one for each example.
        - `mask`: which examples count, as bools; by default all. Whatever the others
            are, NaN included, they add exactly 0.

        **Raises:** `ValueError`, at trace time, for a leaf of `batch` without the axis
        of examples or with another number of them, for a mask that is not one bool for
        each, and for a loss that is not one real number for one example.
        """
        number = number_of_examples(_WHO, batch)
        mask = jnp.ones(number, bool) if mask is None else _checked_mask(mask, number)
        # With what the loss and the bound hold, which may be arrays.
        shared = self, model
        return summed_over_devices(_clipped_sum, shared, (batch, mask))


def _clipped_sum(
    shared: tuple[ClippedGrad, PyTree[Any]], batch: PyTree[Any], mask: Array
) -> ClippedSum:
    """That of the rows which a device has."""
    (grad, model), rows = shared, (batch, mask)
    if axes := varying_axes(model) - varying_axes(rows):
        raise ValueError(
            f"{_WHO}: parameters differ between devices, along {sorted(axes)} of a "
            "`jax.shard_map`: their gradients would be clipped in parts. Give each "
            "device all of them, and a part of the batch."
        )
    model = per_device(model, like=rows)
    params = trainable(model)
    number = mask.shape[0]

    def value(params: Tree, example: PyTree[Any]) -> Array:
        loss = _checked_loss(_call(grad.loss, eqx.combine(params, model), example))
        if axes := varying_axes(loss) - varying_axes(rows):
            raise ValueError(
                f"{_WHO}: the loss looks at data that differ between devices, along "
                f"{sorted(axes)} of a `jax.shard_map`, and are not of the batch. Put "
                "them into it: what is of no example is clipped with that of others."
            )
        return loss

    def block(total: tree.Pair, index: Array) -> tuple[tree.Pair, Any]:
        examples, is_kept = rows_at(rows, index)
        keep = is_kept & (index < number)
        values, grads = tree.map_rows(
            lambda example: jax.value_and_grad(value)(params, example), examples
        )
        clipped, norms = clipped_rows(grads, grad.l2_norm_clip, keep)
        values = jnp.where(keep, tree.scalars(values, params), 0)
        return tree.add_pairs(total, tree.sum_rows(clipped)), (values, norms)

    size = min(grad.microbatch_size, max(1, number))
    blocks = jnp.arange(-(-number // size) * size).reshape(-1, size)
    zeros = tree.widen(tree.zeros_like(params), tree.accumulator_dtype(params))
    total, (values, norms) = lax.scan(block, tree.twice(zeros), blocks)
    return ClippedSum(
        *total,
        values.reshape(-1)[:number],
        norms.reshape(-1)[:number],
        tree.scalar(grad.l2_norm_clip, params),
    )


def _call(loss: Callable[..., Any], model: PyTree[Any], example: PyTree[Any]) -> Any:
    try:
        return loss(model, example)
    except Exception as error:
        shapes = jax.eval_shape(lambda: example)
        error.add_note(
            f"{_WHO} called `loss(model, example)` with one row of the batch: {shapes}."
        )
        raise


def _checked_loss(loss: Any) -> Any:
    is_number = eqx.is_array_like(loss) and jnp.shape(loss) == ()
    if not is_number or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        got = type(loss).__name__
        if eqx.is_array_like(loss):
            got = f"shape {jnp.shape(loss)}, {jnp.result_type(loss)}"
        raise ValueError(
            f"{_WHO}: `loss(model, example)` must be one real number, of one example, "
            f"which is a row of the batch without its first axis; got {got}."
        )
    return loss


def value_and_clipped_grad(
    loss: Callable[..., Any], l2_norm_clip: RealLike, *, microbatch_size: int = 1
) -> ClippedGrad:
    """The losses of examples and the sum of their clipped gradients, a block at a time.

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
        must not look at other examples, as batch normalisation does.
    - `l2_norm_clip`: the bound on the norm of the gradient of one example, in units of
        the gradients, from 1e-30 to 1e30.
    - `microbatch_size`: how many gradients are computed at once. More take more memory,
        and on accelerators less time; on CPUs 1 to 4 are quickest. The result is the
        same but for the rounding of the gradients. It need not divide their number.

    **Returns:** a [`contrib_algos.ClippedGrad`][], a function of a model, a batch, and
    if some rows do not count a mask. What it returns, a [`contrib_algos.ClippedSum`][],
    goes whole into `update` of a chain that begins with
    [`contrib_algos.GaussianNoise`][]; the losses are its `values`.

    **Raises:** `ValueError` for a bound out of its range, and for a size of blocks that
    is not a whole number above 0.
    """
    return ClippedGrad(loss, l2_norm_clip, microbatch_size)


def _checked_mask(mask: Any, number: int) -> Array:
    mask = jnp.asarray(mask)
    if mask.shape != (number,) or mask.dtype != jnp.bool_:
        raise ValueError(
            f"{_WHO}: `mask` must be one bool for each of the {number} examples, as "
            f"`weights > 0`; got shape {mask.shape}, {mask.dtype}. Several arrays of a "
            "batch go into one tree, `(x, y)`."
        )
    return mask
