"""Replays golden numbers of the published implementations through the code that training runs."""
