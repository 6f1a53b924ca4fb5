"""Correctors: plan transforms."""
