"""What a user would write or install instead of this package, for comparison: plain code, none of it tuned."""
