"""Samplers of other kinds: a causal transformer, a WaveNet, a masked PixelCNN for given classes."""
