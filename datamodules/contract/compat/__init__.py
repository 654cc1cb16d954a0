"""Every private name of another library that this project uses, one module for each library."""
