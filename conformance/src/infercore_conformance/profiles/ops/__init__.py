"""Every operation that a Backend computes, against its float32 definition."""
