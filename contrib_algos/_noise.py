"""Gaussian noise, which makes a clipped sum private."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from contrib_core import (
    AbstractState,
    AbstractTransform,
    check_finite,
    check_nonnegative,
    check_positive,
    check_scalar,
    check_unmasked,
    Count,
    Extra,
    increment,
    KeyData,
    P,
    RealLike,
    Tree,
    tree,
    varying_axes,
    zero_count,
)

from ._clip import ClippedSum


class DifferentiallyPrivateAggregateState(AbstractState[P]):
    """State of [`contrib_algos.DPAggregate`][] and [`contrib_algos.GaussianNoise`][].

    Secret, as the key in it is: who has it can take the noise away.
    """

    rng_key: KeyData
    count: Count  # t


class GaussianNoise(AbstractTransform[DifferentiallyPrivateAggregateState[Tree]]):
    r"""Adds noise to a [`contrib_algos.ClippedSum`][], and divides.

    $$\tilde g_t = \frac{1}{n} \Big(\sum_i \bar g_{t, i} + \sigma C z_t\Big), \quad
      z_t \sim \mathcal N(0, I)$$

    What it returns is what all later steps may see: the first of a chain, which
    `update` gives a `ClippedSum` in place of gradients,

    ```python
    opt = chain(GaussianNoise(1.1, key), adam(1e-3))
    updates, state = opt.update(clipped_grad(model, batch), state, model)
    ```

    ??? cite "Reference"

        Abadi et al., *Deep Learning with Differential Privacy*, arXiv 1607.00133,
        algorithm 1.

    **Arguments:**

    - `noise_multiplier`: $\sigma$, the standard deviation of the noise in the sum over
        the clipping norm $C$; what [`contrib_algos.calibrate_noise`][] returns. 0 is
        allowed, and is not private at all.
    - `key`: a typed key, a raw one, such as the 64 secret bits of
        `np.frombuffer(secrets.token_bytes(8), np.uint32)`, or for tests a seed from 0
        to $2^{32} - 1$. Secret, and never used again: neither for another run nor for
        another transform. There is no default, for a key that everybody knows makes
        nothing private. `init` puts it into the state, whose key it is that counts.
    - `normalize_by`: $n$, a public number, such as the expected number of examples.
        By default it is the number of rows of the batch, masked ones included (1 for a
        batch without rows); never the number that a mask keeps, which is not public.

    **Raises:** `ValueError` for noise that is negative, infinite or NaN, for
    `normalize_by` that is not positive and finite, for a key of any other kind, and in
    `update` for anything else than a `ClippedSum` that fits the parameters.

    Noise depends on the key, the step and the number of the leaf alone, and not on
    data, masks, dtypes or sizes of blocks. It is drawn in float32 or wider (normal
    numbers of bfloat16 have 128 values, and end at 2.9), each as half of a sum of four,
    for one of float32 ends at 5.4. Real and imaginary parts each have the variance.
    """

    noise_multiplier: RealLike
    key: int | KeyData
    normalize_by: RealLike | None
    impl: str = eqx.field(static=True)  # Of the random number generator.

    def __init__(
        self,
        noise_multiplier: RealLike,
        key: Any,
        *,
        normalize_by: RealLike | None = None,
    ):
        self.noise_multiplier = noise_multiplier
        self.normalize_by = normalize_by
        self.key, self.impl = _checked_key(key), _kind(key)
        given = [] if normalize_by is None else ["normalize_by"]
        check_scalar(self, "noise_multiplier", *given)
        check_nonnegative(self, "noise_multiplier")
        check_positive(self, "normalize_by")
        check_finite(self, "noise_multiplier", "normalize_by")

    @property
    def laws(self) -> frozenset[str]:
        """It knows nothing of the parameters but their shapes."""
        return frozenset({"translation"})

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, which what it is given must fit, and single examples."""
        return frozenset({"params", "examples"})

    def receive(self, who: str, grads: PyTree[Any], params: Tree) -> Tree:
        if not isinstance(grads, ClippedSum):
            raise ValueError(
                f"{who}: noise is added to a `ClippedSum`, whose bound it is scaled "
                f"by, and not to {type(grads).__name__}. Call `update(clipped, state, "
                "params)` with `clipped = value_and_clipped_grad(loss, l2_norm_clip)"
                "(params, batch)`."
            )
        check_unmasked(who, grads)
        for part in ("sum", "rest"):
            AbstractTransform.receive(
                self, f"{who}, `.{part}`", getattr(grads, part), params
            )
        if grads.norms.ndim != 1 or grads.l2_norm_clip.shape:
            raise ValueError(
                f"{who}: several `ClippedSum`s, as of `jax.vmap`. Put `update` into "
                "it, too, with a key for each."
            )
        if axes := varying_axes(grads):
            raise ValueError(
                f"{who}: the sum differs between devices, along {sorted(axes)} of a "
                "`jax.shard_map`, and noise would be added by each of them. Add up "
                "first, `clipped.psum(axis_name)`."
            )
        return grads

    def start(self, params: Tree) -> DifferentiallyPrivateAggregateState[Tree]:
        key = self.key
        if isinstance(key, int) or key.ndim == 0:
            # A seed, which `jax.jit` may have made an array.
            seed = np.uint32(key) if isinstance(key, int) else key
            key = jax.random.key_data(jax.random.key(seed, impl=self.impl))
        return DifferentiallyPrivateAggregateState(key, zero_count())

    def step(
        self,
        grads: Tree,
        state: DifferentiallyPrivateAggregateState[Tree],
        params: Tree,
        extra: Extra,
    ) -> tuple[Tree, DifferentiallyPrivateAggregateState[Tree]]:
        std = self.noise_multiplier * grads.l2_norm_clip
        rows = max(1, grads.norms.shape[0])
        n = rows if self.normalize_by is None else self.normalize_by
        key = jax.random.wrap_key_data(state.rng_key, impl=self.impl)
        noise = tree.normal_like(grads.sum, jax.random.fold_in(key, state.count))

        def entry(total: Array, rest: Array, z: Array, std: Any, n: Any) -> Array:
            return (total + (rest + std * z)) / n

        private = tree.map(entry, grads.sum, grads.rest, noise, std, n)
        # What follows accumulates in these dtypes.
        private = tree.cast_like(private, tree.widen(params))
        count = increment(state.count)
        return private, DifferentiallyPrivateAggregateState(state.rng_key, count)


