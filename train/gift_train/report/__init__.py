"""Tables and pictures of finished runs. Reads run folders only: nothing here trains, evaluates or parses a log."""
