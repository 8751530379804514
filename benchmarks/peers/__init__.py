"""What a user would write or install in this package's place, for comparison: plain code, none of it tuned."""
