"""Optimisers, schedules, gradients and their statistics."""
