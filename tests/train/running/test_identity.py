"""What tells two runs apart, where the records of one are older than the question."""

import pytest

from gift_train.records.identity import difference

MODEL = {"model": "DFN5B", "seed": 1}


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ({}, {"transform": "bicubic-centre-crop"}),  # begun when every model had this one
        ({"transform": "bilinear-squash"}, {}),  # looked at before the model is opened
        ({"transform": "bilinear-squash"}, {"transform": "bilinear-squash"}),
    ],
)
def test_a_run_goes_on_with_the_transform_it_began_with(there, here):
    assert difference(MODEL | there, MODEL | here) is None


@pytest.mark.parametrize("there", [{}, {"transform": "bicubic-centre-crop"}])
def test_a_run_that_began_with_another_transform_is_another_run(there):
    found = difference(MODEL | there, MODEL | {"transform": "bilinear-squash"})
    assert found == "transform is 'bicubic-centre-crop' there and 'bilinear-squash' here"


OF_GIFT = {"recipe": {"method": "gift", "method_config": {"temperature": 2.0}}}


def with_loss(name):
    return {"recipe": {"method": "gift", "method_config": {"temperature": 2.0, "contrastive_loss": name}}}


def test_a_run_from_before_there_was_a_choice_of_the_contrastive_loss_goes_on_by_softmax():
    assert difference(OF_GIFT, with_loss("softmax")) is None
    assert difference(with_loss("sigmoid"), with_loss("sigmoid")) is None
    for there in (OF_GIFT, with_loss("softmax")):
        found = difference(there, with_loss("sigmoid"))
        assert found == "recipe.method_config.contrastive_loss is 'softmax' there and 'sigmoid' here"
