"""Tables, pictures and pages of runs; tables of the paper."""
