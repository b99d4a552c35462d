"""Every weight kind that a Backend packs, whole and in shares, against its dequantized matrix."""
