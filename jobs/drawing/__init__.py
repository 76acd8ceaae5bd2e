"""Images for people: training curves, confusion matrices and contact sheets."""
