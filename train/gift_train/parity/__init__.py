"""Golden numbers, replayed through the code that training runs."""
