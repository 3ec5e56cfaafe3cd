"""Stage 2: synthetic shards and tasks in, accuracy matrix out. Reads what stage 1 wrote; never imports it."""
