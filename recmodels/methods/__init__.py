"""Ways of tuning a language model, one file for each."""
