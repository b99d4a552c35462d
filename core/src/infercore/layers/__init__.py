"""Building blocks that models share, over the operations that a backend supplies."""
