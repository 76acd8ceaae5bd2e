"""Decoding, resizing and summing up of single images."""
