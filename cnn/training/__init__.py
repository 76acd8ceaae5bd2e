"""Recipes, optimizers, schedules, weight averages, and the training step."""
