"""Listing of image files: folders of classes, and trees of any size."""
