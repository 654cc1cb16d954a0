"""What a data set gives away: leaks, ties, duplicates."""
