"""Records in, tables, pictures and a page out."""
