"""Bytes by URI: storage, checksums, headers of safetensors files."""
