"""What is changed in a decoder."""
