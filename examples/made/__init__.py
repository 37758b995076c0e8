"""MADE: a masked autoencoder that samples images pixel by pixel."""
