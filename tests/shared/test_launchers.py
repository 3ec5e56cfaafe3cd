import pytest

from gift_shared.errors import ConfigError
from gift_shared.launchers import local_rank_from, number_from


@pytest.mark.parametrize(
    ("environment", "number"),
    [({"LOCAL_RANK": "3", "SLURM_LOCALID": "1"}, 3), ({"SLURM_LOCALID": "1"}, 1), ({"LOCAL_RANK": "", "SLURM_LOCALID": "1"}, 1), ({}, -1)],
)
def test_a_launchers_variable_goes_before_slurms_and_an_empty_one_is_none(environment, number):
    assert local_rank_from(environment, default=-1) == number


def test_what_is_no_number_is_told():
    with pytest.raises(ConfigError, match=r"The variable LOCAL_RANK of a launcher must be a number, found 'one'. Unset it"):
        number_from({"LOCAL_RANK": "one"}, "LOCAL_RANK", default=0)
