"""Whole training steps, and where their time goes."""
