"""The top of the house: command line, grids, reports. Imports the other packages; nothing imports it."""
