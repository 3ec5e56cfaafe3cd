"""Many processes at one folder: which share is whose, who works on what, who is alive."""
