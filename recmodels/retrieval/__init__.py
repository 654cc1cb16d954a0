"""Ranking a whole catalogue: exhaustively as one trie, or by beams."""
