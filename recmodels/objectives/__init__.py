"""What is optimised: from branch scores to a loss."""
