"""The LightningCLI and what it refuses before anything is loaded."""
