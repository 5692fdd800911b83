"""What was played, to look at: consumers of the moments that `evaluate.play` yields."""
