"""Seeing inside: where a network looks, what its layers answer to, and what they would like to see."""
