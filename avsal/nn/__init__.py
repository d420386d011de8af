"""Layers and backbones that several papers use."""
