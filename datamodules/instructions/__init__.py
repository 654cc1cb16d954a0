"""From a user's history to an instruction in words."""
