"""The palette of the plots, the contact sheet and the report."""

TRAIN, VAL, RATE = "#8aa4c8", "#c2410c", "#9ca3af"  # training, validation, learning rate: the same in every drawing
INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"  # text, secondary text, grid lines
