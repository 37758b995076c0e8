"""Masked autoregressive flows of two packages, as they come: sampling and inversion."""
