"""How the kit reads recipes: which parameters are optimizers to wrap."""

import typing
from typing import Annotated, Any

import optax
import pytest

import contrib_wrappers
from contrib_algos import sgd
from contrib_core import AbstractTransform, chain, masked, Transform
from contrib_laws import probe, Subject
from contrib_laws._recipe import is_transform, is_wrapper, parameters_of, wrapped_by


# The old spellings, which other people's annotations may have.
OPTIONAL: Any = typing.Optional
UNION: Any = typing.Union


@pytest.mark.parametrize(
    "annotation",
    [
        Transform,
        AbstractTransform,
        AbstractTransform[Any],
        optax.GradientTransformation,
        optax.GradientTransformationExtraArgs,
        Transform | None,
        OPTIONAL[optax.GradientTransformation],
        UNION["Transform", int],
        Annotated[Transform, "to wrap"],
        "Transform",
        "contrib_core.AbstractTransform[Any] | None",
        "optax.GradientTransformation",
    ],
)
def test_annotations_of_transforms(annotation: Any):
    assert is_transform(annotation)

    def recipe(first):
        return sgd(0.1)

    recipe.__annotations__["first"] = annotation
    assert is_wrapper(recipe)


@pytest.mark.parametrize(
    "annotation",
    [
        float,
        Any,
        None,
        tuple[Transform, ...],
        list[AbstractTransform],
        "tuple[Transform, ...]",
        "Transformation",
        Annotated[float, "Transform"],
    ],
)
def test_other_annotations(annotation: Any):
    assert not is_transform(annotation)


@pytest.mark.parametrize(
    "recipe, names",
    [
        (contrib_wrappers.SAM, ["optimizer", "adv_optimizer"]),
        (contrib_wrappers.sam, ["optimizer", "adv_optimizer"]),
        (contrib_wrappers.MasterWeights, ["inner"]),
        (masked, ["inner"]),
        (optax.contrib.sam, ["optimizer", "adv_optimizer"]),
        (optax.contrib.mechanize, ["base_optimizer"]),
        (chain, []),
        (sgd, []),
        (lambda inner: inner, []),
    ],
)
def test_optimizers_to_wrap(recipe: Any, names: list[str]):
    assert wrapped_by(parameters_of(recipe)) == names
    assert is_wrapper(recipe) == bool(names)


def test_the_wrapped_transform_is_in_the_field_annotated_as_one():
    subject = Subject(contrib_wrappers.master_weights(probe))
    assert subject.inner is probe and subject.inner_code == "transform.inner"
    assert Subject(sgd(0.1)).inner is None


def test_a_wrapper_without_annotations_is_told_how_to_become_one():
    def wrapper(inner):
        return inner

    with pytest.raises(TypeError, match="annotate it as `Transform`"):
        Subject(wrapper)
