"""Tables of the paper: what each needs, the runs that are there, ours beside the published numbers."""