def _checked_key(key: Any) -> int | KeyData:
    """A seed as it is, so that it is static, and a key as plain data."""
    if isinstance(key, np.integer):
        key = int(key)
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < 2**32:
        return key  # Larger ones would be cut, some of them to the same.
    if (typed := _typed(key)) is None or typed.shape:
        is_array = isinstance(key, jax.Array | np.ndarray)
        of = f" of shape {key.shape}, {key.dtype}" if is_array else ""
        raise ValueError(
            "GaussianNoise: a key is one key of `jax.random`, of secret bits "
            "`np.frombuffer(secrets.token_bytes(8), np.uint32)`, or for tests one seed "
            f"from 0 to 2**32 - 1; got {type(key).__name__}{of}. For several, use "
            "`eqx.filter_vmap`."
        )
    return jax.random.key_data(typed)


def _typed(key: Any) -> Any:
    """A typed key, or an array of some; `None` for what is none."""
    if not isinstance(key, jax.Array | np.ndarray | np.generic):
        return None
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if jnp.issubdtype(key.dtype, jnp.integer) and key.shape == ():
        return jax.random.key(key)
    raw = jax.random.key_data(jax.random.key(0))
    is_raw = key.dtype == raw.dtype and key.shape[-1:] == raw.shape
    return jax.random.wrap_key_data(key) if is_raw else None


def _kind(key: Any) -> str:
    """The name of the random number generator that a key is for."""
    is_key = eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return str(jax.random.key_impl(key if is_key else jax.random.key(0)))
