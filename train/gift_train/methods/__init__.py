"""One file per continual-learning method; `base` says what a method may do."""
