"""SparseML recipes: files → modifiers → an overlay of our configuration. Imports no torch."""
