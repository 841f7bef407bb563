"""The cost of one optimisation step, of our rules and of optax's."""
