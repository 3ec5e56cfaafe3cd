"""The sizes that every stamp shares, in stamp pixels."""

STAMP = 128
FRAME = 96
MIDDLE = STAMP / 2
OVERSAMPLING = 3  # masks and flags are drawn this many times larger and reduced: antialiasing
