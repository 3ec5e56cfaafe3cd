"""The share of the time that steps wait for their batches."""

import logging
import time

from gift_train.training.data_time import DataTime, warn_if_starved


def slow(num_items, seconds):
    for number in range(num_items):
        time.sleep(seconds)
        yield number


def test_slow_loading_is_waiting_and_slow_steps_are_not():
    waiting = DataTime()
    assert list(waiting.timed(slow(5, 0.01))) == list(range(5))
    assert waiting.seconds >= 0.05
    assert waiting.share > 0.8
    busy = DataTime()
    for _ in busy.timed(range(5)):
        time.sleep(0.01)
    assert busy.share < 0.2


def test_before_the_first_item_nothing_was_waited_for():
    assert DataTime().share == 0


def test_a_starved_task_is_told_and_a_fed_one_is_not(caplog):
    with caplog.at_level(logging.WARNING):
        warn_if_starved("gift 1/2 colours", 0.5, 3)
        warn_if_starved("gift 2/2 stripes", 0.1, 3)
    assert [record.getMessage() for record in caplog.records] == [
        "gift 1/2 colours: steps waited for their images 50 % of the time; more --num-workers (now 3) or --image-cache-gb make that less."
    ]
