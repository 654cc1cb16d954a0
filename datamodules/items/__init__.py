"""How an item is written: one file for each form, which gives every item of a catalogue its text."""
