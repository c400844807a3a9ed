"""How things are measured. Imports no other room."""
