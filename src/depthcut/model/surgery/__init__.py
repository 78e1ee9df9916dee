"""Changes to a decoder: replacement layers, bridges, narrower layers."""
