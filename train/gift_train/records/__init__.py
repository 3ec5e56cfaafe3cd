"""What a run writes, and what resume, watch and report read."""
