"""One file a method, and the losses and penalties they share."""
